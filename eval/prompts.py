"""The held-out prompts of an evaluation: their file, checked, and their conditions, each encoded once and kept."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.common.errors import BadInput, StoreFailed, reason
from pipeline.common.progress import bar, say
from pipeline.dataset.conditions import Chunk, ConditionTable, Prompts, commit_chunk, missing_chunks
from pipeline.dataset.manifest import read_dataset
from pipeline.dataset.plan import ConditionSet
from pipeline.generation.chunk import ChunkEncoder, read_prompts
from pipeline.networks import DiffusersNetwork, Network
from pipeline.networks.conditions import Conditions
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import Store, open_store
from pipeline.teachers.loading import TeacherSource
from trainer.distributed import Ranks

SHOWN = 80  # characters of a prompt in a message
UNKNOWN = (
    "the training's data are not here, so that it was not checked that no prompt is among theirs; guidance leads away "
    "from the pipeline's own negative prompt"
)


@dataclass(frozen=True)
class HeldOut:
    """Prompts that no training has seen, and what identifies their condition table."""

    path: str
    sha256: str  # of the file
    prompts: Prompts
    conditions: ConditionSet
    store: Store  # of their table
    notes: tuple[str, ...]  # for the report

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def table(self) -> ConditionTable:
        """Their conditions, once they are encoded."""
        return ConditionTable(self.store, self.conditions)


def training_prompts(data: str | None) -> Prompts | None:
    """The prompts of the data set at `data`; None where it is gone, or draws from none.

    Raises:
        BadInput: they are missing or damaged.
        StoreFailed: the data set cannot be read.
    """
    store = None if data is None else open_store(data)
    dataset = None if store is None else read_dataset(store)
    return None if store is None or dataset is None or dataset.plan.conditions is None else read_prompts(store)


def read_held_out(path: str | None, source: TeacherSource, training: Prompts | None, store: Store) -> HeldOut | None:
    """The prompts in the file `path` for the teacher of `source`; None for a teacher without prompts.

    `training` are those of its student's data, whose negative prompt is taken too; None where they are not known.
    `store` is where their conditions are, or are going to be.

    Raises:
        BadInput: there are none where they are wanted, or some where they are not; one is empty, repeats another, or
            is among the training's.
    """
    prompts = source.prompts(path, None if training is None else training.negative)
    if prompts is None or path is None:
        return None
    if training is not None:
        _check_apart(path, prompts, training)
    notes = [*([] if training else [UNKNOWN]), *source.notes(prompts)]
    file = Path(path).expanduser()
    return HeldOut(path, file_sha256(file), prompts, source.identify(prompts), store, tuple(notes))


def _check_apart(path: str, prompts: Prompts, training: Prompts) -> None:
    """Raises `BadInput` if a prompt is the training's too, but for case and spaces."""
    seen = {_folded(prompt) for prompt in training.prompts}
    if shared := [prompt for prompt in prompts.prompts if _folded(prompt) in seen]:
        raise BadInput(
            f"{path}: wanted prompts that the training has not seen; {len(shared)} of its {len(prompts)} are among the "
            f"training's, the first is {shared[0][:SHOWN]!r}: remove them"
        )


def _folded(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


def encode_held_out(held_out: HeldOut, source: TeacherSource, ranks: Ranks) -> None:
    """Encode what is missing of the condition table, each prompt alone; the text encoders then leave memory.

    Ranks share the chunks.

    Raises:
        BadInput: the text encoders cannot be loaded.
        StoreFailed: the store cannot be read or written.
    """
    store = held_out.store
    try:
        missing = [c for c in missing_chunks(store, held_out.conditions) if c.number % ranks.world == ranks.rank]
    except OSError as error:
        raise StoreFailed(f"{store.location}: cannot be read ({reason(error)})") from error
    if missing:
        for note in held_out.notes if ranks.is_first else ():
            say(f"note: {note}")
        _encode(held_out, source, missing, ranks.device)
        gc.collect()
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()
    ranks.wait()


def _encode(held_out: HeldOut, source: TeacherSource, missing: list[Chunk], device: torch.device) -> None:
    encoder = ChunkEncoder(held_out.conditions, held_out.prompts, source.encoder(device), device)
    total = held_out.conditions.num_rows
    with bar("encode prompts", total, total - sum(chunk.num_rows for chunk in missing)) as advance:
        for chunk in missing:
            commit_chunk(held_out.store, *encoder.encode(chunk))
            advance(chunk.num_rows)


@contextmanager
def conditioned(network: Network, conditions: Conditions | None) -> Iterator[None]:
    """`network` with `conditions` as what its labels stand for, if it draws from prompts."""
    if not isinstance(network, DiffusersNetwork):
        yield
        return
    before, network.conditions = network.conditions, conditions
    try:
        yield
    finally:
        network.conditions = before
