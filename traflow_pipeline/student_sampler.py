"""A trained student that is ready to sample."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.sampling.samplers import BATCH_SIZE, Sampler, draw_samples, student_sampler
from pipeline.common.errors import BadInput
from pipeline.flow.noise import Stream, draw_labels
from pipeline.teachers.classes import trained_labels
from traflow_pipeline.samples import Samples
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.distillation.student import Student

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, eq=False)
class StudentSampler:
    """The EMA weights of a checkpoint, which turn noise into samples in a few evaluations."""

    checkpoint: Path
    info: CheckpointInfo
    student: Student
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.student.network.config.shape

    @property
    def num_classes(self) -> int:
        """0 for an unconditional student."""
        return self.student.network.config.num_classes

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The classes that were trained, where some were not; None: all."""
        return trained_labels(self.info.classes, self.num_classes)

    def sample(
        self, n: int, *, steps: int | Sequence[float] = 1, seed: int = 0, label: int | None = None, first: int = 0
    ) -> Samples:
        """Samples `first` to `first + n - 1` of `seed`, from the noise of `traflow-pipeline sample` and `evaluate`.

        TraFlow's Algorithm 1 (arXiv 2502.16972) on `steps` even steps, an evaluation each, or down the times given,
        from info.t_start to info.t_end. Sample i of a seed begins at the same noise whatever else is drawn, and has
        the class `label`, or one drawn uniformly.

        Raises:
            BadInput: a number, seed, label or times out of range.
        """
        _check(n=(n, 1, None), first=(first, 0, None), seed=(seed, 0, MAX_SEED))
        if isinstance(steps, int):
            _check(steps=(steps, 1, None))
        indices = range(first, first + n)
        labels = self._labels(seed, indices, label)
        sampler = student_sampler(self.student, steps, self.info.t_start, self.info.t_end)
        if label is not None:
            sampler = _of_class(sampler, label)
        batches = draw_samples(
            sampler, self.shape, self.num_classes, seed, indices, BATCH_SIZE, self.device, self.classes
        )
        arrays = torch.cat([batch.samples for batch in batches]).numpy()
        return Samples(arrays, labels, self.info.data_range)

    def _labels(self, seed: int, indices: range, label: int | None) -> NDArray[np.int64] | None:
        if label is None:
            drawn = draw_labels(seed, indices, self.num_classes, Stream.EVALUATION_LABEL, self.classes)
            return drawn if self.num_classes else None
        if not self.num_classes:
            raise BadInput(f"label {label}: {self.checkpoint} has no classes; leave label out")
        _check(label=(label, 0, self.num_classes - 1))
        return np.full(len(indices), label, np.int64)


def _of_class(sampler: Sampler, label: int) -> Sampler:
    def draw(noise: Tensor, drawn: Tensor | None) -> tuple[Tensor, int]:
        assert drawn is not None
        return sampler.draw(noise, torch.full_like(drawn, label))

    return replace(sampler, draw=draw)


def _check(**ranges: tuple[int, int, int | None]) -> None:
    for name, (value, low, high) in ranges.items():
        if value < low or (high is not None and value > high):
            bound = f"{low} or more" if high is None else f"{low} to {high}"
            raise BadInput(f"{name}: wanted {bound}, got {value}")
