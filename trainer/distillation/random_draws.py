"""The random numbers of one step: a function of (seed, step) and a row, whatever the number of ranks or the device."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Numbers for the rows of a batch that this rank has, drawn for the batch of all ranks and cut."""

    generator: torch.Generator  # on the CPU: the same numbers on every device
    batch_size: int  # of all ranks together
    mine: slice  # this rank's rows of it
    rows: slice  # of those, the rows that are asked for
    device: torch.device

    def uniform(self) -> Tensor:
        """Float64 [rows] in [0, 1)."""
        return self._cut(torch.rand(self.batch_size, generator=self.generator, dtype=torch.float64))

    def stratified(self) -> Tensor:
        """Float32 [rows] in [0, 1), one in each of `batch_size` strata, in random order: less noise in a mean."""
        order = torch.randperm(self.batch_size, generator=self.generator)
        return self._cut((order + torch.rand(self.batch_size, generator=self.generator)) / self.batch_size)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 [rows, *shape]."""
        return self._cut(torch.randn(self.batch_size, *shape, generator=self.generator))

    def of(self, rows: slice) -> "Draws":
        """Numbers for some of this rank's rows."""
        return replace(self, rows=rows)

    def _cut(self, x: Tensor) -> Tensor:
        return x[self.mine][self.rows].to(self.device)


def draws_of(seed: int, step: int, batch_size: int, mine: slice, device: torch.device) -> Draws:
    """The draws of a step for the rows `mine` of its batch.

    They also seed dropout, the one thing that differs with the number of ranks and of parts.
    """
    (state,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    torch.manual_seed((int(state) + mine.start) % 2**63)
    return Draws(torch.Generator().manual_seed(int(state)), batch_size, mine, slice(None), device)
