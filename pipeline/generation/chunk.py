"""Make one chunk of a condition table: a pure function of (prompts, chunk, text encoders)."""

import time
from dataclasses import dataclass
from typing import Self

import torch

from pipeline.common.errors import BadInput, StoreFailed, WorkFailed, reason
from pipeline.dataset.conditions import PROMPTS, Chunk, ConditionMarker, Prompts, write_chunk
from pipeline.dataset.plan import ConditionSet, Plan
from pipeline.dataset.shards import sha256
from pipeline.flow.numerics import Numerics, fixed_numerics, numerics_of
from pipeline.storage.store import Store
from pipeline.teachers.loading import PromptSource, TeacherSource


@dataclass(frozen=True)
class ChunkEncoder:
    """The text encoders of a teacher on one device, and the prompts of a data set."""

    conditions: ConditionSet
    prompts: Prompts
    encoder: PromptSource
    device: torch.device

    @classmethod
    def load(cls, plan: Plan, source: TeacherSource, store: Store, device: torch.device) -> Self:
        """That of the data set in `store`.

        Raises:
            BadInput: the text encoders cannot be loaded.
            WorkFailed: they, or the prompts in `store`, are not those of the plan.
        """
        assert plan.conditions is not None
        prompts = read_prompts(store)
        if source.identify(prompts) != plan.conditions:
            raise WorkFailed(
                f"teacher {source.text}: its text encoders, or the prompts in {store.location}, are not the plan's"
            )
        return cls(plan.conditions, prompts, source.encoder(device), device)

    @property
    def numerics(self) -> Numerics:
        """Of what is encoded here, within `fixed_numerics`."""
        return numerics_of(self.device, libraries=self.encoder.libraries)

    def encode(self, chunk: Chunk) -> tuple[bytes, ConditionMarker]:
        """The bytes of `chunk` and its marker; each prompt is encoded alone."""
        started = time.monotonic()
        with fixed_numerics():
            rows = [self.encoder.row(self.prompts, number) for number in chunk.rows]
            numerics = self.numerics
        payload, slots = write_chunk(chunk, rows)
        return payload, ConditionMarker(
            chunk=chunk,
            conditions=self.conditions,
            sha256=sha256(payload),
            num_bytes=len(payload),
            slots=slots,
            wall_seconds=time.monotonic() - started,
            numerics=numerics,
        )


def read_prompts(store: Store) -> Prompts:
    """The prompts of the data set in `store`.

    Raises:
        BadInput: they are missing or damaged.
        StoreFailed: the store cannot be read.
    """
    try:
        return Prompts.parsed(store.read(PROMPTS))
    except FileNotFoundError as error:
        raise BadInput(f"{store.location}: {PROMPTS} is missing; run traflow-pipeline generate again") from error
    except OSError as error:
        raise StoreFailed(f"{store.location}: {PROMPTS} cannot be read ({reason(error)})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{store.location}: {PROMPTS} is damaged; run traflow-pipeline generate again") from error
