"""From a sampler to its figures: draws and scores samples, and keeps every result so that no range is drawn twice.

Distances are computed in a thread, so that a GPU draws the next row meanwhile.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from eval.features import clip
from eval.features.spaces import Features
from eval.metrics import distances
from eval.metrics.distances import ReferenceStats
from eval.metrics.sample_chunks import SampleRange, SamplingSettings
from eval.results import Metric
from eval.sampling.samplers import Sampler
from pipeline.common.errors import WorkFailed, one_line
from pipeline.common.image_grid import Images, num_shown, shrink, to_pictures
from pipeline.common.progress import Advance
from pipeline.storage.work_folder import WorkFolder
from trainer.distillation.distance import Distance
from trainer.distributed import Ranks

NUM_IMAGES = 16
CLIP_SCORE = Metric(key="clip-score", heading="CLIP score", space=clip.NAME, lower_is_better=False)
NUM_STUDENT_IMAGES = 64
REFERENCE = "reference.json"  # its scores by itself
SCORES = TypeAdapter(dict[str, tuple[float, ...]])
FIRST = "first.npy"  # the samples of the first chunk
FIRST_LATENTS = "first-latents.npy"


@contextmanager
def scoring_thread() -> Iterator[Executor]:
    """A thread that computes figures, one row after the other; after an error the rows that wait are left out."""
    executor = ThreadPoolExecutor(1)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


class Result(BaseModel):
    """One sampler's figures over one range of noise, kept after the range's chunks are deleted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nfe: float
    images_per_second: float
    scores: dict[str, float]
    rmse: float | None = None
    latent_rmse: float | None = None
    lpips: float | None = None
    is_finite: bool = True  # whether all samples are; if not, there are no figures


@dataclass
class Scorer:
    """Scores samplers in the folder `name` of `all_settings`, which belongs to these settings and one reference.

    RMSE and LPIPS are to the samples of the teacher's own solver, over the first chunk of the first range. So that
    solver must be scored before the others. Where these samples are the reference too, a range is compared with the
    same range of theirs, and their features stay.
    """

    all_settings: WorkFolder
    name: str
    settings: SamplingSettings
    num_samples: int  # of a range
    reference_stats: Mapping[str, ReferenceStats] | None  # by feature space; None: the teacher's samples are it
    distance: Distance | None  # LPIPS
    ranks: Ranks
    prompt_features: Features | None = None  # [P, D], of `settings.clip`
    teacher_samples: NDArray[np.float32] | None = field(default=None, init=False)
    teacher_latents: NDArray[np.float32] | None = field(default=None, init=False)
    _teacher_ranges: dict[int, SampleRange] = field(default_factory=dict, init=False)
    _teacher_stats: dict[int, Mapping[str, ReferenceStats]] = field(default_factory=dict, init=False)

    @property
    def folder(self) -> WorkFolder:
        """Where its chunks and results are."""
        return self.all_settings / self.name

    def score(self, sampler: Sampler, range_index: int, advance: Advance, scoring: Executor) -> "Future[Result] | None":
        """Draw `sampler` over one range of noise; its figures, on the first rank, are computed in `scoring`.

        None on the other ranks, which help to draw. Range r holds the noise of the indices from r * num_samples.

        Raises:
            WorkFailed: a sample of the student or of the teacher's own solver is not finite, or a chunk cannot be
                written or read.
        """
        folder, name = self._folder(sampler), f"range-{range_index}"
        indices = range(range_index * self.num_samples, (range_index + 1) * self.num_samples)
        samples = SampleRange(folder / name, indices, self.settings.chunk_size)
        if self._is_reference(sampler):
            self._teacher_ranges[range_index] = samples
        # The first samples are used again, and all features of the reference.
        is_used = self._is_reference(sampler) or not (range_index or self._first_file(sampler).is_file())
        result = None if is_used else _read_result(folder.fetch(f"{name}.json"))
        if result is None:
            samples.draw(sampler, self.settings, self.ranks, advance)
            self.ranks.wait()
        else:
            advance(self.settings.share(self.num_samples, self.ranks), sampler.title, skipped=True)
        if not self.ranks.is_first:
            return None
        future = _done(result) if result is not None else self._start(sampler, samples, range_index, scoring)
        if sampler.group == "solver" and range_index == 0:
            self.teacher_samples = self._read_first(sampler)
            self.teacher_latents = self._read_latents(sampler)
        return future

    def score_reference(self) -> dict[str, tuple[float, ...]]:
        """What samples as good as the reference would have, see `distances.score_itself`; empty if it is too small."""
        with suppress(OSError, ValidationError):  # missing, or of another version
            return SCORES.validate_json(self.folder.fetch(REFERENCE).read_bytes())
        found: dict[str, tuple[float, ...]] = {}
        for stats in (self.reference_stats or {}).values():
            parts = distances.score_itself(stats, self.num_samples)
            found |= {key: tuple(part[key] for part in parts) for part in parts[:1] for key in part}
        self.folder.write(REFERENCE, SCORES.dump_json(found))
        return found

    def first_images(self, sampler: Sampler) -> Images:
        """The first images of the first range, uint8 [n, C, H, W], or a picture of points.

        There are `NUM_STUDENT_IMAGES` at most, `NUM_IMAGES` of samplers of which there are many.
        """
        samples = self._read_first(sampler)[: self._num_shown(sampler)]
        return shrink(to_pictures(np.nan_to_num(samples), self.settings.data_range))

    def _num_shown(self, sampler: Sampler) -> int:
        return num_shown(self.settings.picture_shape, NUM_IMAGES if sampler.is_brief else NUM_STUDENT_IMAGES)

    def _read_first(self, sampler: Sampler) -> NDArray[np.float32]:
        return self._read(self._first_file(sampler))

    def _read_latents(self, sampler: Sampler) -> NDArray[np.float32] | None:
        path = self._folder(sampler).fetch(FIRST_LATENTS)
        return self._read(path) if path.is_file() else None

    def _read(self, path: Path) -> NDArray[np.float32]:
        try:
            # Mapped, so that memory is taken for no more than lies there.
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False), np.float32)
        except (OSError, ValueError, EOFError) as error:
            raise WorkFailed(f"{path}: cannot be read ({one_line(error)}); delete it and run again") from error

    def discard_other_settings(self) -> None:
        """Delete chunks and results of other settings."""
        for name in self.all_settings.names():
            if name.endswith("/") and self.all_settings / name.rstrip("/") != self.folder:
                (self.all_settings / name.rstrip("/")).remove()

    def _folder(self, sampler: Sampler) -> WorkFolder:
        return self.folder / sampler.group / re.sub(r"[^a-z0-9.+-]+", "-", sampler.name.lower())

    def _is_reference(self, sampler: Sampler) -> bool:
        return self.reference_stats is None and sampler.group == "solver"

    def _first_file(self, sampler: Sampler) -> Path:
        return self._folder(sampler).fetch(FIRST)

    def _start(self, sampler: Sampler, samples: SampleRange, range_index: int, scoring: Executor) -> "Future[Result]":
        errors = self._keep_first(sampler, samples) if range_index == 0 else {}
        future = scoring.submit(self._finish, sampler, samples, errors, range_index)
        if self.ranks.device.type == "cpu":
            wait([future])  # the next row would share the cores, and its speed would be no figure
        return future

    def _keep_first(self, sampler: Sampler, samples: SampleRange) -> dict[str, float]:
        """Keep the samples of the first chunk for pictures and comparisons; returns their errors, see `_compare`."""
        first, latents = samples.first_samples, samples.first_latents
        if sampler.group != "solver":
            self._folder(sampler).write(FIRST, _as_npy(first[: self._num_shown(sampler)]))
            return self._compare(first, latents)
        if latents is not None:
            self._folder(sampler).write(FIRST_LATENTS, _as_npy(latents))
        self._folder(sampler).write(FIRST, _as_npy(first))
        return {}

    def _finish(self, sampler: Sampler, samples: SampleRange, errors: dict[str, float], range_index: int) -> Result:
        """Compute and keep the figures of `samples`, and discard them."""
        is_finite = samples.is_finite
        result = Result(
            nfe=samples.nfe,
            images_per_second=samples.images_per_second,
            scores=self._compute(sampler, samples, range_index) if is_finite else {},
            is_finite=is_finite,
            **(errors if is_finite else {}),
        )
        self._folder(sampler).write(f"range-{range_index}.json", result.model_dump_json().encode())
        if not self._is_reference(sampler):
            samples.discard()
        return result

    def _compute(self, sampler: Sampler, samples: SampleRange, range_index: int) -> dict[str, float]:
        scores = self._prompt_score(samples)
        if self._is_reference(sampler):
            return scores
        all_stats = self._stats(range_index)
        for space in self.settings.spaces_of(sampler):
            if (stats := all_stats.get(space)) is not None:
                sample = samples.extracted(space)
                # Manifolds and kernels take minutes.
                scores |= distances.score(sample, stats, distance_only=sampler.is_brief, device=self.ranks.device)
        return scores

    def _prompt_score(self, samples: SampleRange) -> dict[str, float]:
        """The CLIP score of `samples` and their prompts, where it is wanted."""
        model = self.settings.clip
        if model is None or self.prompt_features is None:
            return {}
        texts = self.prompt_features[self.settings.labels(samples.indices)]
        return {CLIP_SCORE.key: model.score(samples.extracted(model.images.name).features, texts)}

    def _stats(self, range_index: int) -> Mapping[str, ReferenceStats]:
        """The reference's statistics that a range is compared with."""
        if self.reference_stats is not None:
            return self.reference_stats
        if range_index not in self._teacher_stats:
            samples = self._teacher_ranges[range_index]
            self._teacher_stats[range_index] = {
                space: distances.teacher_stats(space, samples.extracted(space).features)
                for space in self.settings.spaces
            }
        return self._teacher_stats[range_index]

    def _compare(self, samples: NDArray[np.float32], latents: NDArray[np.float32] | None) -> dict[str, float]:
        """RMSE and LPIPS to the teacher's samples of the same noise, in units of [-1, 1], unless they overflow.

        The RMSE of latents is in their own units.
        """
        if self.teacher_samples is None or not np.isfinite(samples).all():
            return {}
        low, high = self.settings.data_range
        ours, theirs = (
            torch.from_numpy((x.astype(np.float64) - low) * (2 / (high - low)) - 1)
            for x in (samples, self.teacher_samples)
        )
        errors = {"rmse": float((ours - theirs).square().mean().sqrt())}
        if latents is not None and self.teacher_latents is not None:
            errors["latent_rmse"] = float(np.sqrt(np.square(latents.astype(np.float64) - self.teacher_latents).mean()))
        if self.distance is not None:
            errors["lpips"] = self._mean_distance(self.distance, ours.float(), theirs.float())
        return {name: error for name, error in errors.items() if math.isfinite(error)}

    @torch.no_grad()
    def _mean_distance(self, distance: Distance, x: torch.Tensor, y: torch.Tensor) -> float:
        batches = zip(*(torch.split(images, self.settings.batch_size) for images in (x, y)), strict=True)
        device = self.ranks.device
        return float(torch.cat([distance(a.to(device), b.to(device)).cpu() for a, b in batches]).mean())


def _as_npy(array: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _done(result: Result) -> "Future[Result]":
    future: Future[Result] = Future()
    future.set_result(result)
    return future


def _read_result(file: Path) -> Result | None:
    try:
        return Result.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):  # missing, or of another version: scored again
        return None
