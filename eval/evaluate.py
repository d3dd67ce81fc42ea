"""Stage 3: evaluate() compares a student with its teacher and with the teacher's own few-step samplers.

All rows start from the same noise, which no training has seen. Finished work is kept: a kill loses at most one chunk of
samples, and new rows or ranges of noise are added to existing ones.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from datetime import date

import torch

from eval.config import EvaluateConfig
from eval.features import spaces
from eval.features.spaces import FeatureSpace
from eval.features.weights import Unavailable
from eval.metrics import cost, distances, trajectory_fit
from eval.metrics.reference import OpenedReference, check_reference, check_shape, open_reference
from eval.metrics.sample_chunks import SamplingSettings
from eval.metrics.scorer import Result, Scorer, scoring_thread
from eval.models import EvaluatedModels, open_models
from eval.report import files, provenance
from eval.results import (
    Cost,
    EvaluatedCheckpoint,
    Figure,
    Metric,
    NotComputed,
    Reference,
    Report,
    Row,
    Space,
    TrajectoryFit,
)
from eval.sampling import baselines
from eval.sampling.paths import draw_strips
from eval.sampling.precision import check_precision, fixed_arithmetic, in_precision
from eval.sampling.samplers import Sampler, decoded, student_sampler, teacher_sampler
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.common.image_grid import Images, has_pictures, is_drawable
from pipeline.common.progress import bar, weighted
from pipeline.storage.output import Output, check_output, hold_output
from pipeline.storage.store import is_url, open_store
from pipeline.storage.work_folder import WorkFolder
from trainer.checkpoints import mirror
from trainer.distillation.distance import DistanceConfig
from trainer.distributed import Ranks, join_ranks

WORK = "samples"  # the folder of chunks and scores, inside the report's folder
DIGITS = (1, 8, 8)
MIN_LPIPS_PIXELS = 32  # smaller images are enlarged before LPIPS
QUANTISER = "x in [-1, 1] to the byte floor(127.5 x + 128), clipped to 0 and 255, as EDM does"
NO_REFERENCE = (
    "evaluate: 'reference' is missing: wanted images or statistics to compare with, for example --reference "
    "cifar10.zip, a folder of images, cleanfid:cifar10/train/32, or EDM's or ADM's statistics"
)
RMSE_TO_TEACHER = Metric(key="rmse", heading="RMSE to teacher", space="", lower_is_better=True)


def evaluate(config: EvaluateConfig) -> Report | None:
    """Draw samples, score them and write the report into `config.out`; torchrun's ranks share the sampling.

    Returns the report on the first rank, None on the others.

    Raises:
        BadInput: the checkpoint, reference, feature spaces and teacher do not fit together.
        WorkFailed: a sample of the student or of the teacher's own solver is not finite, or a required metric could not
            be computed.
    """
    with join_ranks(config.device) as ranks:
        if ranks.is_first_here:
            mirror.local(config.checkpoint)
        ranks.wait()
        check_precision(config.precision, ranks.device)
        models = open_models(config.checkpoint, config.weights, config.teacher, ranks.device)
        with fixed_arithmetic("fp32", ranks.device):
            evaluation = _Evaluation(config, models, ranks)
            locations = [str(location) for location in (config.out, config.mirror) if location is not None]
            with hold_output(Output.REPORT, *locations) if ranks.is_first else nullcontext():
                return evaluation.run()


def check_evaluate(config: EvaluateConfig, shape: tuple[int, ...] | None, data: str | None) -> None:
    """Check what is known before there is a checkpoint: the report's folder, the feature spaces and the reference.

    `shape` is that of the samples and `data` the data set that will be there by then, where they are known.

    Raises:
        BadInput: one of them is none.
        Unavailable: a required metric lacks the network of its feature space.
    """
    for location in filter(None, (config.out, config.mirror)):
        check_output(open_store(str(location)), Output.REPORT)
    names = config.features if config.features is not None or shape is None else _default_features(shape)
    for name in names or ():
        try:
            spaces.load_space(name, torch.device("cpu"))
        except Unavailable:
            if set(config.require) & set(distances.metric_keys([name])):
                raise
    if config.reference is not None and config.reference != data:
        check_reference(config.reference)
    elif config.reference is None and shape is not None and shape != DIGITS and is_drawable(shape):
        raise BadInput(NO_REFERENCE)


def _default_features(shape: tuple[int, ...]) -> tuple[str, ...]:
    if not is_drawable(shape):
        return ("values",)
    return ("digits",) if shape == DIGITS else ("inception", "inception-tf")


class _Evaluation:
    """One run of the command on this rank. The constructor raises every `BadInput`, before anything is drawn."""

    def __init__(self, config: EvaluateConfig, models: EvaluatedModels, ranks: Ranks) -> None:
        self.config, self.models, self.ranks = config, models, ranks
        self.not_computed: list[NotComputed] = []
        self.warnings: list[str] = []
        self.spaces = dict(self._open_spaces())
        self.reference = self._open_reference()
        self.columns = self._list_columns()
        self.samplers = [
            decoded(in_precision(sampler, config.precision, ranks.device), models.decode)
            for sampler in self._list_samplers()
        ]
        self._check_required()
        self.scorer = self._make_scorer()

    def run(self) -> Report | None:
        """Draw and score every row; the first rank writes the report and returns it."""
        jobs = [(sampler, range_index) for sampler in self.samplers for range_index in range(self._num_ranges(sampler))]
        share = self.scorer.settings.share(self.config.num_samples, self.ranks)
        pending: list[tuple[Sampler, Future[Result]]] = []
        results: dict[Sampler, list[Result]] = {sampler: [] for sampler in self.samplers}
        total = max(sum(sampler.cost for sampler, _ in jobs) * share, 1)  # a rank may have no share
        with bar("evaluate (%)", 100) as show, scoring_thread() as scoring:
            for sampler, range_index in jobs:
                advance = weighted(show, 100 * sampler.cost / total)
                if (future := self.scorer.score(sampler, range_index, advance, scoring)) is not None:
                    pending.append((sampler, future))
                _raise_failure(pending)
            for sampler, future in pending:
                results[sampler].append(future.result())
        if not self.ranks.is_first:
            return None
        report = self._report(results)
        files.write(self.config.out, self.config, report, *self._pictures(), self.models.run)
        self._upload()
        self.scorer.discard_other_settings()
        self._check_computed(report)
        return report

    def _pictures(self) -> tuple[dict[str, Images], dict[str, Images]]:
        """The first images of each sampler, and strips from noise to image; both empty if samples have no pictures."""
        if not has_pictures(self.models.picture_shape):
            return {}, {}
        grid = {sampler.title: self.scorer.first_images(sampler) for sampler in self.samplers}
        return grid, draw_strips(self.models, self.config.teacher_solver, self.config.seed, self.ranks.device)

    def _upload(self) -> None:
        if self.config.mirror is not None:
            files.upload(self.config.out, self.config.mirror)
        if is_url(self.config.checkpoint):
            files.upload(self.models.run, self.config.checkpoint, (files.CARD,))

    # Feature spaces, reference and metrics

    def _open_spaces(self) -> Iterator[tuple[str, FeatureSpace]]:
        shape = self.models.picture_shape
        default = _default_features(shape)
        if self.config.features is None and self.config.reference is None and not is_drawable(shape):
            self._skip(
                distances.metric_keys(default),
                f"samples of shape {list(shape or self.models.shape)} have no usual reference: name arrays of the "
                "data (.npy, .npz) or a data set with --reference",
            )
            default = ()
        for name in default if self.config.features is None else self.config.features:
            try:
                space = spaces.load_space(name, self.ranks.device)
            except Unavailable as error:
                self._skip(distances.metric_keys([name]), str(error))
                continue
            space.check_shape(shape, "the samples")
            yield space.name, space

    def _open_reference(self) -> OpenedReference:
        """The reference; without statistics on ranks other than the first, which alone scores."""
        source = self.config.reference or ("digits" if self.models.picture_shape == DIGITS else None)
        if source is None and self.config.features is None and not is_drawable(self.models.picture_shape):
            return OpenedReference(
                Reference(source="none", title="no reference", num_images=None, shape=None, sha256=""), {}
            )
        if source is None:
            raise BadInput(NO_REFERENCE)
        empty = OpenedReference(Reference(source=source, title=source, num_images=None, shape=None, sha256=""), {})
        if not self.ranks.is_first:
            return empty
        try:
            reference = open_reference(source, list(self.spaces.values()))
        except Unavailable as error:
            self._skip(distances.metric_keys(self.spaces), str(error))
            return empty
        check_shape(reference.reference, self.models.picture_shape)
        self.not_computed += reference.not_computed
        self.warnings += reference.notes
        for stats in reference.stats.values():
            self.not_computed += distances.not_computed(self.config.num_samples, stats)
            self.warnings += distances.cautions(self.config.num_samples, stats)
        return reference

    def _open_distance(self) -> DistanceConfig | None:
        """LPIPS to the teacher's samples; None if it is not wanted, or its network is missing."""
        shape, backbone = self.models.picture_shape, self.config.lpips
        is_small = is_drawable(shape) and min(shape[1:]) < MIN_LPIPS_PIXELS
        if backbone == "auto":
            backbone = "alex" if is_drawable(shape) and not is_small else "none"
        if backbone == "none" or self.models.teacher is None:
            return None
        distance = DistanceConfig.model_validate({"name": f"lpips-{backbone}", "resize": 64 if is_small else None})
        try:
            distance.prepare(shape)
        except BadInput as error:
            self._skip(["lpips"], str(error))
            return None
        return distance

    def _list_columns(self) -> list[Metric]:
        """The metrics that can be computed, the headline first; without any, the RMSE to the teacher."""
        skipped = {key for missing in self.not_computed for key in missing.metrics}
        columns = [
            column
            for name, stats in self.reference.stats.items()
            for column in distances.columns(name, stats.features is not None, has_probabilities=True)
            if column.key not in skipped
        ]
        return columns or [RMSE_TO_TEACHER]

    def _skip(self, keys: Sequence[str], reason: str) -> None:
        if keys:
            self.not_computed.append(NotComputed(metrics=tuple(keys), reason=reason))

    def _check_required(self) -> None:
        """Raises `BadInput` if a required metric is none of this evaluation's, computed or not."""
        keys = [column.key for column in self.columns] + [RMSE_TO_TEACHER.key, "lpips"]
        keys += [key for missing in self.not_computed for key in missing.metrics]
        for key in self.config.require:
            if self.ranks.is_first and key not in keys:
                raise BadInput(f"--require {key}: wanted a metric of this evaluation: {', '.join(dict.fromkeys(keys))}")

    def _check_computed(self, report: Report) -> None:
        """Raises `WorkFailed` if a required metric has no figure."""
        computed = {key for row in report.rows for key in row.scores}
        computed |= {key for row in report.rows for key in ("rmse", "lpips") if getattr(row, key) is not None}
        for key in self.config.require:
            if key not in computed:
                reasons = [missing.reason for missing in report.not_computed if key in missing.metrics]
                reason = reasons[0] if reasons else "the reference lacks what it needs"
                raise WorkFailed(f"--require {key}: it was not computed; {reason}")

    # The rows

    def _list_samplers(self) -> Iterator[Sampler]:
        """All rows. The teacher's own solver comes first: the others are compared with its samples."""
        teacher, student, info = self.models.teacher, self.models.student, self.models.info
        if teacher is not None:
            yield teacher_sampler(teacher, self.config.teacher_solver)
            config = self.config
            for num_evaluations in config.evaluations:
                yield from baselines.baseline_samplers(
                    teacher, num_evaluations, config.baselines, config.baseline_grids
                )
        if student is not None:
            for steps in self.config.steps:
                yield student_sampler(student, steps, info.t_start, info.t_end, info.step_shift)

    def _num_ranges(self, sampler: Sampler) -> int:
        return 1 if sampler.group == "few-step" else self.config.num_ranges

    def _make_scorer(self) -> Scorer:
        models, config = self.models, self.config
        settings = SamplingSettings(
            shape=models.shape,
            picture_shape=models.picture_shape,
            num_classes=models.num_classes,
            data_range=models.data_range,
            seed=config.seed,
            batch_size=config.batch_size,
            spaces=self._measured_spaces(),
            classes=models.classes,
        )
        distance = self._open_distance()
        identity = {
            "weights": models.weights_sha256,
            "teacher": models.teacher.sha256 if models.teacher else None,
            "guidance_scale": models.info.guidance_scale,
            "solver": str(config.teacher_solver),
            "seed": config.seed,
            "num_samples": config.num_samples,
            "batch_size": config.batch_size,
            "spaces": [(space.name, space.sha256, space.resizer) for space in self.spaces.values()],
            "reference": self.reference.reference.sha256,
            "lpips": distance.name if distance else None,
            "device": self.ranks.device.type,
            "precision": config.precision,
        }
        # Only the first rank knows the reference, so that its digest counts.
        name = self.ranks.of_first(hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16])
        work = WorkFolder(config.out / WORK, config.mirror and f"{config.mirror.rstrip('/')}/{WORK}")
        return Scorer(work, name, settings, config.num_samples, self.reference.stats, distance, self.ranks)

    def _measured_spaces(self) -> dict[str, FeatureSpace]:
        """The spaces with a reference, the headline's first. Only the first rank knows them."""
        names = json.loads(self.ranks.of_first(json.dumps(list(self.reference.stats))))
        return {name: self.spaces[name] for name in names}

    # The report

    def _report(self, results: Mapping[Sampler, list[Result]]) -> Report:
        rows = [self._row(sampler, results[sampler]) for sampler in self.samplers]
        trajectories = self._fit_trajectories()
        return Report(
            rows=tuple(self._mark_best(rows)),
            metrics=tuple(self.columns),
            spaces=tuple(
                Space(name=space.name, title=space.title, resizer=space.resizer, sha256=space.sha256)
                for space in self.spaces.values()
            ),
            shape=self.models.shape,
            reference=self.reference.reference,
            not_computed=tuple(self.not_computed),
            warnings=tuple(self.warnings),
            num_samples=self.config.num_samples,
            num_ranges=self.config.num_ranges,
            seed=self.config.seed,
            quantiser=self._quantiser(),
            precision=self.config.precision,
            cost=self._costs(),
            trajectories=trajectories,
            curves=provenance.curves(self.models.run),
            checkpoint=str(self.models.folder),
            training=EvaluatedCheckpoint(**self.models.info.model_dump(), weights=self.config.weights),
            command=provenance.command(self.config.out / files.CONFIG, self.ranks.world),
            versions=provenance.versions(),
            machine=provenance.machine(self.ranks.device),
            date=date.today().isoformat(),
        )

    def _quantiser(self) -> str:
        is_used = any(space.of == "images" for space in self.spaces.values())
        return QUANTISER if is_used or not self.spaces else "none: values are compared as they are"

    def _costs(self) -> dict[str, Cost]:
        with fixed_arithmetic(self.config.precision, self.ranks.device):
            return {name: cost.measure(net, self.config.batch_size) for name, net in self.models.networks().items()}

    def _row(self, sampler: Sampler, results: list[Result]) -> Row:
        keys = [key for key in results[0].scores if all(key in result.scores for result in results)]
        scores = {key: Figure(values=tuple(result.scores[key] for result in results)) for key in keys}
        first = results[0]
        if RMSE_TO_TEACHER in self.columns and first.rmse is not None:
            scores[RMSE_TO_TEACHER.key] = Figure(values=(first.rmse,))
        return Row(
            model=sampler.model,
            sampler=sampler.name,
            group=sampler.group,
            nfe=round(sum(result.nfe for result in results) / len(results), 1),
            scores=scores,
            rmse=first.rmse,
            lpips=first.lpips,
            images_per_second=first.images_per_second,
            is_finite=all(result.is_finite for result in results),
        )

    def _mark_best(self, rows: list[Row]) -> Iterator[Row]:
        """The rows, with the teacher's best few-step sampler marked at each number of evaluations."""
        key = self.columns[0].key
        best: dict[float, Row] = {}
        for row in rows:
            if row.group == "few-step" and key in row.scores:
                best[row.nfe] = min(best.get(row.nfe, row), row, key=lambda row: row.scores[key].mean)
        for row in rows:
            yield row.model_copy(update={"best": best.get(row.nfe) is row})

    def _fit_trajectories(self) -> TrajectoryFit | None:
        """The student's fit to the configured trajectories, by default those of its training if they still exist."""
        info, student = self.models.info, self.models.student
        source = self.config.data or self.models.training_data
        if student is None or source is None:
            return None
        try:
            return trajectory_fit.measure(student, info, source, self.config.num_trajectories, self.ranks.device)
        except (BadInput, WorkFailed) as error:
            if self.config.data is not None:
                raise
            self.warnings.append(f"the student was not compared with trajectories: {error}")
            return None


def _raise_failure(pending: Sequence[tuple[Sampler, "Future[Result]"]]) -> None:
    """Raise what a row that is done has raised, before another one is drawn."""
    for _, future in pending:
        if future.done():
            future.result()
