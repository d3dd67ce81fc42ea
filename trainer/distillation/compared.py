"""The terms of the methods that TraFlow is compared with."""

import copy
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.common.config import PathText, Unit
from pipeline.common.errors import BadInput
from pipeline.flow.path import interpolate, match_dims
from pipeline.networks import FlowNetwork, Network
from trainer.data.images import load_images
from trainer.data.stream import TrajectoryBatch
from trainer.distillation import compared_losses, losses
from trainer.distillation.companions import Discriminator, held
from trainer.distillation.distance import DistanceConfig
from trainer.distillation.models import Models
from trainer.distillation.queries import Loss
from trainer.distillation.random_draws import TermDraws
from trainer.distillation.terms import L2, TRAINED, BaseTerm, Owner, TrainingOwner, draw_three

SCORE_TIMES = (0.02, 0.98)  # between which DMD and score distillation noise a sample
GUIDE_TIMES = (0.2, 0.8)  # between which SlimFlow's two steps meet


class ConsistencyDistillation(BaseTerm):
    """Consistency distillation: neighbouring stored states have one end (arXiv 2303.01469, Eq. 7 and Algorithm 2).

    d(G(x_t, t, 0), G_ema(x_u, u, 0)), where u is the stored time after t. There an ODE solver steps from t to u; here
    both states are on the teacher's trajectory.
    """

    loss: Literal["consistency-distillation"] = "consistency-distillation"
    distance: DistanceConfig = L2

    @property
    def cost(self) -> float:
        return TRAINED + 1

    @property
    def needs_ema(self) -> bool:
        return True

    @property
    def num_states(self) -> int:
        return 1

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        i = draws.integers(0, batch.times.shape[1] - 1)
        (x_t, t), (x_u, u) = batch.stored(i), batch.stored(i + 1)
        return losses.consistency_loss(x_t, t, x_u, u, batch.times[:, -1], batch.label, "ema", self.distance)


class ConsistencyTraining(BaseTerm):
    """Consistency training: neighbouring times of one line from sample to fresh noise (arXiv 2303.01469, Theorem 2).

    No teacher's trajectory is used, only its samples as data. The steps, even in t, grow from 1 to `max_steps` m as
    those between the N(k) times of their Appendix C: N(k) - 1 = ceil(sqrt(k ((m + 1)^2 - 4) + 4) - 1) at the part k of
    the training.
    """

    loss: Literal["consistency-training"] = "consistency-training"
    max_steps: Annotated[int, Unit("steps")] = Field(
        default=150, ge=2, description="Number of steps that the discretisation grows to."
    )
    distance: DistanceConfig = L2

    draws_noise: ClassVar[bool] = True

    @property
    def cost(self) -> float:
        return TRAINED + 1

    @property
    def needs_ema(self) -> bool:
        return True

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        count = ((draws.progress * ((self.max_steps + 1) ** 2 - 4) + 4).sqrt() - 1).ceil()
        start, end = batch.times[:, 0], batch.times[:, -1]
        i = draws.integers(1, count + 1).to(start.dtype)
        t, u = (end + (start - end) * place / count for place in (i, i - 1))
        x_t, x_u = (interpolate(batch.x[:, -1], draws.normal(), time) for time in (t, u))
        return losses.consistency_loss(x_t, t, x_u, u, end, batch.label, "ema", self.distance)


class Denoising(BaseTerm):
    """Denoising score matching at s = t, on lines from the teacher's samples to fresh noise, as the teacher had it.

    |F(x_t, t, t) - (noise - x)|^2: the error of the data that is predicted over t^2 (CTM's L_DSM, arXiv 2310.02279; the
    flow-matching part of shortcut models, arXiv 2410.12557, Eq. 5).
    """

    loss: Literal["denoising"] = "denoising"

    draws_noise: ClassVar[bool] = True

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        noise, x = draws.normal(), batch.x[:, -1]
        t = draws.times(batch.times[:, -1], batch.times[:, 0], "uniform")
        return losses.velocity_loss(interpolate(x, noise, t), t, noise - x, batch.label)


class Bootstrap(BaseTerm):
    """BOOT: from the noise alone; the student at s is taught by itself at t = s + `step` and the live teacher there."""

    loss: Literal["bootstrap"] = "bootstrap"
    step: float = Field(default=0.04, gt=0, lt=1, description="Difference of the two times.")

    @property
    def cost(self) -> float:
        return 2 * TRAINED + 2

    @property
    def needs_teacher(self) -> bool:
        return True

    @property
    def needs_velocities(self) -> bool:
        return True

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        assert models.teacher is not None
        assert batch.velocity is not None
        start = batch.times[:, 0]
        s = draws.times(batch.times[:, -1], start - self.step, "uniform")
        x, first = batch.x[:, 0], batch.velocity[:, 0]
        return compared_losses.bootstrap_loss(models.teacher, x, start, s + self.step, s, first, batch.label)


class Progressive(Owner):
    """Progressive distillation: in each phase a student of `steps` steps learns two steps of the student before.

    That is a copy of the student as it was when the phase began; in the first phase the teacher's Euler steps. States
    are on lines from the teacher's samples to fresh noise.
    """

    loss: Literal["progressive"] = "progressive"
    steps: Annotated[int, Unit("steps")] = Field(ge=1, description="Number of steps of the phase's student.")

    draws_noise: ClassVar[bool] = True

    @property
    def cost(self) -> float:
        return TRAINED + 2

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        start, end = batch.times[:, 0], batch.times[:, -1]
        place = draws.integers(0, self.steps).to(start.dtype)
        t, m, s = (start + (end - start) * (place + part) / self.steps for part in (0, 0.5, 1))
        x_t = interpolate(batch.x[:, -1], draws.normal(), t)
        return compared_losses.progressive_loss(models.owned[self.title], x_t, t, m, s, batch.label)


class AnnealedReflow(BaseTerm):
    """SlimFlow's annealing reflow: from independent noise to the trajectories' own (arXiv 2407.12718, Eq. 9).

    Velocity matching on the line from the sample to sqrt(1 - b^2) noise + b other noise, with b falling from 1 to 0
    over `annealing` of the training: a 1-rectified flow becomes a 2-rectified one.
    """

    loss: Literal["annealed-reflow"] = "annealed-reflow"
    annealing: float = Field(
        default=0.5, gt=0, le=1, description="Fraction of the training over which other noise fades out."
    )

    draws_noise: ClassVar[bool] = True

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        amount = match_dims((1 - draws.progress / self.annealing).clamp(min=0), batch.noise)
        noise = (1 - amount**2).sqrt() * batch.noise + amount * draws.normal()
        t = draws.times(batch.times[:, -1], batch.times[:, 0], "uniform")
        x_t = interpolate(batch.x[:, -1], noise, t)
        return losses.velocity_loss(x_t, t, noise - batch.x[:, -1], batch.label)


class Guided(Owner):
    """SlimFlow's flow-guided distillation, from fresh noise: the guide is the student as it was when the phase began.

    That is the 2-rectified flow that annealing reflow left; SlimFlow's own code takes its average.
    """

    loss: Literal["guided"] = "guided"

    draws_noise: ClassVar[bool] = True

    @property
    def cost(self) -> float:
        return TRAINED + 1

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        guide = models.owned[self.title]
        low, high = (torch.full_like(batch.times[:, 0], time) for time in GUIDE_TIMES)
        u = draws.times(low, high, "uniform")
        start, end = batch.times[:, 0], batch.times[:, -1]
        x = match_dims(start, batch.noise) * draws.normal()

        def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            found: Tensor = guide(x, t, t, label)
            return found

        return compared_losses.guided_loss(velocity, x, start, end, u, batch.label)


class TrajectoryConsistency(BaseTerm):
    """CTM's soft consistency over stored states: t, u and s as soft consistency takes them, compared at the end."""

    loss: Literal["trajectory-consistency"] = "trajectory-consistency"
    distance: DistanceConfig = L2

    @property
    def cost(self) -> float:
        return TRAINED + 4  # three calls of the average, and a gradient through one of them

    @property
    def needs_ema(self) -> bool:
        return True

    @property
    def num_states(self) -> int:
        return 1

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        (x_t, t), (x_u, u), (_, s) = draw_three(batch, draws)
        end = batch.times[:, -1]
        return compared_losses.trajectory_consistency_loss(x_t, t, x_u, u, s, end, batch.label, self.distance)


class Shortcut(BaseTerm):
    """Shortcut models' self-consistency, at steps of 1 / 2^k above 1 / `max_steps`.

    The teacher's samples are the data; states are on lines from them to fresh noise.
    """

    loss: Literal["shortcut"] = "shortcut"
    max_steps: Annotated[int, Unit("steps")] = Field(
        default=128, ge=2, description="Number of the shortest steps that a flow is divided into."
    )

    draws_noise: ClassVar[bool] = True

    @property
    def cost(self) -> float:
        return TRAINED + 2

    @property
    def needs_ema(self) -> bool:
        return True

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        start, end = batch.times[:, 0], batch.times[:, -1]
        count = 2 ** draws.integers(0, self.max_steps.bit_length() - 1)
        place = draws.integers(0, count).to(start.dtype)
        t, m, s = (start + (end - start) * (place + part) / count for part in (0, 0.5, 1))
        x_t = interpolate(batch.x[:, -1], draws.normal(), t)
        return compared_losses.shortcut_loss(x_t, t, m, s, batch.label)


class ScoreDistillation(BaseTerm):
    """Score distillation with the live teacher, in FlowDreamer's form: the sample's own noise."""

    loss: Literal["score-distillation"] = "score-distillation"

    @property
    def cost(self) -> float:
        return TRAINED + 1

    @property
    def needs_teacher(self) -> bool:
        return True

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        assert models.teacher is not None
        u = _noise_level(batch, draws)
        times = batch.times[:, 0], batch.times[:, -1]
        return compared_losses.score_distillation_loss(models.teacher, batch.noise, *times, u, batch.label)


class Adversarial(TrainingOwner):
    """A discriminator on the teacher's features tells the student's samples from real ones, noised up to `max_time`.

    The real ones are the teacher's stored samples, or `images`: a folder, a file or a name, as `train` takes them.
    """

    loss: Literal["adversarial"] = "adversarial"
    max_time: float = Field(default=0.6, gt=0, le=1, description="Largest time to which samples are noised.")
    images: PathText | None = Field(
        default=None, description="Images to tell samples from; by default the teacher's stored samples."
    )

    draws_noise: ClassVar[bool] = True

    @property
    def cost(self) -> float:
        return TRAINED + 2  # three passes of an encoder, one with a gradient: each half a network

    def make_network(self, teacher: Network | None, student: Network) -> nn.Module:
        images = None if self.images is None else load_images(self.images)
        if images is not None and images.shape != student.config.shape:
            raise BadInput(
                f"{self.title}: wanted images of {list(student.config.shape)} as the student's; those of {self.images} "
                f"are {list(images.shape)}"
            )
        return Discriminator(_required(teacher, self.title), images)

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        judge, x, times = models.owned[self.title], batch.x, batch.times
        assert isinstance(judge, Discriminator)
        u = self.max_time * draws.uniform().to(times.dtype)
        real, real_label = x[:, -1], batch.label
        if judge.images is not None:
            real, image_label = judge.real(draws.integers(0, len(judge.images)))
            real_label = None if batch.label is None else image_label
        start, end = times[:, 0], times[:, -1]
        return compared_losses.adversarial_loss(
            judge, held(judge), x[:, 0], start, end, real, draws.normal(), u, batch.label, real_label
        )


class DistributionMatching(TrainingOwner):
    """DMD's two scores: the live teacher's, and that of the student's samples, which starts as the teacher's.

    DMD2 gives the score five updates to one of the student: the phase's `student_every`.
    """

    loss: Literal["distribution-matching"] = "distribution-matching"

    draws_noise: ClassVar[bool] = True

    @property
    def cost(self) -> float:
        return 2 * TRAINED + 2

    @property
    def needs_teacher(self) -> bool:
        return True

    def make_network(self, teacher: Network | None, student: Network) -> nn.Module:
        return copy.deepcopy(_required(teacher, self.title)).train().requires_grad_(True)

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        assert models.teacher is not None
        network = models.owned[self.title]
        held_network = held(network)

        def score(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            velocity: Tensor = network(x, t, None, label)
            return velocity

        def held_score(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            return held_network(x, t, None, label)

        u, times = _noise_level(batch, draws), (batch.times[:, 0], batch.times[:, -1])
        return compared_losses.distribution_matching_loss(
            models.teacher, score, held_score, batch.x[:, 0], *times, draws.normal(), u, batch.label
        )


def _noise_level(batch: TrajectoryBatch, draws: TermDraws) -> Tensor:
    low, high = (torch.full_like(batch.times[:, 0], time) for time in SCORE_TIMES)
    return draws.times(low, high, "uniform")


def _required(teacher: Network | None, title: str) -> FlowNetwork:
    if teacher is None:
        raise BadInput(f"{title} starts from the teacher's network, and this teacher has none: it is a function")
    if not isinstance(teacher, FlowNetwork):
        raise BadInput(f"{title} starts from a network of this program, and the teacher's is of diffusers")
    return teacher
