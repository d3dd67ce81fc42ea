"""The random numbers of one step: a function of (seed, step), a term and a row, whatever the number of ranks.

They are drawn on the CPU with the batch, ahead of the step, and copied to the device with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.flow.noise import Stream, draw_noise
from trainer.data.rows import Rows
from trainer.distillation.time_sampling import TIME_SAMPLERS, TimeSampler

MAX_UNIFORMS = 3  # of one term


@dataclass(frozen=True)
class TermDraws:
    """The random numbers of one term."""

    _uniforms: Iterator[Tensor]
    strata: Tensor  # float32 [rows] in [0, 1), one in each of batch_size strata, in random order: less noise in a mean
    progress: Tensor  # float32 [rows], the part of the training that is done before this step
    _noise: Tensor | None

    def uniform(self) -> Tensor:
        """Float64 [rows] in [0, 1); at most `MAX_UNIFORMS` times."""
        return next(self._uniforms)

    def integers(self, low: int | Tensor, high: int | Tensor) -> Tensor:
        """Uniform integers int64 [rows] in [low, high)."""
        return low + (self.uniform() * (high - low)).long()

    def times(self, low: Tensor, high: Tensor, sampler: TimeSampler) -> Tensor:
        """Times [rows] from `low` to `high` [rows], distributed as `sampler` says."""
        fraction = TIME_SAMPLERS[sampler](self.uniform())
        return low + (high - low) * fraction.to(low.dtype)

    def normal(self) -> Tensor:
        """Standard normal float32 [rows, C, H, W], of a term that says that it `draws_noise`."""
        assert self._noise is not None
        return self._noise


@dataclass(frozen=True)
class Draws(Rows):
    """Numbers for this rank's rows of a batch, or for some of them."""

    uniforms: Tensor  # float64 [rows, terms, MAX_UNIFORMS]
    strata: Tensor  # float32 [rows]
    progress: Tensor  # float32 [rows]
    noise: Tensor | None  # float32 [rows, C, H, W]

    def of(self, term: int) -> TermDraws:
        """The numbers of the term at position `term` of its phase."""
        return TermDraws(iter(self.uniforms[:, term].unbind(1)), self.strata, self.progress, self.noise)


def draw(
    seed: int,
    step: int,
    batch_size: int,
    mine: slice,
    num_terms: int,
    noise_shape: tuple[int, ...] | None,
    num_steps: int,
) -> Draws:
    """The numbers of `step` of `num_steps` for the rows `mine` of its batch; noise only if `noise_shape` is given."""
    rng = np.random.default_rng([seed, step])
    uniforms = rng.random((batch_size, num_terms, MAX_UNIFORMS))[mine]
    strata = (rng.permutation(batch_size) + rng.random(batch_size))[mine] / batch_size
    rows = range(step * batch_size + mine.start, step * batch_size + mine.stop)
    noise = None if noise_shape is None else draw_noise(seed, rows, noise_shape, Stream.TRAINING_NOISE)
    return Draws(
        uniforms=torch.from_numpy(uniforms),
        # Rounding to float32 may reach 1, which no sampler of times allows.
        strata=torch.from_numpy(strata).float().clamp(max=1 - 2**-24),
        progress=torch.full((len(strata),), step / num_steps),
        noise=None if noise is None else torch.from_numpy(noise),
    )


def seed_dropout(seed: int, step: int, first_row: int) -> None:
    """Seed torch's generators for dropout, the one thing that differs with the number of ranks and of parts."""
    (state,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    torch.manual_seed((int(state) + first_row) % 2**63)
