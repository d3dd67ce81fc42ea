"""What a few trajectories say of the flow that they are of: does it turn noise into data, and as a flow does?"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import median_low

import torch
from torch import Tensor

from pipeline.flow.path import straightness
from pipeline.flow.solver import ENDS
from pipeline.teachers.teacher import Decode

# With the wrong direction or scale, most values leave the range of the data.
MIN_SHARE = 0.9
MARGIN = 0.05  # of the range, on either side
MIN_SPREAD = 0.005  # of the range: samples that differ less are one sample
SPREAD_OF_DATA = 0.1  # in units of the noise: samples that differ by so much have not collapsed, whatever their range
MIN_RESPONSE = 0.05  # of the noise: how much the velocity, which is noise less data, differs by sample
MIN_CORRELATION = 0.1  # of neighbours in pictures; in noise, and so in what an untrained network makes of it, it is 0
MAX_REVERSAL = 0.2  # see `Motion.reversal`: flows have less than 0, reversed ones about 1
NEAR = 0.1  # of the times: the ends at which a reversal is measured
MAX_SPEED = 3.0  # in units of what a flow from the noise to the samples needs at most; strong guidance makes 2
MIN_ESTIMATES = 0.5  # the share of estimates of the data in its range, below which the model lacks a clip
TINY = 1e-30
ENOUGH = 8  # samples, to tell how far data lie from their mean
MAX_OVERSHOOT = 1.0  # see `_overshoot`: flows have at most 1, and near the noise about 0.1
TIME_HINT = (
    "does its time run from 1, noise, to 0, data, and its velocity point from data to noise? "
    "One that goes from 0, noise, to 1, data, is -v(x, 1 - t) here"
)
OVERSHOOT_HINT = (
    "a model that predicts noise overshoots near t = 1: clip its estimate of the data (docs/how-to/teacher.md, "
    '"A model that predicts noise")'
)


@dataclass(frozen=True)
class Paths:
    """Trajectories of a flow at the `times` [T] from its start to its end."""

    noise: Tensor  # [B, *shape]
    states: Tensor  # [B, T, *shape]
    velocities: Tensor | None  # [B, T, *shape]; None if they are unknown
    times: Tensor
    label: Tensor | None = None  # [B], of a flow with classes


@dataclass(frozen=True)
class Statistics:
    """Statistics of an array [B, ...]: moments, the share of values in the data range, correlation of neighbours.

    `least` and `largest` bound 98 % of the values.
    """

    mean: float
    std: float
    least: float
    largest: float
    share: float
    correlation: float | None  # of horizontally adjacent pixels; None if the arrays are not images


@dataclass(frozen=True)
class Motion:
    """What the velocities along some paths are like."""

    times: tuple[float, ...]
    speeds: tuple[float, ...]  # the RMS of the velocity at each time
    highest: float  # what the RMS of a velocity, noise less data, is at most: that of the noise and of the samples
    straightness: float
    response: float  # how much the velocity differs by sample, in units of the noise's spread, where it does most
    reversal: float  # see `_reversal`
    estimates: float  # the share of values in the data range, of x_t - t v halfway
    overshoot: float  # see `_overshoot`

    @property
    def overshoots(self) -> bool:
        """Whether the estimates of the data near the noise lie further out than data do."""
        return self.overshoot > MAX_OVERSHOOT

    @property
    def steepness(self) -> str:
        """What to do about a velocity that is huge at an end of the flow; empty if it is at neither."""
        for end, times, speeds in ((0, self.times, self.speeds), (-1, self.times[::-1], self.speeds[::-1])):
            num_fast = next(i for i, speed in enumerate((*speeds, 0)) if speed <= MAX_SPEED * self.highest)
            if 0 < num_fast < len(times):
                return (
                    f"the velocity is huge at t = {times[0]:.3g} (RMS {speeds[0]:.3g}; noise less data has about "
                    f"{self.highest:.2g} at most): {ENDS[end]}, such as {times[num_fast]:.2g}"
                    + (f"; or {OVERSHOOT_HINT}" if end == 0 and self.overshoots else "")
                    + "; or its time runs from 0, noise, to 1, data, and it is -v(x, 1 - t) here"
                )
        return ""

    @property
    def warning(self) -> str:
        """What of the paths is unlike a flow's, though their ends may be right; empty if nothing."""
        if self.steepness or self.straightness <= self.highest**2:
            return self.steepness
        fastest = max(range(len(self.speeds)), key=self.speeds.__getitem__)
        return (
            f"the straightness is {self.straightness:.3g}, and of noise less data at most {self.highest**2:.2g}; the "
            f"velocity is largest at t = {self.times[fastest]:.2g} (RMS {self.speeds[fastest]:.3g}): few steps will "
            "not follow such paths; is it dx/dt of x = (1 - t) data + t noise there?"
        )


@dataclass(frozen=True)
class Verdict:
    """Whether a few samples of a flow may be data, and its paths those of a flow."""

    data_range: tuple[float, float]
    noise: Statistics
    data: Statistics
    samples: Tensor  # [B, *shape] on the CPU, decoded where they are latents
    spread: float  # see `_spread`, of the samples
    motion: Motion | None  # None where the velocities are unknown
    is_network: bool  # whether a network drew the samples; a function's may be no pictures at all

    @cached_property
    def complaint(self) -> str:
        """Why the samples cannot be data, and what to look for; empty if they may be."""
        return next(self._complaints(), "")

    def _complaints(self) -> Iterator[str]:
        low, high = self.data_range
        if SPREAD_OF_DATA < self.spread < MIN_SPREAD * (high - low):
            yield f"wanted samples that fill [{low:g}, {high:g}]; {self._lie}: {self._declare}"
        elif self.spread < MIN_SPREAD * (high - low):
            yield (
                f"wanted samples that differ; their standard deviation is {self.spread:.1e}: "
                "the model has collapsed to one sample, or its velocity does not depend on x"
            )
        if self.motion is not None and self.motion.response < MIN_RESPONSE:
            yield (
                "wanted a velocity that takes the noise away; it is the same for all noise: is the network trained, "
                "and were its weights loaded?"
            )
        if self.is_reversed:
            yield (
                f"wanted a velocity that points from data to noise; at an end it points the other way: {TIME_HINT}"
                f"{self._or_overshoots}"
            )
        if self.is_network and self.data.correlation is not None and self.is_white:
            yield (
                f"wanted pictures; neighbouring pixels are as unlike as in noise (correlation "
                f"{self.data.correlation:.2f}): is the network trained, and were its weights loaded?"
            )
        if self.data.share < MIN_SHARE:
            yield (
                f"wanted at least {MIN_SHARE:.0%} of the values in [{low:g}, {high:g}]; there are {self.data.share:.0%}"
                f": {self._range_hint}"
            )

    @property
    def warning(self) -> str:
        """What of the paths is unlike a flow's; empty if nothing is known."""
        return "" if self.motion is None else self.motion.warning

    @property
    def is_reversed(self) -> bool:
        """Whether the time or the sign of the velocity is turned round; one that is huge at an end only looks so."""
        return self.motion is not None and not self.motion.steepness and self.motion.reversal > MAX_REVERSAL

    @property
    def is_white(self) -> bool:
        """Whether neighbours are as uncorrelated as those of the noise, as far as there are any."""
        return abs((self.data.correlation or 0) - (self.noise.correlation or 0)) < MIN_CORRELATION

    @property
    def _range_hint(self) -> str:
        low, high = self.data_range
        if self.motion is not None and self.motion.steepness:
            return f"{self._lie}, and {self.motion.steepness}"
        if self.data.std > 0.9 and abs(self.data.mean) < self.data.std / 2 and self.is_white:
            return f"{self._lie}, about as widely as noise or more: {TIME_HINT}; {self._declare}"
        if self.motion is not None and self.motion.overshoots:
            return (
                f"{self._lie}; its estimates of the data, x - t v, lie further out on the way: {OVERSHOOT_HINT}; "
                f"or {self._declare}"
            )
        if self.data.largest - self.data.least > 2 * (high - low):
            return f"{self._lie}: {self._declare}"
        if self.motion is not None and self.motion.estimates < MIN_ESTIMATES:
            return (
                "its estimates of the data, x - t v, leave the range on the way: does its own sampler clip them "
                "(clip_denoised)? Then clip them in its velocity too: v = (x - (x - t v).clamp(low, high)) / t"
            )
        return (
            f"{self._lie}: {self._declare}; else is the velocity that of x = (1 - t) data + t noise, "
            f"with noise of standard deviation 1? Or {OVERSHOOT_HINT}"
        )

    @property
    def _or_overshoots(self) -> str:
        return f"; or {OVERSHOOT_HINT}" if self.motion is not None and self.motion.overshoots else ""

    @property
    def _lie(self) -> str:
        """Where the samples lie."""
        return f"most lie in [{self.data.least:.3g}, {self.data.largest:.3g}]"

    @property
    def _declare(self) -> str:
        """What to do if the samples are right and the range is not."""
        least, largest = f"{self.data.least:.2g}", f"{self.data.largest:.2g}"
        return f"if its data do too, give its Teacher about data_range=({least}, {largest})"


def judge(
    paths: Paths, data_range: tuple[float, float], decode: Decode | None = None, is_network: bool = False
) -> Verdict:
    """The verdict on `paths`, whose samples are data in `data_range`, once they are decoded where they are latents."""
    decode = decode or (lambda x: x)
    samples = decode(paths.states[:, -1]).cpu()
    return Verdict(
        data_range=data_range,
        noise=_statistics(decode(paths.noise).cpu(), data_range),
        data=_statistics(samples, data_range),
        samples=samples,
        spread=_spread(paths.states[:, -1], paths.label),
        motion=None if paths.velocities is None else _motion(paths, paths.velocities, data_range, decode),
        is_network=is_network,
    )


def _motion(paths: Paths, velocities: Tensor, data_range: tuple[float, float], decode: Decode) -> Motion:
    times, middle = paths.times.tolist(), len(paths.times) // 2
    speeds = [_rms(v) for v in velocities.unbind(1)]
    highest = _rms(paths.noise) + _rms(paths.states[:, -1])
    halfway = paths.states[:, middle] - times[middle] * velocities[:, middle]
    return Motion(
        times=tuple(times),
        speeds=tuple(speeds),
        highest=highest,
        straightness=straightness(paths.states.cpu(), velocities.cpu(), paths.times.cpu().expand(len(velocities), -1)),
        response=max(_spread(v, paths.label) for v in velocities.unbind(1)) / _spread(paths.noise, paths.label),
        reversal=_reversal(paths, velocities),
        estimates=_statistics(decode(halfway).cpu(), data_range).share,
        overshoot=_overshoot(paths, velocities),
    )


def _reversal(paths: Paths, velocities: Tensor) -> float:
    """How much the estimates of data and noise near the ends of the paths follow the states that are there.

    x - t v estimates the data, and x + (1 - t) v the noise. A flow brings its samples at least as near to their noise
    as the data of its training were to theirs: it does not raise the transport cost (Liu et al. 2022, arXiv
    2209.03003). So the first estimates of the data follow the noise at most as the sample does, and the last estimates
    of the noise follow the sample at most as the noise does: more than 0, in units of the state's square, is a
    contradiction. In a flow that is turned round, the estimates are about twice the states. Medians over some of
    the times, because single velocities at the very ends are often odd.
    """
    noise, sample = paths.noise.double(), paths.states[:, -1].double()
    progress = (paths.times[0] - paths.times) / (paths.times[0] - paths.times[-1])
    first, last = [], []
    for x, v, t, at in zip(paths.states.unbind(1), velocities.unbind(1), paths.times, progress, strict=True):
        if at <= NEAR:
            first.append(_excess(x - t * v, sample, noise))
        if at >= 1 - NEAR:
            last.append(_excess(x + (1 - t) * v, noise, sample))
    return max(median_low(first), median_low(last))


def _overshoot(paths: Paths, velocities: Tensor) -> float:
    """How far out, in units of the samples, the estimates of the data x - t v lie in the first part of the paths.

    They are means of the data that may follow, E[data | x_t], and means vary no more than what they are of. A model
    that predicts noise has them with its error times t/(1 - t). A median, as in `_reversal`; 0 of few samples.
    """
    sample = paths.states[:, -1].double()
    if len(sample) < ENOUGH:
        return 0.0
    center = sample.mean(0)
    near = paths.times >= paths.times[0] - NEAR * (paths.times[0] - paths.times[-1])
    estimates = [
        _rms(paths.states[:, i] - paths.times[i] * velocities[:, i] - center) for i in near.nonzero().flatten().tolist()
    ]
    return median_low(estimates) / max(_rms(sample - center), TINY)


def _excess(estimate: Tensor, other: Tensor, state: Tensor) -> float:
    """How much more `estimate` follows `state` than `other` does."""
    return float(((estimate - other) * state).sum() / state.square().sum())


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _spread(x: Tensor, label: Tensor | None) -> float:
    """RMS deviation of the arrays [B, ...] from their mean, or that of their class; of one array's values from theirs.

    Classes with one array do not count where others have more.
    """
    groups = [x] if label is None else [x[label == one] for one in set(label.tolist())]
    groups = [group for group in groups if len(group) > 1] or [x]
    away = [(group - group.mean(0 if len(group) > 1 else None)).flatten() for group in groups]
    return _rms(torch.cat(away))


def _statistics(x: Tensor, data_range: tuple[float, float]) -> Statistics:
    x = x.double()
    low, high = data_range
    margin = MARGIN * (high - low)
    share = ((x >= low - margin) & (x <= high + margin)).double().mean()
    correlation = None
    if x.ndim == 4 and x.shape[-1] > 1:
        pairs = torch.stack([x[..., :-1].flatten(), x[..., 1:].flatten()])
        correlation = float(torch.corrcoef(pairs)[0, 1])
    ordered = x.flatten().sort().values
    least, largest = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
    return Statistics(float(x.mean()), float(x.std()), float(least), float(largest), float(share), correlation)
