"""Counter-based randomness: (seed, stream, index) names the same numbers on every machine.

Philox4x64 (Salmon et al. 2011) needs no state to be carried from one record to the next, so any record
can be drawn alone, in any order, by any worker, and drawn again years later.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Stream(IntEnum):
    """Independent sequences of one seed; the numbers are part of every data set's identity."""

    NOISE = 0
    LABEL = 1
    TIMES = 2
    # Evaluation draws apart from training, so that no seed can score a student on noise it was trained on.
    EVALUATION_NOISE = 3
    EVALUATION_LABEL = 4
    TRAINING_NOISE = 5  # of a teacher's training on images


def generator(seed: int, stream: Stream, index: int) -> np.random.Generator:
    """The generator of record `index`: Philox(key=[seed, stream], counter=[0, 0, 0, index])."""
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, 0, 0, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw_noise(
    seed: int, indices: Sequence[int], shape: tuple[int, ...], stream: Stream = Stream.NOISE
) -> NDArray[np.float32]:
    """Standard normal noise [len(indices), *shape], float32; row i depends on `indices[i]` alone."""
    rows = [generator(seed, stream, i).standard_normal(shape, dtype=np.float32) for i in indices]
    return np.stack(rows) if rows else np.empty((0, *shape), np.float32)


def draw_labels(
    seed: int,
    indices: Sequence[int],
    num_classes: int,
    stream: Stream = Stream.LABEL,
    classes: Sequence[int] | None = None,
) -> NDArray[np.int64]:
    """Uniform class labels [len(indices)], int64 in [0, num_classes) or of `classes`; -1 for an unconditional flow."""
    if num_classes == 0:
        return np.full(len(indices), -1, np.int64)
    drawn_from = np.array(range(num_classes) if classes is None else classes, np.int64)
    return drawn_from[[int(generator(seed, stream, i).integers(len(drawn_from))) for i in indices]]


def take_turns(indices: Sequence[int], num_labels: int) -> NDArray[np.int64]:
    """Labels [len(indices)] of prompts, which take turns, so that each is drawn equally often."""
    return np.array(indices, np.int64) % num_labels


def draw_start(
    seed: int,
    indices: Sequence[int],
    shape: tuple[int, ...],
    num_classes: int,
    device: torch.device,
    classes: Sequence[int] | None = None,
    in_turn: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What samples to look at or measure start from, by `indices`, apart from the noise of any training data.

    Returns standard normal noise float32 [B, *shape] and labels int64 [B] (None without classes) on `device`. Labels
    are of `classes`, by default of all; `in_turn` they are those of prompts.
    """
    noise = torch.from_numpy(draw_noise(seed, indices, shape, Stream.EVALUATION_NOISE)).to(device)
    if not num_classes:
        return noise, None
    label = start_labels(seed, indices, num_classes, classes, in_turn)
    return noise, torch.from_numpy(label).to(device)


def start_labels(
    seed: int, indices: Sequence[int], num_classes: int, classes: Sequence[int] | None = None, in_turn: bool = False
) -> NDArray[np.int64]:
    """The labels of `draw_start`, int64 [len(indices)]."""
    if in_turn:
        return take_turns(indices, num_classes)
    return draw_labels(seed, indices, num_classes, Stream.EVALUATION_LABEL, classes)
