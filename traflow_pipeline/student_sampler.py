"""A trained student that is ready to sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eval.sampling.samplers import student_sampler
from pipeline.common.errors import BadInput
from pipeline.networks import draws_in_turn, num_labels, picture_shape
from pipeline.teachers.classes import trained_labels
from pipeline.teachers.teacher import Decode
from traflow_pipeline.sample_source import SampleSource
from traflow_pipeline.samples import Samples
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.distillation.student import Student

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, eq=False)
class StudentSampler:
    """Weights of a checkpoint, by default its EMA, which turn noise into samples in a few evaluations."""

    checkpoint: Path
    info: CheckpointInfo
    student: Student
    device: torch.device
    weights_sha256: str
    decode: Decode | None = None  # of latents
    settings: str = ""  # what else samples depend on

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """Of a sample as it is shown; () where samples are latents without a decoder."""
        return picture_shape(self.student.network.config, self.decode is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.student.network.config.shape

    @property
    def num_classes(self) -> int:
        """Or of prompts; 0 for an unconditional student."""
        return num_labels(self.student.network)

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The classes that were trained, where some were not; None: all."""
        return trained_labels(self.info.classes, self.num_classes)

    def sample(
        self, n: int, *, steps: int | Sequence[float] = 1, seed: int = 0, label: int | None = None, first: int = 0
    ) -> Samples:
        """Samples `first` to `first + n - 1` of `seed`, from the noise of `traflow-pipeline sample` and `evaluate`.

        TraFlow's Algorithm 1 (arXiv 2502.16972) in `steps` steps, spaced as its recipe says, an evaluation each, or
        down the times given, from info.t_start to info.t_end. Sample i of a seed begins at the same noise whatever else
        is drawn, and has the class `label`, or one drawn uniformly; prompts take turns, and `label` is the number of
        one.

        Raises:
            BadInput: a number, seed, label or times out of range.
        """
        _check(n=(n, 1, None), first=(first, 0, None), seed=(seed, 0, MAX_SEED))
        if isinstance(steps, int):
            _check(steps=(steps, 1, None))
        parts = list(self.source(steps).batches(range(first, first + n), seed, label))
        labels = [part.labels for part in parts if part.labels is not None]
        pixels = [part.pixels for part in parts if part.pixels is not None]
        return Samples(
            np.concatenate([part.arrays for part in parts]),
            np.concatenate(labels) if labels else None,
            self.info.data_range,
            np.concatenate(pixels) if pixels else None,
        )

    def source(self, steps: int | Sequence[float]) -> SampleSource:
        """What `sample` draws from.

        Raises:
            BadInput: the times do not fall from info.t_start to info.t_end.
        """
        sampler = student_sampler(self.student, steps, self.info.t_start, self.info.t_end, self.info.step_shift)
        return SampleSource(
            name=str(self.checkpoint),
            identity=f"{self.weights_sha256} by {sampler.title}{self.settings}",
            sampler=sampler,
            shape=self.shape,
            num_classes=self.num_classes,
            data_range=self.info.data_range,
            device=self.device,
            classes=self.classes,
            decode=self.decode,
            in_turn=draws_in_turn(self.student.network),
            picture_shape=self.picture_shape,
        )


def _check(**ranges: tuple[int, int, int | None]) -> None:
    for name, (value, low, high) in ranges.items():
        if value < low or (high is not None and value > high):
            bound = f"{low} or more" if high is None else f"{low} to {high}"
            raise BadInput(f"{name}: wanted {bound}, got {value}")
