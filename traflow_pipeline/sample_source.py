"""What samples are drawn from: a student or a teacher, and one way from noise to samples."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from eval.sampling.samplers import BATCH_SIZE, Sampler, draw_samples, teacher_sampler
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.common.progress import Advance
from pipeline.flow.noise import start_labels
from pipeline.flow.solver import Solver
from pipeline.networks import draws_in_turn
from pipeline.teachers.teacher import Decode, Teacher
from traflow_pipeline.samples import Samples


def _silent(amount: float, status: str = "", *, skipped: bool = False) -> None:
    """No bar is shown."""


@dataclass(frozen=True, eq=False)
class SampleSource:
    """A sampler with all that its samples depend on but their index, seed and class."""

    name: str  # for messages
    identity: str  # the weights' digest and the sampler: the same identity draws the same samples
    sampler: Sampler
    shape: tuple[int, ...]  # of one sample
    num_classes: int  # 0 without classes
    data_range: tuple[float, float]
    device: torch.device
    classes: tuple[int, ...] | None = None  # those that are drawn, where not all were trained
    decode: Decode | None = None  # from latents to what is shown
    in_turn: bool = False  # whether its labels are prompts, which take turns
    picture_shape: tuple[int, ...] | None = None  # of what is shown, () if that is nothing; None: the samples

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one sample as it is shown."""
        return self.shape if self.picture_shape is None else self.picture_shape

    def batches(
        self, indices: range, seed: int, label: int | None = None, advance: Advance = _silent
    ) -> Iterator[Samples]:
        """The samples `indices` of `seed`, in batches; each of the class `label`, or of one drawn, see `labels`.

        Raises:
            BadInput: `label` is no class.
            WorkFailed: a sample is not finite.
        """
        self.check_label(label)
        return self._draw(indices, seed, label, advance)

    def split(self, indices: range) -> Iterator[range]:
        """The indices of each batch."""
        return (indices[start : start + BATCH_SIZE] for start in range(0, len(indices), BATCH_SIZE))

    def labels(self, indices: range, seed: int, label: int | None = None) -> list[int]:
        """The classes of the samples `indices` of `seed`."""
        if label is not None:
            return [label] * len(indices)
        return list(map(int, start_labels(seed, indices, self.num_classes, self.classes, self.in_turn)))

    def check_label(self, label: int | None, called: str = "label") -> None:
        """Raises `BadInput` unless `label`, which the user `called` so, is None or a class."""
        if label is not None and not self.num_classes:
            raise BadInput(f"{called} {label}: {self.name} has no classes; leave {called} out")
        if label is not None and not 0 <= label < self.num_classes:
            raise BadInput(f"{called}: wanted 0 to {self.num_classes - 1}, got {label}")

    def _draw(self, indices: range, seed: int, label: int | None, advance: Advance) -> Iterator[Samples]:
        drawn = draw_samples(
            self.sampler,
            self.shape,
            self.num_classes,
            seed,
            indices,
            BATCH_SIZE,
            self.device,
            label,
            self.classes,
            self.in_turn,
        )
        for batch in drawn:
            if not torch.isfinite(batch.samples).all():
                raise WorkFailed(f"{self.name}: {self.sampler.title}: a sample is not finite; its weights are broken")
            labels = None if batch.labels is None else batch.labels.numpy()
            pixels = None if self.decode is None else self.decode(batch.samples.to(self.device)).cpu().numpy()
            yield Samples(batch.samples.numpy(), labels, self.data_range, pixels)
            advance(len(batch.samples))


def of_teacher(teacher: Teacher, solver: Solver, device: torch.device, settings: str = "") -> SampleSource:
    """The samples of `teacher` by `solver`; `settings` tell what else they depend on."""
    return SampleSource(
        name=f"teacher {teacher.name}",
        identity=f"{teacher.sha256} by {solver}{settings}",
        sampler=teacher_sampler(teacher, solver),
        shape=teacher.shape,
        num_classes=teacher.num_classes,
        data_range=teacher.data_range,
        device=device,
        classes=teacher.labels,
        decode=teacher.decode,
        in_turn=draws_in_turn(teacher.network),
        picture_shape=teacher.picture_shape,
    )
