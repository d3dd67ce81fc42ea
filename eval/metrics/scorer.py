"""From a sampler to its figures: draws, measures, and keeps what is finished, so that it is never done twice."""

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

NUM_PICTURES = 16


class Result(BaseModel):
    """One sampler's figures over one range of noise; what stays when its chunks are gone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nfe: float
    images_per_second: float
    scores: dict[str, float]
    rmse: float | None = None
    lpips: float | None = None


@dataclass
class Scorer:
    """Scores samplers in `folder`, which belongs to one setting and one reference.

    Agreement is measured on the first chunk of the first range, against the samples of the teacher's solver: it has to
    be scored before the others.
    """

    folder: Path
    setting: SamplingSettings
    num_samples: int  # of a range
    measured: Mapping[str, ReferenceStats]  # what samples are measured against, by feature space
    distance: Distance | None  # perceptual, for the agreement
    ranks: Ranks
    teacher_samples: NDArray[np.float32] | None = field(default=None, init=False)

    def measure(self, sampler: Sampler, number: int, advance: Advance) -> Result | None:
        """The figures of `sampler` over the range `number` of noise: on the first rank; all take part in drawing.

        Raises:
            WorkFailed: samples that are not finite, or no room for their features.
        """
        file = self._place(sampler) / f"range-{number}.json"
        found = _read(file)
        if found is None:
            indices = range(number * self.num_samples, (number + 1) * self.num_samples)
            samples = SampleRange(file.with_suffix(""), indices, self.setting.chunk_size)
            samples.draw(sampler, self.setting, self.ranks, advance)
            self.ranks.wait()
            if self.ranks.is_first:
                found = self._score(sampler, samples, number)
                write_file(file, found.model_dump_json().encode())
                samples.discard()
        else:
            advance(self.setting.share(self.num_samples, self.ranks), sampler.title)
        if self.ranks.is_first and sampler.group == "solver" and number == 0:
            self.teacher_samples = np.load(self._first(sampler), allow_pickle=False)
        return found if self.ranks.is_first else None

    def pictures(self, sampler: Sampler) -> Images:
        """The first images of the first range, uint8 [n, C, H, W]."""
        return to_bytes(np.load(self._first(sampler), allow_pickle=False)[:NUM_PICTURES], self.setting.data_range)

    def drop_others(self) -> None:
        """Remove what was drawn in other settings."""
        for other in self.folder.parent.iterdir():
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)

    def _place(self, sampler: Sampler) -> Path:
        return self.folder / sampler.group / re.sub(r"[^a-z0-9.+-]+", "-", sampler.name.lower())

    def _first(self, sampler: Sampler) -> Path:
        return self._place(sampler) / "first.npy"

    def _score(self, sampler: Sampler, samples: SampleRange, number: int) -> Result:
        scores: dict[str, float] = {}
        for space, measured in self.measured.items():
            # Manifolds and kernels of many samples take minutes, and the few-step samplers are many.
            scores |= distances.score(samples.extracted(space), measured, distance_only=sampler.group == "few-step")
        agreement = {}
        if number == 0:
            first = samples.first_samples
            agreement = self._compare(first)
            kept = first if sampler.group == "solver" else first[:NUM_PICTURES]
            buffer = io.BytesIO()
            np.save(buffer, kept)
            write_file(self._first(sampler), buffer.getvalue())
        return Result(nfe=samples.nfe, images_per_second=samples.images_per_second, scores=scores, **agreement)

    def _compare(self, samples: NDArray[np.float32]) -> dict[str, float]:
        """How far samples are from the teacher's own of the same noise."""
        if self.teacher_samples is None:
            return {}
        low, high = self.setting.data_range
        ours, theirs = (torch.from_numpy((x - low) * (2 / (high - low)) - 1) for x in (samples, self.teacher_samples))
        found = {"rmse": float((ours - theirs).double().square().mean().sqrt())}
        if self.distance is not None:
            size = self.setting.batch_size
            pairs = zip(torch.split(ours, size), torch.split(theirs, size), strict=True)
            with torch.no_grad():
                found["lpips"] = float(torch.cat([self._far(*pair) for pair in pairs]).mean())
        return found

    def _far(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert self.distance is not None
        return self.distance(x.to(self.ranks.device), y.to(self.ranks.device)).cpu()


def _read(file: Path) -> Result | None:
    try:
        return Result.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):  # not there, or of another version: to be made again
        return None
