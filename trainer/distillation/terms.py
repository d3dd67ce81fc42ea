"""The terms of a recipe: each a loss with its weight, times and distance, as configuration that can be called."""

import copy
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from pipeline.flow.path import interpolate, match_dims
from pipeline.networks import Network
from trainer.data.stream import ImageBatch, TrajectoryBatch
from trainer.distillation import losses
from trainer.distillation.companions import Weighting
from trainer.distillation.distance import DistanceConfig
from trainer.distillation.models import Models
from trainer.distillation.queries import Loss
from trainer.distillation.random_draws import TermDraws
from trainer.distillation.time_sampling import TIME_SAMPLERS, TimeSampler

L2 = DistanceConfig()
# The sentences of keys that several terms have.
TIMES = "Distribution of the times."
UNTIL = "Where a jump ends: at any time after t, or at the end of the flow."
WARM_UP = "Fraction of the training over which the derivative is warmed up."
TARGET = "The network on the other side: the student itself, without a gradient (stopped), or its average."
MIN_STEP = 1e-3  # the shortest |t - s| that inverse-square weighting divides by
# The cost of an evaluation with its backward pass, and with a forward-mode derivative too, in plain evaluations.
BACKWARD = 2.0
TRAINED, DERIVED = 1 + BACKWARD, 6.0
ALONG = TRAINED + 2  # with a forward-mode derivative beside it that is not trained through


class BaseTerm(BaseModel):
    """One loss of a phase, on every `stride`-th row of the batch from the `first`.

    A loss that reads every second row costs half, so that the others can have more steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: str
    name: str = Field(default="", description="Name in the log; empty: the loss's own.")
    weight: float = Field(default=1.0, ge=0, description="Weight of the loss in the sum.")
    first: int = Field(default=0, ge=0, description="First row of the batch that the loss reads, below the stride.")
    stride: int = Field(default=1, ge=1, description="Distance between the rows that it reads; 4 costs a quarter.")

    trains: ClassVar[Literal["student", "teacher"]] = "student"
    reads: ClassVar[Literal["trajectories", "images"]] = "trajectories"
    differentiates_forward: ClassVar[bool] = False
    draws_noise: ClassVar[bool] = False

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        if self.first >= self.stride:
            raise ValueError(f"first is a row below the stride {self.stride}, got {self.first}")
        return self

    @property
    def title(self) -> str:
        return self.name or self.loss

    @property
    def cost(self) -> float:
        """The cost of a row, in evaluations of the network without a backward pass."""
        return TRAINED

    @property
    def needs_velocities(self) -> bool:
        return False

    @property
    def needs_teacher(self) -> bool:
        return False

    @property
    def needs_ema(self) -> bool:
        return False

    @property
    def num_states(self) -> int:
        """The least number of stored states between noise and sample."""
        return 0

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Load what the loss needs for samples of `shape`, before training; raises `BadInput`."""
        distance: DistanceConfig = getattr(self, "distance", L2)
        distance.prepare(shape)

    @property
    def rows(self) -> slice:
        """The rows of a batch that the loss reads."""
        return slice(self.first, None, self.stride)

    def compute(self, models: Models, batch: Any, draws: TermDraws) -> Loss:
        """The loss of every row, [B], of a batch of the kind that it `reads`, to which each loss narrows the type."""
        raise NotImplementedError


class Owner(BaseTerm):
    """A loss that owns a network: a copy of the student as a phase begins, unless it is a `TrainingOwner`."""

    def make_network(self, teacher: Network | None, student: Network) -> nn.Module:
        """The network as it starts.

        Raises:
            BadInput: it takes the teacher's network, and the teacher has none.
        """
        return copy.deepcopy(student).eval().requires_grad_(False)


class TrainingOwner(Owner):
    """A loss that trains a network of its own, at the rate `own_lr`, by a loss of its own: its values are [2, B]."""

    own_lr: float = Field(default=1e-3, gt=0, description="Learning rate of the loss's own network.")


class Output(BaseTerm):
    """Eq. 8, from the noise to the sample."""

    loss: Literal["output"] = "output"
    distance: DistanceConfig = L2

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        x, times = batch.x, batch.times
        return losses.output_loss(x[:, 0], times[:, 0], x[:, -1], times[:, -1], batch.label, self.distance)


class Trajectory(BaseTerm):
    """Regression on stored pairs: from any state but the last to any after it."""

    loss: Literal["trajectory"] = "trajectory"
    distance: DistanceConfig = L2

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        last = batch.times.shape[1] - 1
        i = draws.integers(0, last)
        j = draws.integers(i + 1, last + 1)
        (x_t, t), (x_s, s) = batch.stored(i), batch.stored(j)
        return losses.output_loss(x_t, t, x_s, s, batch.label, self.distance)


class VelocityTerm(BaseTerm):
    """Eq. 9: at a stored state with the teacher's own velocity, or on the line from sample to noise with theirs."""

    loss: Literal["velocity"] = "velocity"
    at: Literal["states", "line"] = Field(
        default="states", description="Where: at stored states, or on the line from sample to noise."
    )
    times: TimeSampler | None = Field(default=None, description="Distribution of the times on the line: uniform.")
    distance: DistanceConfig = L2

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.at == "states" and self.times is not None:
            raise ValueError("velocity at states is taken at the stored times: leave times")
        if self.distance.is_perceptual:
            raise ValueError("velocities are no images: give a distance l2 or huber")
        return self

    @property
    def needs_velocities(self) -> bool:
        return self.at == "states"

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        if self.at == "states":
            assert batch.velocity is not None
            i = draws.integers(0, batch.times.shape[1])
            (x_t, t), velocity = batch.stored(i), batch.velocity[batch.each, i]
        else:
            t = draws.times(batch.times[:, -1], batch.times[:, 0], self.times or "uniform")
            x_t, velocity = interpolate(batch.x[:, -1], batch.noise, t), batch.noise - batch.x[:, -1]
        return losses.velocity_loss(x_t, t, velocity, batch.label, self.distance)


class Derivative(BaseTerm):
    """The slope of G in s against the trajectory's mean velocity: of G(x_1, 1, s), Table 1's form, or at any t.

    The slope is a forward-mode derivative. The mean velocity is (x_start - x_end) / (t_start - t_end), which is noise -
    sample where the flow runs from 1 to 0. On the `line` from noise to sample it is SCoT's Eq. 2: of G(x_t, t, s) at
    any t, and at any s after it.
    """

    loss: Literal["derivative"] = "derivative"
    times: TimeSampler = Field(default="uniform", description=TIMES)
    # Left out of what is written where it is the noise: runs from before the choice resume.
    at: Literal["noise", "line"] = Field(
        default="noise",
        exclude_if=lambda at: at == "noise",
        description="Where the jump starts: the noise, or any state on the line from noise to sample.",
    )

    differentiates_forward: ClassVar[bool] = True

    @property
    def cost(self) -> float:
        return DERIVED

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        start, end, x_t = batch.times[:, 0], batch.times[:, -1], batch.x[:, 0]
        velocity = (x_t - batch.x[:, -1]) / match_dims(start - end, x_t)
        t = start
        if self.at == "line":
            t = draws.times(end, start, self.times)
            x_t = batch.x[:, -1] + match_dims(t - end, x_t) * velocity
        return losses.derivative_loss(x_t, t, draws.times(end, t, self.times), velocity, batch.label)


class _TwoTimes(BaseTerm):
    """A loss over (t, s), s uniform from the end of the flow to t.

    t is a stored time, or drawn by a sampler; the state there is then interpolated between the stored ones.
    """

    times: TimeSampler | Literal["stored"] = Field(
        default="stored", description="Times t: the stored ones, or drawn, where the states are then interpolated."
    )

    @property
    def needs_velocities(self) -> bool:
        return self.times != "stored"

    def draw_times(self, batch: TrajectoryBatch, draws: TermDraws) -> tuple[Tensor, Tensor, Tensor]:
        """x_t [B, C, H, W], t [B] and s [B], s <= t."""
        if self.times == "stored":
            x_t, t = batch.stored(draws.integers(0, batch.times.shape[1] - 1))
        else:
            t = draws.times(batch.times[:, -1], batch.times[:, 0], self.times)
            x_t = batch.at(t)
        return x_t, t, draws.times(batch.times[:, -1], t, "uniform")


class Consistency(_TwoTimes):
    """Eq. 10 by way of the midpoint m = (t + s) / 2: the student's own state there, or the teacher's.

    `weighting` inverse-square divides by (t - s)^2, which compares mean velocities, as shortcut models do.
    """

    loss: Literal["consistency"] = "consistency"
    midpoint: Literal["student", "teacher"] = Field(default="student", description="Whose state at the midpoint.")
    target: Literal["live", "stopped", "ema"] = Field(default="live", description=TARGET)
    weighting: Literal["none", "inverse-square"] = Field(
        default="none", description="Divide by (t - s)^2, which compares mean velocities, or not."
    )
    distance: DistanceConfig = L2

    @property
    def cost(self) -> float:
        others = 2 if self.midpoint == "student" else 1
        return TRAINED + others * (TRAINED if self.target == "live" else 1)

    @property
    def needs_velocities(self) -> bool:
        return self.times != "stored" or self.midpoint == "teacher"

    @property
    def needs_ema(self) -> bool:
        return self.target == "ema"

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        x_t, t, s = self.draw_times(batch, draws)
        m = (t + s) / 2
        x_m = None if self.midpoint == "student" else batch.at(m)
        values = yield from losses.consistency_loss(x_t, t, x_m, m, s, batch.label, self.target, self.distance)
        return values / (t - s).clamp(min=MIN_STEP) ** 2 if self.weighting == "inverse-square" else values


def draw_three(
    batch: TrajectoryBatch, draws: TermDraws
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Stored states and times at t, u and s: t any but the last, s any after it, u any after t up to s itself."""
    last = batch.times.shape[1] - 1
    i = draws.integers(0, last)
    j = draws.integers(i + 1, last + 1)
    k = draws.integers(i + 1, j + 1)
    return batch.stored(i), batch.stored(k), batch.stored(j)


class SoftConsistency(BaseTerm):
    """Eq. 11 over stored states: t any but the last, s any after it, u any after t up to s itself."""

    loss: Literal["soft-consistency"] = "soft-consistency"
    target: Literal["stopped", "ema"] = Field(default="stopped", description=TARGET)
    distance: DistanceConfig = L2

    @property
    def cost(self) -> float:
        return TRAINED + 1

    @property
    def needs_ema(self) -> bool:
        return self.target == "ema"

    @property
    def num_states(self) -> int:
        return 1

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        (x_t, t), (x_u, u), (_, s) = draw_three(batch, draws)
        return losses.consistency_loss(x_t, t, x_u, u, s, batch.label, self.target, self.distance)


class Lagrangian(_TwoTimes):
    """The Lagrangian flow-map loss, with the live teacher's velocity where the student arrives, or the student's."""

    loss: Literal["lagrangian"] = "lagrangian"
    # Left out of what is written where it is the teacher: runs from before the choice resume.
    target: Literal["teacher", "student"] = Field(
        default="teacher",
        exclude_if=lambda target: target == "teacher",
        description="Whose velocity at the state where the student arrives.",
    )

    differentiates_forward: ClassVar[bool] = True

    @property
    def cost(self) -> float:
        return DERIVED + 1  # the teacher, or the student without a backward pass

    @property
    def needs_teacher(self) -> bool:
        return self.target == "teacher"

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        x_t, t, s = self.draw_times(batch, draws)
        velocity = models.teacher if self.needs_teacher else None
        return losses.lagrangian_loss(velocity, x_t, t, s, batch.label)


class _AlongStates(BaseTerm):
    """A loss by the derivative along the stored velocity, at a stored state but the last; s is `any` time after it.

    With `until` end s is the end of the flow.
    """

    until: Literal["any", "end"] = Field(default="any", description=UNTIL)

    differentiates_forward: ClassVar[bool] = True

    @property
    def cost(self) -> float:
        return ALONG

    @property
    def needs_velocities(self) -> bool:
        return True

    def draw_state(self, batch: TrajectoryBatch, draws: TermDraws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_t [B, C, H, W], t [B], s [B] and the teacher's velocity at x_t [B, C, H, W]."""
        assert batch.velocity is not None
        i = draws.integers(0, batch.times.shape[1] - 1)
        (x_t, t), end = batch.stored(i), batch.times[:, -1]
        s = end if self.until == "end" else draws.times(end, t, "uniform")
        return x_t, t, s, batch.velocity[batch.each, i]


class Eulerian(_AlongStates):
    """Eulerian map distillation on stored states; the derivative is warmed up over `warmup` of the training."""

    loss: Literal["eulerian"] = "eulerian"
    normalise: bool = Field(default=True, description="Scale the derivative to a bounded norm.")
    warmup: float = Field(default=0.1, ge=0, le=1, description=WARM_UP)

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        x_t, t, s, velocity = self.draw_state(batch, draws)
        rate = _warm_up(draws, self.warmup)
        return losses.eulerian_loss(x_t, t, s, velocity, batch.label, rate, self.normalise)


class ContinuousConsistency(_AlongStates, TrainingOwner):
    """Consistency in continuous time on stored states, with every stabilisation of sCM: what it owns is the weighting.

    The derivative is warmed up over `warmup` of the training.
    """

    loss: Literal["continuous-consistency"] = "continuous-consistency"
    until: Literal["any", "end"] = Field(default="end", description=UNTIL)
    warmup: float = Field(default=0.1, ge=0, le=1, description=WARM_UP)

    def make_network(self, teacher: Network | None, student: Network) -> nn.Module:
        return Weighting()

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        x_t, t, s, velocity = self.draw_state(batch, draws)
        log_weight, rate = models.owned[self.title](t), _warm_up(draws, self.warmup)
        error = yield from losses.eulerian_loss(x_t, t, s, velocity, batch.label, rate)
        return losses.weighted_loss(error, log_weight)


def _warm_up(draws: TermDraws, warmup: float) -> Tensor:
    """How much of a derivative counts, [B], from 0 to 1 over the part `warmup` of the training."""
    return (draws.progress / warmup).clamp(max=1) if warmup else torch.ones_like(draws.progress)


class MeanFlow(_AlongStates):
    """MeanFlow's identity on stored states."""

    loss: Literal["meanflow"] = "meanflow"

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        x_t, t, s, velocity = self.draw_state(batch, draws)
        return losses.meanflow_loss(x_t, t, s, velocity, batch.label)


class FlowMatching(BaseTerm):
    """A teacher on images: the velocity of straight lines from noise to data; labels dropped as its network says."""

    loss: Literal["flow-matching"] = "flow-matching"
    times: TimeSampler = Field(default="uniform", description=TIMES)

    trains: ClassVar[Literal["student", "teacher"]] = "teacher"
    reads: ClassVar[Literal["trajectories", "images"]] = "images"
    draws_noise: ClassVar[bool] = True

    def compute(self, models: Models, batch: ImageBatch, draws: TermDraws) -> Loss:
        t = TIME_SAMPLERS[self.times](draws.strata)
        label = _dropped(models.network, batch.label, draws)
        return losses.flow_matching_loss(batch.data, draws.normal(), t, label)


class Reflow(BaseTerm):
    """A straighter teacher: flow matching on the noise and samples of another teacher's trajectories."""

    loss: Literal["reflow"] = "reflow"
    times: TimeSampler = Field(default="uniform", description=TIMES)

    trains: ClassVar[Literal["student", "teacher"]] = "teacher"

    def compute(self, models: Models, batch: TrajectoryBatch, draws: TermDraws) -> Loss:
        t = TIME_SAMPLERS[self.times](draws.strata)
        label = _dropped(models.network, batch.label, draws)
        return losses.flow_matching_loss(batch.x[:, -1], batch.noise, t, label)


def _dropped(network: Network, label: Tensor | None, draws: TermDraws) -> Tensor | None:
    """`label` [B], each replaced by -1 (none) with the network's probability of label dropout."""
    if label is None or not network.config.label_dropout:
        return label
    return label.masked_fill(draws.uniform() < network.config.label_dropout, -1)
