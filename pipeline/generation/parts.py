"""A data set in parts: processes that share its shards and need nothing of each other but the store they write to.

A part holds no lease: a commit is idempotent, so that parts may overlap, be lost and be run again. The lease protects
the manifest, which whoever finds every shard committed writes.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from pipeline.common.errors import BadInput, StoreFailed, reason
from pipeline.common.interrupt import Stop, stoppable
from pipeline.common.progress import say
from pipeline.dataset.commit import uncommitted
from pipeline.dataset.manifest import PLAN, DataSet, Manifest, read_dataset, write_dataset
from pipeline.dataset.plan import Shard, Shards
from pipeline.generation.backlog import Failure
from pipeline.generation.generate import (
    STOPPING,
    GenerateConfig,
    check_device,
    check_teacher,
    encode_prompts,
    generate,
    make_shards,
    plan_of,
    report,
)
from pipeline.generation.heartbeat import beating
from pipeline.storage.lease import Held
from pipeline.storage.store import Store, open_store


@dataclass(frozen=True)
class Part:
    """The share `number` of `count` of a data set: every `count`-th shard, from the `number`-th on."""

    number: int  # 1 to count
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The part that "3/16" names.

        Raises:
            BadInput: it names none.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise BadInput(f"--part {text}: wanted K/N with K from 1 to N, such as 3/16")
        return cls(int(match[1]), int(match[2]))

    def share(self, shards: Shards) -> Shards:
        """The shards of this part."""
        return shards[self.number - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def generate_part(config: GenerateConfig, part: Part, steals: bool = False) -> Manifest | None:
    """Generate the shards of `part` that are not committed yet, in this process, and the manifest if no shard is left.

    With `steals`, then those of the other parts that are not committed, in random order, so that the parts that are
    alive finish the work of those that are late or lost.

    Returns:
        The manifest; None while shards of other parts are missing, or while another driver is about to write it.

    Raises:
        BadInput, WorkFailed, KeyboardInterrupt: see `generate`.
    """
    config = config.model_copy(update={"executor": "inline", "workers": None, "address": None})
    check_device(config)
    store = open_store(config.out)
    source, known, plan = plan_of(config, store)
    shards = plan.shards(config.n)
    own, others = _left(store, part.share(shards)), list[Shard]()
    if own and known:
        check_teacher(config, source, known)
    dataset = _begin(store, DataSet(plan=plan, num_records=config.n, teacher_source=source.absolute))
    with stoppable(STOPPING) as stop, beating(store, part.number, part.count):
        encode_prompts(config, dataset, source, store, stop, is_part=True)
        failures = _make(config, dataset, own, stop)
        if steals and not stop.is_set():
            others = [shard for shard in _left(store, shards) if shard.number not in failures]
            random.shuffle(others)
            failures |= _make(config, dataset, others, stop)
    report(list(failures.values()), len(own) + len(others), stop)
    if left := _left(store, shards):
        say(f"part {part} is complete; {len(left)} of {len(shards)} shards are left to the other parts")
        return None
    try:
        return generate(config)
    except Held as error:
        say(f"part {part} is complete; the manifest is the other driver's ({error})")
        return None


def _begin(store: Store, dataset: DataSet) -> DataSet:
    """Write the plan, which parts that begin together write once.

    Raises:
        BadInput: the store holds another plan, or more records than asked for; or it cannot be written.
    """
    try:
        if store.create(PLAN, dataset.model_dump_json(indent=1).encode()):
            return dataset
        existing = read_dataset(store)
        assert existing is not None
        dataset.plan.check_same(existing.plan, store.location)
        if existing.num_records > dataset.num_records:
            raise BadInput(
                f"{store.location} is planned for {existing.num_records} records, {dataset.num_records} were asked: "
                "parts only make a set grow"
            )
        if existing != dataset:
            write_dataset(store, dataset)
    except OSError as error:
        raise BadInput(f"{store.location}: cannot be written ({reason(error)})") from error
    return dataset


def _left(store: Store, shards: Iterable[Shard]) -> list[Shard]:
    try:
        return list(uncommitted(shards, store.sizes().keys()))
    except OSError as error:
        raise StoreFailed(f"{store.location}: cannot be read ({reason(error)})") from error


def _make(config: GenerateConfig, dataset: DataSet, shards: list[Shard], stop: Stop) -> dict[int, str]:
    """Make `shards`; the errors of those that failed, by number."""
    results = make_shards(config, dataset, shards, stop, is_part=True)
    return {result.shard.number: result.error for result in results if isinstance(result, Failure)}
