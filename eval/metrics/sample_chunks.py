"""Samples of one sampler over a range of noise, stored as chunks of features: a kill loses at most one chunk.

The images are never all in memory: each batch is turned into features as soon as it is drawn. Once a range is scored,
its chunks are deleted.
"""

import io
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from eval.features.spaces import Extracted, FeatureSpace
from eval.sampling.samplers import Sampler, draw_samples
from pipeline.common.errors import WorkFailed, one_line
from pipeline.common.image_grid import to_bytes
from pipeline.common.progress import Advance
from pipeline.storage.store import write_file
from trainer.distributed import Ranks

CHUNK_SAMPLES = 1024  # at least; whole batches


@dataclass(frozen=True)
class SamplingSettings:
    """What all rows share: the samples' shape and range, their noise, and the feature spaces to extract."""

    shape: tuple[int, ...]
    num_classes: int
    data_range: tuple[float, float]
    seed: int
    batch_size: int
    spaces: Mapping[str, FeatureSpace]

    @property
    def chunk_size(self) -> int:
        return -(-CHUNK_SAMPLES // self.batch_size) * self.batch_size

    def share(self, num_samples: int, ranks: Ranks) -> int:
        """How many of `num_samples` samples this rank draws."""
        starts = range(ranks.rank * self.chunk_size, num_samples, ranks.world * self.chunk_size)
        return sum(min(self.chunk_size, num_samples - start) for start in starts)


@dataclass(frozen=True)
class SampleRange:
    """The samples `indices` of one sampler, in chunks in `folder`."""

    folder: Path
    indices: range
    chunk_size: int

    @property
    def chunks(self) -> list[tuple[Path, range]]:
        """The file of each chunk, and the samples in it."""
        starts = range(self.indices.start, self.indices.stop, self.chunk_size)
        return [
            (self.folder / f"{start:09d}.npz", range(start, min(start + self.chunk_size, self.indices.stop)))
            for start in starts
        ]

    def draw(self, sampler: Sampler, settings: SamplingSettings, ranks: Ranks, advance: Advance) -> None:
        """Draw this rank's share of the missing chunks.

        Raises:
            WorkFailed: a sample is not finite, or a chunk cannot be written.
        """
        for number, (path, indices) in enumerate(self.chunks):
            if number % ranks.world != ranks.rank:
                continue
            if path.is_file():
                advance(len(indices), sampler.title, skipped=True)
                continue
            chunk = _draw_chunk(sampler, settings, indices, ranks.device, advance)
            if number > 0:
                del chunk["samples"]  # only the first chunk's images are used again
            _write(path, chunk)

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
    def nfe(self) -> float:
        """Mean number of network evaluations per sample."""
        return float(sum(self._read("evaluations"))) / len(self.indices)

    @property
    def images_per_second(self) -> float:
        """Of one process, without the features."""
        return len(self.indices) / float(sum(self._read("seconds")))

    def discard(self) -> None:
        """Remove the chunks."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, name: str) -> Iterator[NDArray[Any]]:
        """The array `name` of each chunk that has it."""
        for path, _ in self.chunks:
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    if name in arrays:
                        yield arrays[name]
            except (OSError, ValueError, EOFError, BadZipFile) as error:
                raise WorkFailed(f"{path}: cannot be read ({one_line(error)}); delete it and run again") from error


def _draw_chunk(
    sampler: Sampler, settings: SamplingSettings, indices: range, device: torch.device, advance: Advance
) -> dict[str, NDArray[Any]]:
    samples, evaluations, seconds = [], 0, 0.0
    features: dict[str, list[NDArray[np.float32]]] = {}
    for batch in draw_samples(
        sampler, settings.shape, settings.num_classes, settings.seed, indices, settings.batch_size, device
    ):
        if not torch.isfinite(batch.samples).all():
            raise WorkFailed(f"{sampler.title}: a sample of {indices.start} to {indices.stop - 1} is not finite")
        samples.append(batch.samples.numpy())
        evaluations += batch.nfe * len(batch.samples)
        seconds += batch.wall_seconds
        for name, array in _extract(samples[-1], settings).items():
            features.setdefault(name, []).append(array)
        advance(len(batch.samples), sampler.title)
    chunk = {name: np.concatenate(arrays) for name, arrays in features.items()}
    return {
        **chunk,
        "samples": np.concatenate(samples),
        "evaluations": np.array(evaluations),
        "seconds": np.array(seconds),
    }


def _extract(samples: NDArray[np.float32], settings: SamplingSettings) -> dict[str, NDArray[np.float32]]:
    """The arrays of a chunk that each feature space makes of a batch: features, and probabilities if it classifies."""
    images, arrays = to_bytes(samples, settings.data_range), {}
    for name, space in settings.spaces.items():
        extracted = space.extract(images)
        arrays[f"{name}.features"] = extracted.features
        if extracted.probabilities is not None:
            arrays[f"{name}.probabilities"] = extracted.probabilities
    return arrays


def _write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_file(path, buffer.getvalue())
