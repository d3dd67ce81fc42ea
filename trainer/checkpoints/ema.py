"""Exponential moving averages of a network's weights, and the averages of other widths made from their snapshots.

The power-function averages are those of Karras et al. 2024 (arXiv 2312.02696): after n images they have weighed the
weights at image t by the profile p_n(t) = (gamma + 1) t^gamma / n^(gamma + 1), 0 <= t <= n (Eq. 121), whose standard
deviation is sigma_rel n. Such a profile only stretches as the training goes on; nothing in it is tied to a length.
"""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.networks import Network, parse_config
from trainer.checkpoints.ema_config import MAX_SIGMA_REL as MAX_SIGMA_REL
from trainer.checkpoints.ema_config import EmaConfig as EmaConfig
from trainer.checkpoints.sharding import local


class Ema:
    """The average of `network` (evaluation mode, no gradients) that `config` describes; its buffers do not move."""

    def __init__(self, network: Network, config: EmaConfig) -> None:
        self.network: Network = copy.deepcopy(network).eval().requires_grad_(False)
        self.config = config

    @torch.no_grad()
    def update(self, network: Network, batch_size: int, num_images: int) -> None:
        """Average in `network` after a step of `batch_size` images, `num_images` having been seen in all."""
        pairs = zip(self.network.parameters(), network.parameters(), strict=True)
        own = [(average, value) for average, value in pairs if average is not value]  # not those beneath an adapter
        averages: list[Tensor] = [local(average) for average, _ in own]
        values: list[Tensor] = [local(value) for _, value in own]
        torch._foreach_lerp_(averages, values, 1 - beta(self.config, batch_size, num_images))


def beta(config: EmaConfig, batch_size: int, num_images: int) -> float:
    """The decay of the average in a step of `batch_size` images that ends at image `num_images`, in [0, 1).

    A power function's is (1 - batch_size / num_images)^(gamma + 1) (Eq. 127), which is 0 at the first step. The weights
    of a step then count by exactly the integral of the profile over the step's images.
    """
    if config.decay is not None:
        return config.decay
    if config.sigma_rel is not None:
        return float((1 - batch_size / num_images) ** (exponent(config.sigma_rel) + 1))
    half_life = config.half_life_images
    assert half_life is not None
    if config.ramp_up is not None:
        half_life = min(half_life, config.ramp_up * num_images)
    return float(0.5 ** (batch_size / max(half_life, 1e-8)))


def exponent(sigma_rel: float) -> float:
    """gamma of a profile of relative width `sigma_rel`: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    That is Eq. 123. With u = gamma + 2 and s = sigma_rel^-2 it is u^3 + u^2 - s u + s = 0, which has three real roots;
    the largest, the only one with gamma > 0, is given here in its trigonometric form.

    Raises:
        BadInput: `sigma_rel` is not inside (0, 0.28).
    """
    if not 0 < sigma_rel < MAX_SIGMA_REL:
        raise BadInput(f"sigma_rel: wanted a width between 0 and {MAX_SIGMA_REL}, got {sigma_rel:g}")
    s = sigma_rel**-2
    a = math.sqrt((s + 1 / 3) / 3)
    return 2 * a * math.cos(math.acos(-(2 / 27 + 4 * s / 3) / (2 * a**3)) / 3) - 7 / 3


@dataclass(frozen=True)
class Snapshot:
    """A power-function average as it was after `num_images` images, in a file of `pipeline.networks.save`."""

    num_images: float
    sigma_rel: float
    path: Path


def combination(snapshots: Sequence[tuple[float, float]], num_images: float, sigma_rel: float) -> NDArray[np.float64]:
    """The weights [snapshots] by which averages (num_images, sigma_rel) best add up to the one that is asked for.

    They make the squared distance of the profiles least (Karras et al. 2024, Section 3.2 and Algorithm 3) among weights
    that sum to 1, so constant weights are preserved.

    Raises:
        BadInput: fewer than two snapshots, a number of images that is not positive, or a width outside (0, 0.28).
    """
    return _solve(_inner_products(snapshots, num_images, sigma_rel))


def profile_error(snapshots: Sequence[tuple[float, float]], num_images: float, sigma_rel: float) -> float:
    """How far the combined profile is from the one asked for: |sum_i w_i p_i - p| / |p| in L2, from 0 to useless 1.

    It bounds a reconstruction: a weight that moved by theta(t) around any constant is wrong by at most this, times |p|,
    times |theta|.

    Raises:
        BadInput: as `combination`.
    """
    products = _inner_products(snapshots, num_images, sigma_rel)
    difference = np.append(_solve(products), -1)
    # Rounding can make the square of a perfect fit negative.
    return math.sqrt(max(difference @ products @ difference, 0) / products[-1, -1])


def reconstruct(snapshots: Sequence[Snapshot], num_images: float, sigma_rel: float) -> dict[str, Tensor]:
    """The best approximation, as an fp32 state, of the average of width `sigma_rel` after `num_images` images.

    The files are read one after the other into a sum in float64; `profile_error` bounds its error.

    Raises:
        BadInput: as `combination`; or a file is damaged, or of another network than the first.
    """
    weights = combination([(each.num_images, each.sigma_rel) for each in snapshots], num_images, sigma_rel)
    wanted = _read_header(snapshots[0].path)
    for each in snapshots[1:]:
        if _read_header(each.path) != wanted:
            raise BadInput(f"{each.path}: another network than {snapshots[0].path}; give the snapshots of one training")
    _, shapes = wanted
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for each, weight in zip(snapshots, weights, strict=True):
        with _opened(each.path) as file:
            for name, tensor in total.items():
                tensor.add_(file.get_tensor(name), alpha=float(weight))
    return {name: total.pop(name).float() for name in shapes}


def _inner_products(
    snapshots: Sequence[tuple[float, float]], num_images: float, sigma_rel: float
) -> NDArray[np.float64]:
    """<p_i, p_j> (Eq. 151), [snapshots + 1, snapshots + 1]; the last profile is the one asked for, of length 1."""
    if len(snapshots) < 2:
        raise BadInput(f"wanted at least two snapshots to make an average of, got {len(snapshots)}")
    profiles = [*snapshots, (num_images, sigma_rel)]
    if not all(0 < images < math.inf for images, _ in profiles):
        raise BadInput(f"num_images: wanted positive numbers, got {[images for images, _ in profiles]}")
    t = np.array([images / num_images for images, _ in profiles])
    gamma = np.array([exponent(width) for _, width in profiles])
    sooner, later = np.minimum.outer(t, t), np.maximum.outer(t, t)
    gamma_later = np.where(np.greater.outer(t, t), gamma[:, None], gamma)
    scale = np.multiply.outer(gamma + 1, gamma + 1) / (np.add.outer(gamma, gamma) + 1)
    products: NDArray[np.float64] = scale * (sooner / later) ** gamma_later / later
    return products


def _solve(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """The minimum of |sum_i w_i p_i - p|^2 where sum_i w_i = 1: a linear system with one Lagrange multiplier."""
    system, right = products.copy(), np.append(products[:-1, -1], 1.0)
    system[-1], system[:, -1], system[-1, -1] = 1, 1, 0
    # Not `solve`: snapshots that are alike make the system singular, and then the smallest weights are the best.
    weights: NDArray[np.float64] = np.linalg.lstsq(system, right, rcond=None)[0][:-1]
    return weights


def _read_header(path: Path) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The configuration of the network in `path` and the shapes of its tensors."""
    with _opened(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata() or {}
    try:
        return parse_config(json.loads(metadata["network"])), shapes
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: wanted a network saved by this program; its metadata is missing or wrong") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: wanted a safetensors file of a network; {error}") from error
