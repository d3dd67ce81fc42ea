"""Samples of one sampler over a range of noise, stored as chunks of features: a kill loses at most one chunk.

The images are never all in memory: each batch is turned into features as soon as it is drawn. A GPU draws a batch while
the CPU resizes the images of the one before. Once a range is scored, its chunks are deleted.
"""

import io
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval.features.clip import Clip
from eval.features.spaces import Extracted, FeatureSpace
from eval.sampling.samplers import SampleBatch, Sampler, draw_samples
from pipeline.common.errors import WorkFailed, one_line
from pipeline.common.image_grid import to_bytes
from pipeline.common.progress import Advance
from pipeline.flow.noise import start_labels
from pipeline.storage.work_folder import WorkFolder
from trainer.data.npz import open_npz
from trainer.data.pictures import UNREADABLE
from trainer.distributed import Ranks

KEPT = ("samples", "latents")  # the arrays of a chunk that only the first one keeps
CHUNK_SAMPLES = 1024  # at least; whole batches
TIMED_SECONDS = 0.25  # that a speed is measured over, at least
BRIEF_SECONDS = 1.0  # a range that takes less may be mostly preparations, and is measured again
MAX_CHUNK_BYTES = 2**30  # of its samples in memory: of larger ones a chunk has fewer


@dataclass(frozen=True)
class SamplingSettings:
    """What all rows share: the samples' shape and range, their noise, and the feature spaces, the headline's first."""

    shape: tuple[int, ...]  # of the noise
    picture_shape: tuple[int, ...]  # of a sample, decoded where samples are latents
    num_classes: int
    data_range: tuple[float, float]
    seed: int
    batch_size: int
    spaces: Mapping[str, FeatureSpace]
    classes: tuple[int, ...] | None = None  # to draw labels of; None: all
    in_turn: bool = False  # whether labels are prompts, which take turns
    clip: Clip | None = None  # whose score every row has

    @property
    def chunk_size(self) -> int:
        num_samples = min(CHUNK_SAMPLES, MAX_CHUNK_BYTES // (4 * max(math.prod(self.picture_shape), 1)))
        return max(-(-num_samples // self.batch_size), 1) * self.batch_size

    def spaces_of(self, sampler: Sampler) -> dict[str, FeatureSpace]:
        """The spaces that `sampler` is measured in."""
        named = dict(list(self.spaces.items())[: 1 if sampler.is_brief else None])
        return named if self.clip is None else named | {self.clip.images.name: self.clip.images}

    def labels(self, indices: range) -> NDArray[np.int64]:
        """Those of the samples `indices`."""
        return start_labels(self.seed, indices, self.num_classes, self.classes, self.in_turn)

    def share(self, num_samples: int, ranks: Ranks) -> int:
        """How many of `num_samples` samples this rank draws."""
        starts = range(ranks.rank * self.chunk_size, num_samples, ranks.world * self.chunk_size)
        return sum(min(self.chunk_size, num_samples - start) for start in starts)


@dataclass(frozen=True)
class SampleRange:
    """The samples `indices` of one sampler, in chunks in `folder`."""

    folder: WorkFolder
    indices: range
    chunk_size: int

    @property
    def chunks(self) -> list[tuple[str, range]]:
        """The name of each chunk's file, and the samples in it."""
        starts = range(self.indices.start, self.indices.stop, self.chunk_size)
        return [(f"{start:09d}.npz", range(start, min(start + self.chunk_size, self.indices.stop))) for start in starts]

    def draw(self, sampler: Sampler, settings: SamplingSettings, ranks: Ranks, advance: Advance) -> None:
        """Draw this rank's share of the missing chunks.

        Raises:
            WorkFailed: a sample of the student or of the teacher's own solver is not finite, or a chunk cannot be
                written.
        """
        kept = self.folder.names()
        for number, (name, indices) in enumerate(self.chunks):
            if number % ranks.world != ranks.rank:
                continue
            if name in kept:
                advance(len(indices), sampler.title, skipped=True)
                continue
            chunk = _draw_chunk(sampler, settings, indices, ranks.device, advance)
            if number == 0 and chunk["seconds"] * len(self.indices) < BRIEF_SECONDS * len(indices):
                chunk["seconds"] = np.array(_steady_seconds(sampler, settings, indices, ranks.device))
            if number > 0:  # only the first chunk's images are used again
                chunk = {key: array for key, array in chunk.items() if key not in KEPT}
            self.folder.write(name, _as_npz(chunk))

    @property
    def is_finite(self) -> bool:
        """Whether all samples are finite. If not, some of the chunks have no features."""
        return not any(self._read("not_finite"))

    def extracted(self, space: str) -> Extracted:
        """The features of all samples in `space`, in index order.

        Raises:
            WorkFailed: a chunk cannot be read.
        """
        features, probabilities = list(self._read(f"{space}.features")), list(self._read(f"{space}.probabilities"))
        return Extracted(np.concatenate(features), np.concatenate(probabilities) if probabilities else None)

    @property
    def first_samples(self) -> NDArray[np.float32]:
        """The samples of the first chunk, float32 [n, C, H, W]."""
        (samples,) = self._read("samples")
        return samples

    @property
    def first_latents(self) -> NDArray[np.float32] | None:
        """The latents of the first chunk, float32 [n, C, H, W]; None where samples are no latents."""
        return next(self._read("latents"), None)

    @property
    def nfe(self) -> float:
        """Mean number of network evaluations per sample."""
        return float(sum(self._read("evaluations"))) / len(self.indices)

    @property
    def images_per_second(self) -> float:
        """Of one process, without the features."""
        return len(self.indices) / float(sum(self._read("seconds")))

    def discard(self) -> None:
        """Remove the chunks."""
        self.folder.remove()

    def _read(self, name: str) -> Iterator[NDArray[Any]]:
        """The array `name` of each chunk that has it."""
        for chunk, _ in self.chunks:
            path = self.folder.fetch(chunk)
            try:
                with open_npz(path) as arrays:
                    if name in arrays:
                        yield arrays[name]
            except UNREADABLE as error:
                raise WorkFailed(f"{path}: cannot be read ({one_line(error)}); delete it and run again") from error


def _draw_chunk(
    sampler: Sampler, settings: SamplingSettings, indices: range, device: torch.device, advance: Advance
) -> dict[str, NDArray[Any]]:
    kept: dict[str, list[NDArray[np.float32]]] = {}
    evaluations, seconds, is_finite = 0, 0.0, True
    features = _BatchFeatures(settings.spaces_of(sampler), settings.data_range, _batches_behind(device))
    for batch in _draw_batches(sampler, settings, indices, device):
        samples = batch.samples.numpy()
        is_finite &= bool(np.isfinite(samples).all())
        if not sampler.is_brief and not is_finite:
            raise WorkFailed(f"{sampler.title}: a sample of {indices.start} to {indices.stop - 1} is not finite")
        features.add(samples)
        kept.setdefault("samples", []).append(samples)
        if batch.latents is not None:
            kept.setdefault("latents", []).append(batch.latents.numpy())
        evaluations += batch.nfe * len(batch.samples)
        seconds += batch.wall_seconds
        advance(len(batch.samples), sampler.title)
    return {
        **(features.result() if is_finite else {"not_finite": np.array(True)}),
        **{name: np.concatenate(arrays) for name, arrays in kept.items()},
        "evaluations": np.array(evaluations),
        "seconds": np.array(seconds),
    }


def _steady_seconds(sampler: Sampler, settings: SamplingSettings, indices: range, device: torch.device) -> float:
    """What drawing `indices` takes by the median of batches, drawn again and again.

    A first batch of a small network is mostly preparations, and some wait for what else the machine does.
    """
    batches: list[tuple[float, int]] = []
    while sum(seconds for seconds, _ in batches) < TIMED_SECONDS:
        drawn = _draw_batches(sampler, settings, indices, device)
        batches += [(batch.wall_seconds, len(batch.samples)) for batch in drawn]
    return len(indices) * statistics.median(seconds / count for seconds, count in batches)


def _draw_batches(
    sampler: Sampler, settings: SamplingSettings, indices: range, device: torch.device
) -> Iterator[SampleBatch]:
    return draw_samples(
        sampler,
        settings.shape,
        settings.num_classes,
        settings.seed,
        indices,
        settings.batch_size,
        device,
        classes=settings.classes,
        in_turn=settings.in_turn,
    )


def _batches_behind(device: torch.device) -> int:
    """How many batches features may lag behind samples: drawn on a CPU, these would share its cores with the resizing,
    and their speed would be no figure."""
    return 0 if device.type == "cpu" else 1


class _BatchFeatures:
    """The features of samples that come in batches, each begun at once and finished `num_behind` batches later."""

    def __init__(self, spaces: Mapping[str, FeatureSpace], data_range: tuple[float, float], num_behind: int) -> None:
        self.spaces, self.data_range, self.num_behind = spaces, data_range, num_behind
        self._begun = deque[dict[str, Callable[[], Extracted]]]()
        self._arrays: dict[str, list[NDArray[np.float32]]] = {}

    def add(self, samples: NDArray[np.float32]) -> None:
        """Begin `samples`, and finish the batches before the last `num_behind`; what is not finite is left out."""
        if np.isfinite(samples).all():
            images = to_bytes(samples, self.data_range)
            self._begun.append(
                {name: space.begin(samples if space.of == "values" else images) for name, space in self.spaces.items()}
            )
        self._finish(self.num_behind)

    def result(self) -> dict[str, NDArray[np.float32]]:
        """The arrays of a chunk that each feature space makes: features, and probabilities if it classifies."""
        self._finish(0)
        return {name: np.concatenate(arrays) for name, arrays in self._arrays.items()}

    def _finish(self, num_left: int) -> None:
        while len(self._begun) > num_left:
            for name, finish in self._begun.popleft().items():
                extracted = finish()
                self._arrays.setdefault(f"{name}.features", []).append(extracted.features)
                if extracted.probabilities is not None:
                    self._arrays.setdefault(f"{name}.probabilities", []).append(extracted.probabilities)


def _as_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
