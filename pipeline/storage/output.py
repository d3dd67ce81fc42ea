"""The outputs of the stages: each goes into a new or empty folder or prefix, or one that holds its own kind."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum

from pipeline.common.errors import BadInput, reason
from pipeline.storage.lease import LEASE, Lease, hold_lease
from pipeline.storage.store import Store, is_aside, open_store

IGNORED = {LEASE, "ray/", "slurm/"}  # of a driver, of Ray Train, and of a run's jobs


class Output(Enum):
    """What a stage makes; the value holds the names that mark it."""

    DATA = ("plan.json",)
    TRAINING = ("checkpoints/", "log.jsonl")
    REPORT = ("metrics.json", "evaluate.yaml", "samples/", "conditions/")
    RUN = ("run.yaml",)  # last: its stages may lie in the same folder

    def __str__(self) -> str:
        return {"DATA": "a data set", "TRAINING": "a training run", "REPORT": "a report", "RUN": "a run"}[self.name]


def check_output(store: Store, kind: Output) -> None:
    """Raises `BadInput` if `store` holds files, and neither an output of `kind` nor only folders of other outputs."""
    try:
        names = {name for name in store.sizes() if name not in IGNORED and not is_aside(name)}
        if not names or (found := _kind_of(names)) is kind or all(_is_stage(store, name) for name in names):
            return
    except OSError as error:
        raise BadInput(f"{store.location}: wanted a folder to write to ({reason(error)})") from error
    holds = f"it holds {found}" if found else "it is not empty"
    raise BadInput(f"{store.location}: wanted a new or empty folder, or {kind}; {holds}: choose another --out")


def _kind_of(names: set[str]) -> Output | None:
    return next((kind for kind in Output if names.intersection(kind.value)), None)


def _is_stage(store: Store, name: str) -> bool:
    """Whether `name` is a file or a folder of a run, beside which its report may lie."""
    if not name.endswith("/"):
        return name == "run.yaml"
    return _kind_of(set(open_store(f"{store.location}/{name.rstrip('/')}").sizes())) is not None


@contextmanager
def hold_output(kind: Output, *locations: str) -> Iterator[list[Lease]]:
    """Hold the leases of `locations`, which an output of `kind` is written to.

    Raises:
        BadInput: see `check_output` and `hold_lease`.
    """
    stores = [open_store(location) for location in locations]
    for store in stores:
        check_output(store, kind)
    with ExitStack() as stack:
        yield [stack.enter_context(hold_lease(store)) for store in stores]
