"""From a sampler to its figures: draws and scores samples, and keeps every result so that no range is drawn twice."""

import io
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from eval.metrics import distances
from eval.metrics.distances import ReferenceStats
from eval.metrics.sample_chunks import SampleRange, SamplingSettings
from eval.sampling.samplers import Sampler
from pipeline.common.image_grid import Images, to_bytes
from pipeline.common.progress import Advance
from pipeline.storage.store import write_file
from trainer.distillation.distance import Distance
from trainer.distributed import Ranks

NUM_IMAGES = 16


class Result(BaseModel):
    """One sampler's figures over one range of noise, kept after the range's chunks are deleted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nfe: float
    images_per_second: float
    scores: dict[str, float]
    rmse: float | None = None
    lpips: float | None = None


@dataclass
class Scorer:
    """Scores samplers in `folder`, which belongs to these settings and one reference.

    RMSE and LPIPS are to the samples of the teacher's own solver, over the first chunk of the first range. So that
    solver must be scored before the others.
    """

    folder: Path
    settings: SamplingSettings
    num_samples: int  # of a range
    reference_stats: Mapping[str, ReferenceStats]  # by feature space
    distance: Distance | None  # LPIPS
    ranks: Ranks
    teacher_samples: NDArray[np.float32] | None = field(default=None, init=False)

    def score(self, sampler: Sampler, range_index: int, advance: Advance) -> Result | None:
        """The figures of `sampler` over one range of noise, on the first rank; None on the others, which help to draw.

        Range r holds the noise of the indices from r * num_samples.

        Raises:
            WorkFailed: a sample is not finite, or a chunk cannot be written or read.
        """
        file = self._folder(sampler) / f"range-{range_index}.json"
        result = _read_result(file)
        if result is None:
            indices = range(range_index * self.num_samples, (range_index + 1) * self.num_samples)
            samples = SampleRange(file.with_suffix(""), indices, self.settings.chunk_size)
            samples.draw(sampler, self.settings, self.ranks, advance)
            self.ranks.wait()
            if self.ranks.is_first:
                result = self._compute(sampler, samples, range_index)
                write_file(file, result.model_dump_json().encode())
                samples.discard()
        else:
            advance(self.settings.share(self.num_samples, self.ranks), sampler.title, skipped=True)
        if self.ranks.is_first and sampler.group == "solver" and range_index == 0:
            self.teacher_samples = np.load(self._first_file(sampler), allow_pickle=False)
        return result if self.ranks.is_first else None

    def first_images(self, sampler: Sampler) -> Images:
        """The first images of the first range, uint8 [n, C, H, W], n <= `NUM_IMAGES`."""
        return to_bytes(np.load(self._first_file(sampler), allow_pickle=False)[:NUM_IMAGES], self.settings.data_range)

    def discard_other_settings(self) -> None:
        """Delete chunks and results of other settings."""
        for other in self.folder.parent.iterdir():
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)

    def _folder(self, sampler: Sampler) -> Path:
        return self.folder / sampler.group / re.sub(r"[^a-z0-9.+-]+", "-", sampler.name.lower())

    def _first_file(self, sampler: Sampler) -> Path:
        return self._folder(sampler) / "first.npy"

    def _compute(self, sampler: Sampler, samples: SampleRange, range_index: int) -> Result:
        scores: dict[str, float] = {}
        for space, stats in self.reference_stats.items():
            # Manifolds and kernels take minutes, and there are many few-step samplers.
            scores |= distances.score(samples.extracted(space), stats, distance_only=sampler.group == "few-step")
        errors = {}
        if range_index == 0:
            first = samples.first_samples
            errors = self._compare(first)
            kept = first if sampler.group == "solver" else first[:NUM_IMAGES]
            buffer = io.BytesIO()
            np.save(buffer, kept)
            write_file(self._first_file(sampler), buffer.getvalue())
        return Result(nfe=samples.nfe, images_per_second=samples.images_per_second, scores=scores, **errors)

    def _compare(self, samples: NDArray[np.float32]) -> dict[str, float]:
        """RMSE and LPIPS to the teacher's samples of the same noise, in units of [-1, 1]."""
        if self.teacher_samples is None:
            return {}
        low, high = self.settings.data_range
        ours, theirs = (torch.from_numpy((x - low) * (2 / (high - low)) - 1) for x in (samples, self.teacher_samples))
        errors = {"rmse": float((ours - theirs).double().square().mean().sqrt())}
        if self.distance is not None:
            errors["lpips"] = self._mean_distance(self.distance, ours, theirs)
        return errors

    @torch.no_grad()
    def _mean_distance(self, distance: Distance, x: torch.Tensor, y: torch.Tensor) -> float:
        batches = zip(*(torch.split(images, self.settings.batch_size) for images in (x, y)), strict=True)
        device = self.ranks.device
        return float(torch.cat([distance(a.to(device), b.to(device)).cpu() for a, b in batches]).mean())


def _read_result(file: Path) -> Result | None:
    try:
        return Result.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):  # missing, or of another version: scored again
        return None
