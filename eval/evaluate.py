"""Stage 3: evaluate() compares a student with its teacher and with the teacher's own few-step samplers.

All rows start from the same noise, which no training has seen. Finished work is kept: a kill loses at most one chunk of
samples, and new rows or ranges of noise are added to existing ones.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import date
from typing import Any

import torch

from eval.config import EvaluateConfig
from eval.features import spaces
from eval.features.clip import Clip, find_clip, load_clip
from eval.features.spaces import Features, FeatureSpace
from eval.features.weights import Unavailable
from eval.metrics import cost, distances, trajectory_fit
from eval.metrics.nearest import NearestImages, nearest_images
from eval.metrics.reference import (
    TEACHER,
    OpenedReference,
    await_teacher,
    check_reference,
    check_shape,
    open_reference,
)
from eval.metrics.sample_chunks import SamplingSettings
from eval.metrics.scorer import CLIP_SCORE, Result, Scorer, scoring_thread
from eval.models import EvaluatedModels, find_teacher, find_training_data, open_models, or_without
from eval.prompts import HeldOut, encode_held_out, read_held_out, training_prompts
from eval.report import files, provenance
from eval.report.cautions import missing_texts
from eval.report.pictures import Pictures
from eval.results import (
    Cost,
    EvaluatedCheckpoint,
    Figure,
    Metric,
    NotComputed,
    PromptSet,
    Reference,
    Report,
    Row,
    ScoredCheckpoint,
    Space,
    TrajectoryFit,
    Work,
)
from eval.sample_counts import MIN_SAMPLES
from eval.sampling import baselines
from eval.sampling.by_class import draw_classes
from eval.sampling.checkpoints import checkpoint_samplers
from eval.sampling.grids import OWN
from eval.sampling.paths import draw_strips
from eval.sampling.precision import fixed_arithmetic, in_precision
from eval.sampling.samplers import Sampler, student_sampler, teacher_sampler
from pipeline.common.device import machine
from pipeline.common.environment import Environment
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.common.image_grid import Images, has_pictures, is_drawable, num_shown, to_pictures
from pipeline.common.progress import bar, say, weighted
from pipeline.dataset.conditions import Prompts
from pipeline.dataset.manifest import read_dataset
from pipeline.flow.numerics import check_precision
from pipeline.generation.same_flow import require_same_flow
from pipeline.storage.output import Output, check_output, hold_output
from pipeline.storage.store import Store, is_url, open_store
from pipeline.storage.work_folder import WorkFolder
from pipeline.teachers.loading import TeacherSource
from trainer.checkpoints import mirror
from trainer.checkpoints.model import Model, find_model
from trainer.distillation.distance import DistanceConfig
from trainer.distributed import Ranks, join_ranks

WORK = "samples"  # the folder of chunks and scores, inside the report's folder
CONDITIONS = "conditions"  # that of the table of held-out prompts
NUM_PROMPTS_SHOWN = 8  # on the page
DIGITS = (1, 8, 8)
SCANS = "digits"  # their reference, and the name of the embedded teacher
OTHER_DATA = (
    "The scans of digits are the reference of samples of 1x8x8 where none is given: if this teacher draws anything "
    "else, give --reference."
)
NUM_NEAREST = 6  # samples beside the reference's images that are nearest to them
MIN_LPIPS_PIXELS = 32  # smaller images are enlarged before LPIPS
QUANTISER = "x in [-1, 1] to the byte floor(127.5 x + 128), clipped to 0 and 255, as EDM does"
NO_REFERENCE = (
    "evaluate: 'reference' is missing: wanted images or statistics to compare with, for example --reference "
    "cifar10.zip, a folder of images, cleanfid:cifar10/train/32, EDM's or ADM's statistics, or teacher, its own samples"
)
AGREEMENT = ("rmse", "latent_rmse", "lpips")  # with the teacher's samples
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
        model = find_model(config.checkpoint, config.weights)
        prompts = _prepare_prompts(config, model, ranks)
        models = open_models(model, config.teacher, ranks.device, prompts)
        with fixed_arithmetic("fp32", ranks.device):
            evaluation = _Evaluation(config, models, ranks)
            for text in missing_texts(evaluation.not_computed if ranks.is_first else ()):
                say(f"note: {text}")
            with _hold(config, ranks):
                return evaluation.run()


def _hold(config: EvaluateConfig, ranks: Ranks) -> AbstractContextManager[object]:
    """The first rank holds the leases of what the report is written to."""
    locations = [str(location) for location in (config.out, config.mirror) if location is not None]
    return hold_output(Output.REPORT, *locations) if ranks.is_first else nullcontext()


def _prepare_prompts(config: EvaluateConfig, model: Model, ranks: Ranks) -> HeldOut | None:
    """The held-out prompts, checked and encoded before any network is loaded; None where nothing draws from any."""
    source = find_teacher(model, config.teacher)
    if source is None:
        if config.prompts is not None:
            raise BadInput(f"{config.prompts}: prompts are encoded by a student's teacher; leave --prompts out")
        return None
    training = training_prompts(find_training_data(model.folder, model.info))
    prompts = read_held_out(config.prompts, source, training, _conditions_store(config))
    if prompts is not None:
        if config.clip is not None:
            find_clip(config.clip)
        with _hold(config, ranks):
            encode_held_out(prompts, source, ranks)
    return prompts


def _conditions_store(config: EvaluateConfig) -> Store:
    return open_store(f"{str(config.mirror or config.out).rstrip('/')}/{CONDITIONS}")


def check_evaluate(
    config: EvaluateConfig,
    shape: tuple[int, ...] | None,
    data: str | None,
    teacher: TeacherSource | None = None,
    training: Prompts | None = None,
) -> None:
    """Check what is known before there is a checkpoint: the report's folder, the feature spaces and the reference.

    `shape` is that of the samples as they are shown, `data` the data set that will be there by then, `teacher` what
    loads its teacher, and `training` its prompts, where they are known.

    Raises:
        BadInput: one of them is none, or the prompts are not held out.
        Unavailable: a required metric lacks the network of its feature space.
    """
    if teacher is not None:
        read_held_out(config.prompts, teacher, training, _conditions_store(config))
    if config.clip is not None:
        find_clip(config.clip)
    for location in filter(None, (config.out, config.mirror)):
        check_output(open_store(str(location)), Output.REPORT)
    names = config.features if config.features is not None or shape is None else _default_features(shape)
    for name in names or ():
        try:
            spaces.load_space(name, torch.device("cpu"))
        except Unavailable:
            is_teacher = _reference_of(config, shape) == TEACHER
            if set(config.require) & set(distances.metric_keys([name], is_teacher)):
                raise
    if config.reference is not None and config.reference != data:
        check_reference(config.reference)
    elif _reference_of(config, shape) is None and shape is not None and is_drawable(shape):
        raise BadInput(NO_REFERENCE)


def _reference_of(config: EvaluateConfig, shape: tuple[int, ...] | None) -> str | None:
    """The configured reference, or the default for samples of `shape`, where there is one."""
    if config.reference is None and config.prompts is not None:
        return TEACHER
    return config.reference or (SCANS if shape == DIGITS else None)


def cautions_of_default(config: EvaluateConfig, source: str, teacher: str | None) -> list[str]:
    """What to say of the scans where they are the reference only because nobody named one."""
    is_default = config.reference is None and source == SCANS
    return [OTHER_DATA] if is_default and teacher not in (None, SCANS) else []


def _default_features(shape: tuple[int, ...]) -> tuple[str, ...]:
    if not is_drawable(shape):
        return ("values",)
    return ("digits",) if shape == DIGITS else ("inception", "inception-tf")


class _Evaluation:
    """One run of the command on this rank. The constructor raises every `BadInput`, before anything is drawn."""

    def __init__(self, config: EvaluateConfig, models: EvaluatedModels, ranks: Ranks) -> None:
        self.config, self.models, self.ranks = config, models, ranks
        self.num_samples = config.num_samples or max(len(models.prompts or ()), MIN_SAMPLES)
        self.started = time.monotonic()
        self.not_computed: list[NotComputed] = []
        self._require_same_flow()
        self.warnings: list[str] = [] if models.prompts is None else list(models.prompts.notes)
        self.spaces = dict(self._open_spaces())
        self.reference = self._open_reference()
        self.clip = self._open_clip()
        self.columns = self._list_columns()
        self.samplers = [self._finished(sampler) for sampler in self._list_samplers()]
        self.others = checkpoint_samplers(
            models, str(config.checkpoint), config.checkpoints, config.weights, config.steps, ranks.device
        )
        self.others = [replace(other, sampler=self._finished(other.sampler)) for other in self.others]
        self._check_required()
        self.scorer = self._make_scorer()

    def run(self) -> Report | None:
        """Draw and score every row; the first rank writes the report and returns it."""
        samplers = [*self.samplers, *(other.sampler for other in self.others)]
        jobs = [(sampler, range_index) for sampler in samplers for range_index in range(self._num_ranges(sampler))]
        share = self.scorer.settings.share(self.num_samples, self.ranks)
        pending: list[tuple[Sampler, Future[Result]]] = []
        results: dict[Sampler, list[Result]] = {sampler: [] for sampler in samplers}
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
        files.write(self.config.out, self.config, report, self._pictures(), self.models.run)
        self._upload()
        self.scorer.discard_other_settings()
        self._check_computed(report)
        return report

    def _pictures(self) -> Pictures:
        """Samples of every row, of every class and on their way from noise; none if samples have no pictures."""
        if not has_pictures(self.models.picture_shape):
            return Pictures()
        config, device = self.config, self.ranks.device
        return Pictures(
            samples={sampler.title: self.scorer.first_images(sampler) for sampler in self.samplers},
            paths=draw_strips(self.models, config.teacher_solver, config.seed, device),
            classes=draw_classes(self.models, self._shortest(), config.seed, device),
            nearest=self._nearest(),
            reference=self._draw_reference(),
        )

    def _draw_reference(self) -> Images | None:
        """One picture of as many of the reference as a row shows, if it is of points in the plane."""
        stats = next(iter(self.reference.stats.values()), None)
        shape = self.models.picture_shape
        if is_drawable(shape) or stats is None or stats.features is None or stats.features.shape[1:] != shape:
            return None
        return to_pictures(distances.spread_rows(stats.features, num_shown(shape, 0)), self.models.data_range)

    def _shortest(self) -> list[Sampler]:
        """The student's sampler of the fewest evaluations, and the teacher's own solver, where there are such."""
        students = [sampler for sampler in self.samplers if sampler.group == "student"]
        solvers = [sampler for sampler in self.samplers if sampler.group == "solver"]
        return [*sorted(students, key=lambda sampler: sampler.evaluations)[:1], *solvers]

    def _nearest(self) -> NearestImages | None:
        """The reference's images nearest to the student's first samples, or the teacher's; None without images."""
        images, stats = self.reference.images, next(iter(self.reference.stats.values()), None)
        if images is None or stats is None or not is_drawable(self.models.picture_shape):
            return None
        sampler = self._shortest()[0]
        samples = self.scorer.first_images(sampler)[:NUM_NEAREST]
        return nearest_images(sampler.title, samples, images, self.spaces[stats.space], stats)

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
                self._skip(self._keys([name]), f"{error}{self._other_features(shape)}")
                continue
            space.check_shape(shape, "the samples")
            yield space.name, space

    def _other_features(self, shape: tuple[int, ...]) -> str:
        return "; --features names others, such as values" if math.prod(shape) <= spaces.MAX_VALUES else ""

    def _keys(self, names: Iterable[str]) -> tuple[str, ...]:
        """The keys of every metric in the feature spaces of these names."""
        return distances.metric_keys(names, self._is_to_teacher)

    @property
    def _is_to_teacher(self) -> bool:
        """Whether the reference is the samples of the teacher's own solver."""
        return _reference_of(self.config, self.models.picture_shape) == TEACHER

    def _open_reference(self) -> OpenedReference:
        """The reference; without statistics on ranks other than the first, which alone scores."""
        source = _reference_of(self.config, self.models.picture_shape)
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
            reference = (
                self._await_teacher() if self._is_to_teacher else open_reference(source, [*self.spaces.values()])
            )
        except Unavailable as error:
            self._skip(self._keys(self.spaces), str(error))
            return empty
        check_shape(reference.reference, self.models.picture_shape)
        self.not_computed += reference.not_computed
        self.warnings += reference.notes
        self.warnings += cautions_of_default(self.config, source, self.models.info.teacher)
        for size in reference.sizes.values():
            self.not_computed += distances.not_computed(self.num_samples, size)
            self.warnings += distances.cautions(self.num_samples, size)
        return reference

    def _await_teacher(self) -> OpenedReference:
        """The samples of the teacher's own solver, of the same prompts and from the same noise."""
        teacher, config = self.models.teacher, self.config
        if teacher is None:
            raise BadInput(f"--reference {TEACHER}: wanted the student's teacher; leave teacher=none out")
        identity = [teacher.sha256, self.models.info.guidance_scale, str(config.teacher_solver), config.seed]
        identity += [self.num_samples, self.models.prompts and self.models.prompts.conditions.model_dump()]
        return await_teacher(
            json.dumps(identity), self.num_samples, self.models.picture_shape, list(self.spaces.values())
        )

    def _open_clip(self) -> Clip | None:
        """What scores pictures and their prompts; None without prompts, or without its weights."""
        if self.models.prompts is None or not is_drawable(self.models.picture_shape):
            return None
        try:
            return load_clip(self.config.clip, self.ranks.device)
        except Unavailable as error:
            self._skip([CLIP_SCORE.key], str(error))
            return None

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
            for name, size in self.reference.sizes.items()
            for column in distances.columns(name, size.num_kept is not None, True, size.is_teacher)
            if column.key not in skipped
        ]
        return (columns or [RMSE_TO_TEACHER]) + ([CLIP_SCORE] if self.clip else [])

    def _skip(self, keys: Sequence[str], reason: str) -> None:
        if keys:
            self.not_computed.append(NotComputed(metrics=tuple(keys), reason=reason))

    def _check_required(self) -> None:
        """Raises `BadInput` if a required metric is none of this evaluation's, computed or not."""
        keys = [column.key for column in self.columns] + list(AGREEMENT)
        keys += [key for missing in self.not_computed for key in missing.metrics]
        for key in self.config.require:
            if self.ranks.is_first and key not in keys:
                raise BadInput(f"--require {key}: wanted a metric of this evaluation: {', '.join(dict.fromkeys(keys))}")

    def _check_computed(self, report: Report) -> None:
        """Raises `WorkFailed` if a required metric has no figure."""
        computed = {key for row in report.rows for key in row.scores}
        computed |= {key for row in report.rows for key in AGREEMENT if getattr(row, key) is not None}
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
            grids = (*config.baseline_grids, *([OWN] if teacher.shift != 1 else []))
            for num_evaluations in config.evaluations:
                yield from baselines.baseline_samplers(teacher, num_evaluations, config.baselines, grids)
        if student is not None:
            for steps in self.config.steps:
                yield student_sampler(student, steps, info.t_start, info.t_end, info.step_shift)

    def _finished(self, sampler: Sampler) -> Sampler:
        """`sampler` in the configured precision, its latents decoded."""
        return replace(in_precision(sampler, self.config.precision, self.ranks.device), decode=self.models.decode)

    def _num_ranges(self, sampler: Sampler) -> int:
        return 1 if sampler.is_brief else self.config.num_ranges

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
            in_turn=models.prompts is not None,
            clip=self.clip,
        )
        distance = self._open_distance()
        identity: dict[str, Any] = {
            "weights": models.weights_sha256,
            "teacher": models.teacher.sha256 if models.teacher else None,
            "guidance_scale": models.info.guidance_scale,
            "solver": str(config.teacher_solver),
            "seed": config.seed,
            "num_samples": self.num_samples,
            "batch_size": config.batch_size,
            "spaces": [(space.name, space.sha256, space.resizer) for space in self.spaces.values()],
            "reference": self.reference.reference.sha256,
            "lpips": distance.name if distance else None,
            "device": self.ranks.device.type,
            "precision": config.precision,
        }
        if models.prompts is not None:
            identity["prompts"] = models.prompts.conditions.model_dump()
            identity["clip"] = self.clip.images.sha256 if self.clip else None
        # Only the first rank knows the reference, so that its digest counts.
        name = self.ranks.of_first(hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16])
        work = WorkFolder(config.out / WORK, config.mirror and f"{config.mirror.rstrip('/')}/{WORK}")
        stats = None if self._is_to_teacher else self.reference.stats
        return Scorer(
            work, name, settings, self.num_samples, stats, distance, self.ranks, prompt_features=self._embed_prompts()
        )

    def _embed_prompts(self) -> Features | None:
        """The features of the prompts, for the CLIP score, which the first rank computes."""
        if self.clip is None or self.models.prompts is None or not self.ranks.is_first:
            return None
        features, num_cut = self.clip.embed(self.models.prompts.prompts.prompts)
        if num_cut:
            self.warnings.append(
                f"CLIP score: {num_cut} of {len(features)} prompts are longer than CLIP takes, and cut"
            )
        return features

    def _measured_spaces(self) -> dict[str, FeatureSpace]:
        """The spaces with a reference, the headline's first. Only the first rank knows them."""
        names = json.loads(self.ranks.of_first(json.dumps(list(self.reference.sizes))))
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
                for space in (*self.spaces.values(), *([self.clip.images] if self.clip else []))
            ),
            shape=self.models.shape,
            reference=self.reference.reference,
            reference_scores={key: Figure(values=values) for key, values in self.scorer.score_reference().items()},
            prompts=self._prompt_set(),
            not_computed=tuple(self.not_computed),
            warnings=tuple(self.warnings),
            num_samples=self.num_samples,
            num_ranges=self.config.num_ranges,
            seed=self.config.seed,
            quantiser=self._quantiser(),
            precision=self.config.precision,
            cost=self._costs(),
            trajectories=trajectories,
            curves=provenance.curves(self.models.run),
            other_checkpoints=self._scored_checkpoints(results),
            checkpoint=str(self.models.folder),
            teacher_name=self.models.teacher.name if self.models.student and self.models.teacher else None,
            training=EvaluatedCheckpoint(**self.models.info.model_dump(), weights=self.config.weights),
            command=provenance.command(self.config.out / files.CONFIG, self.ranks.world),
            versions=provenance.versions(),
            machine=machine(self.ranks.device),
            date=date.today().isoformat(),
            generation=provenance.generation(self.models.training_data),
            training_work=provenance.training_work(self.models.run, self.models.info),
            evaluation_work=self._work(),
        )

    def _prompt_set(self) -> PromptSet | None:
        held_out = self.models.prompts
        if held_out is None:
            return None
        shown = held_out.prompts.prompts[:NUM_PROMPTS_SHOWN]
        return PromptSet(source=held_out.path, num_prompts=len(held_out), sha256=held_out.sha256, shown=shown)

    def _work(self) -> Work:
        """What this process has taken; what others had finished before is not in it."""
        hours = (time.monotonic() - self.started) / provenance.HOUR
        return Work(hours=hours, num_devices=self.ranks.world, environment=Environment.here(machine(self.ranks.device)))

    def _quantiser(self) -> str:
        is_used = any(space.of == "images" for space in self.spaces.values())
        return QUANTISER if is_used or not self.spaces else "none: values are compared as they are"

    def _costs(self) -> dict[str, Cost]:
        with fixed_arithmetic(self.config.precision, self.ranks.device):
            return {name: cost.measure(net, self.config.batch_size) for name, net in self.models.networks().items()}

    def _scored_checkpoints(self, results: Mapping[Sampler, list[Result]]) -> tuple[ScoredCheckpoint, ...]:
        rows: dict[int, list[Row]] = {}
        for other in self.others:
            row = self._row(other.sampler, results[other.sampler]).model_copy(update={"sampler": other.row})
            rows.setdefault(other.step, []).append(row)
        return tuple(ScoredCheckpoint(step=step, rows=tuple(each)) for step, each in rows.items())

    def _row(self, sampler: Sampler, results: list[Result]) -> Row:
        keys = [key for key in results[0].scores if all(key in result.scores for result in results)]
        scores = {key: Figure(values=tuple(result.scores[key] for result in results)) for key in keys}
        first = results[0]
        if RMSE_TO_TEACHER in self.columns and first.rmse is not None:
            scores[RMSE_TO_TEACHER.key] = Figure(values=(first.rmse,))
        return Row(
            model=sampler.model,
            sampler=sampler.name,
            group=sampler.row_group,
            nfe=round(sum(result.nfe for result in results) / len(results), 1),
            scores=scores,
            rmse=first.rmse,
            latent_rmse=first.latent_rmse,
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

    def _require_same_flow(self) -> None:
        """Raises `BadInput` if the teacher is a function of the user's that did not make the student's trajectories."""
        teacher, data = self.models.teacher, self.config.data or self.models.training_data
        if teacher is None or data is None or not self.models.has_own_code:
            return
        dataset = None
        with suppress(BadInput, WorkFailed):  # the comparison with the trajectories says what is wrong with them
            store = open_store(data)
            dataset = read_dataset(store)
        if dataset is not None:
            with suppress(WorkFailed), or_without():
                require_same_flow(store, dataset.plan, teacher, self.ranks.device)


def _raise_failure(pending: Sequence[tuple[Sampler, "Future[Result]"]]) -> None:
    """Raise what a row that is done has raised, before another one is drawn."""
    for _, future in pending:
        if future.done():
            future.result()
