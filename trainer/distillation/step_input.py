"""What a step reads: samples and random numbers, read ahead together."""

from dataclasses import dataclass
from typing import Self

import torch

from trainer.data.stream import Batch
from trainer.distillation.random_draws import Draws


@dataclass(frozen=True)
class StepInput:
    """What a step reads: this rank's part of its batch, and the random numbers for it."""

    batch: Batch
    draws: Draws

    def to(self, device: torch.device) -> Self:
        """This input on `device`."""
        return type(self)(self.batch.to(device), self.draws.to(device))

    def pinned(self) -> Self:
        """This input in pinned memory."""
        return type(self)(self.batch.pinned(), self.draws.pinned())

    def rows(self, rows: slice) -> Self:
        """Some rows of this input."""
        return type(self)(self.batch.rows(rows), self.draws.rows(rows))
