"""Stage 3: evaluate() scores a student beside its teacher, and beside what a user would draw from that one instead.

All rows begin at the same noise, which no training has seen. What is finished stays finished: a kill loses at most a
chunk of samples, and further rows, or ranges of noise, are added to those that are there.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path

from eval.config import EvaluateConfig
from eval.features import spaces
from eval.features.spaces import FeatureSpace
from eval.features.weights import Unavailable
from eval.metrics import cost, distances, trajectory_fit
from eval.metrics.reference import OpenedReference, check_shape, open_reference
from eval.metrics.sample_chunks import SamplingSettings
from eval.metrics.scorer import Result, Scorer
from eval.models import EvaluatedModels, open_subject
from eval.report import files, provenance
from eval.results import Figure, Metric, NotComputed, Reference, Report, Row, Space, Trajectories
from eval.sampling import baselines
from eval.sampling.paths import draw_strips
from eval.sampling.samplers import Sampler, student_sampler, teacher_sampler
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.common.image_grid import is_drawable
from pipeline.common.progress import bar
from pipeline.storage.cache import local_copy_of
from pipeline.storage.lease import hold_lease
from pipeline.storage.store import is_url, open_store
from trainer.checkpoints import mirror
from trainer.distillation.distance import DistanceConfig
from trainer.distributed import Ranks, join_ranks

WORK = "samples"  # what is drawn and scored, inside the report's folder
DIGITS = (1, 8, 8)
PERCEPTUAL_PIXELS = 32  # images from which LPIPS says something by itself
QUANTISER = "x in [-1, 1] to the byte floor(127.5 x + 128), clipped to 0 and 255, as EDM does"
AGREEMENT = Metric(key="rmse", heading="RMSE to teacher", space="", lower_is_better=True)


def evaluate(config: EvaluateConfig) -> Report | None:
    """Sample, measure, and write the report into `config.out`; ranks of torchrun share the sampling.

    Returns the report on the first rank, None on the others.

    Raises:
        BadInput: a checkpoint, reference, feature space or teacher that do not fit together.
        WorkFailed: samples that are not finite, or a required metric that could not be computed.
    """
    with join_ranks(config.device) as ranks:
        if config.out.is_file():
            raise BadInput(f"{config.out} is a file; wanted a folder for the report")
        if ranks.is_first_here:
            mirror.local(config.checkpoint)
        ranks.wait()
        path = local_copy_of(config.checkpoint) if is_url(config.checkpoint) else Path(config.checkpoint)
        subject = open_subject(path, config.weights, config.teacher, ranks.device)
        evaluation = _Evaluation(config, subject, ranks)
        with hold_lease(open_store(str(config.out))) if ranks.is_first else nullcontext():
            return evaluation.run()


class _Evaluation:
    """A run of the command on this rank. What cannot work is said when it is made, before anything is drawn."""

    def __init__(self, config: EvaluateConfig, subject: EvaluatedModels, ranks: Ranks) -> None:
        self.config, self.subject, self.ranks = config, subject, ranks
        self.not_computed: list[NotComputed] = []
        self.warnings: list[str] = []
        self.spaces = dict(self._open_spaces())
        self.reference = self._open_reference()
        self.columns = list(self._list_columns())
        self.samplers = list(self._list_samplers())
        self._check_required()
        self.scorer = self._scorer()

    def run(self) -> Report | None:
        """Draw and score every row, and write the report, on the first rank."""
        jobs = [(sampler, number) for sampler in self.samplers for number in range(self._num_ranges(sampler))]
        share = self.scorer.setting.share(self.config.num_samples, self.ranks)
        results: dict[Sampler, list[Result]] = {sampler: [] for sampler in self.samplers}
        with bar("evaluate", len(jobs) * share) as advance:
            for sampler, number in jobs:
                if (result := self.scorer.measure(sampler, number, advance)) is not None:
                    results[sampler].append(result)
        if not self.ranks.is_first:
            return None
        report = self._report(results)
        grid = {sampler.title: self.scorer.pictures(sampler) for sampler in self.samplers} if self._draws else {}
        strips = (
            draw_strips(self.subject, self.config.teacher_solver, self.config.seed, self.ranks.device)
            if self._draws
            else {}
        )
        files.write(self.config.out, self.config, report, grid, strips, self.subject.run)
        self._copy()
        self.scorer.drop_others()
        self._check_computed(report)
        return report

    def _copy(self) -> None:
        if self.config.mirror is not None:
            files.copy(self.config.out, self.config.mirror)
        if is_url(self.config.checkpoint):
            files.copy(self.subject.run, self.config.checkpoint, (files.CARD,))

    # What samples are measured in, and against

    def _open_spaces(self) -> Iterator[tuple[str, FeatureSpace]]:
        shape = self.subject.shape
        default = ("digits",) if shape == DIGITS else ("inception", "inception-tf")
        for name in default if self.config.features is None else self.config.features:
            try:
                space = spaces.load_space(name, self.ranks.device)
            except Unavailable as error:
                self._give_up(distances.keys([name]), str(error))
                continue
            space.check_shape(shape, "the samples")
            yield space.name, space

    def _open_reference(self) -> OpenedReference | None:
        """On the first rank, which scores."""
        source = self.config.reference or ("digits" if self.subject.shape == DIGITS else None)
        if source is None:
            raise BadInput(
                "evaluate: 'reference' is missing: wanted what to measure against, for example --reference "
                "cifar10.zip, a folder of images, cleanfid:cifar10/train/32, or the statistics of EDM or ADM"
            )
        if not self.ranks.is_first:
            return None
        try:
            opened = open_reference(source, list(self.spaces.values()))
        except Unavailable as error:
            self._give_up(distances.keys(self.spaces), str(error))
            opened = OpenedReference(Reference(source=source, title=source, num_images=None, shape=None, sha256=""), {})
        check_shape(opened.reference, self.subject.shape)
        self.not_computed += opened.not_computed
        self.warnings += opened.notes
        for measured in opened.measured.values():
            self.not_computed += distances.not_computed(self.config.num_samples, measured)
            self.warnings += distances.cautions(self.config.num_samples, measured)
        return opened

    def _open_distance(self) -> DistanceConfig | None:
        shape, backbone = self.subject.shape, self.config.lpips
        small = self._draws and min(shape[1:]) < PERCEPTUAL_PIXELS
        if backbone == "none" or self.subject.teacher is None or (backbone == "auto" and (small or not self._draws)):
            return None
        name = f"lpips-{'alex' if backbone == 'auto' else backbone}"
        distance = DistanceConfig.model_validate({"name": name, "resize": 64 if small else None})
        try:
            distance.prepare(shape)
        except BadInput as error:
            self._give_up(["lpips"], str(error))
            return None
        return distance

    def _list_columns(self) -> Iterator[Metric]:
        """The headline first; where no features can be had, it is the agreement with the teacher."""
        if self.reference is None:
            return
        left_out = {key for gap in self.not_computed for key in gap.metrics}
        found = [
            column
            for name, measured in self.reference.measured.items()
            for column in distances.columns(name, measured.features is not None, has_probabilities=True)
            if column.key not in left_out
        ]
        yield from found or [AGREEMENT]

    def _give_up(self, keys: Sequence[str], why: str) -> None:
        if keys:
            self.not_computed.append(NotComputed(metrics=tuple(keys), reason=why))

    def _check_required(self) -> None:
        asked = [column.key for column in self.columns] + [AGREEMENT.key, "lpips"]
        asked += [key for missing in self.not_computed for key in missing.metrics]
        for key in self.config.require:
            if self.ranks.is_first and key not in asked:
                raise BadInput(
                    f"--require {key}: wanted a metric of this evaluation: {', '.join(dict.fromkeys(asked))}"
                )

    def _check_computed(self, report: Report) -> None:
        computed = {key for row in report.rows for key in row.scores}
        computed |= {key for row in report.rows for key in ("rmse", "lpips") if getattr(row, key) is not None}
        for key in self.config.require:
            if key not in computed:
                why = next((missing.reason for missing in report.not_computed if key in missing.metrics), "")
                raise WorkFailed(f"--require {key}: it was not computed; {why or 'the reference has nothing for it'}")

    # The rows

    @property
    def _draws(self) -> bool:
        return is_drawable(self.subject.shape)

    def _list_samplers(self) -> Iterator[Sampler]:
        """The teacher's own solver first: the others are compared with its samples."""
        teacher, student, info = self.subject.teacher, self.subject.student, self.subject.info
        if teacher is not None:
            yield teacher_sampler(teacher, self.config.teacher_solver)
            for num_evaluations in self.config.baseline_evaluations:
                yield from baselines.baselines(teacher, num_evaluations, self.config.baselines)
        if student is not None:
            for steps in self.config.steps:
                yield student_sampler(student, steps, info.t_start, info.t_end)

    def _num_ranges(self, sampler: Sampler) -> int:
        return 1 if sampler.group == "few-step" else self.config.num_ranges

    def _scorer(self) -> Scorer:
        subject, config = self.subject, self.config
        setting = SamplingSettings(
            shape=subject.shape,
            num_classes=subject.num_classes,
            data_range=subject.data_range,
            seed=config.seed,
            batch_size=config.batch_size,
            spaces=self.spaces,
        )
        distance = self._open_distance()
        identity = {
            "weights": subject.weights_sha256,
            "teacher": subject.teacher.sha256 if subject.teacher else None,
            "guidance_scale": subject.info.guidance_scale,
            "solver": str(config.teacher_solver),
            "seed": config.seed,
            "num_samples": config.num_samples,
            "batch_size": config.batch_size,
            "spaces": [(space.name, space.sha256, space.resizer) for space in self.spaces.values()],
            "reference": self.reference.reference.sha256 if self.reference else None,
            "lpips": distance.name if distance else None,
            "device": self.ranks.device.type,
        }
        # The first rank alone knows the reference.
        folder = self.ranks.of_first(hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16])
        measured = self.reference.measured if self.reference else {}
        return Scorer(config.out / WORK / folder, setting, config.num_samples, measured, distance, self.ranks)

    # The report

    def _report(self, results: Mapping[Sampler, list[Result]]) -> Report:
        assert self.reference is not None
        rows = [self._row(sampler, results[sampler]) for sampler in self.samplers]
        stored = self._measure_trajectories()
        return Report(
            rows=tuple(self._mark_best(rows)),
            metrics=tuple(self.columns),
            spaces=tuple(
                Space(name=space.name, title=space.title, resizer=space.resizer, sha256=space.sha256)
                for space in self.spaces.values()
            ),
            reference=self.reference.reference,
            not_computed=tuple(self.not_computed),
            warnings=tuple(self._warn()),
            num_samples=self.config.num_samples,
            num_ranges=self.config.num_ranges,
            seed=self.config.seed,
            quantiser=QUANTISER,
            cost={name: cost.measure(net, self.config.batch_size) for name, net in self.subject.networks().items()},
            trajectories=stored,
            curves=provenance.curves(self.subject.run),
            checkpoint=str(self.subject.folder),
            training=self.subject.info.model_dump(mode="json") | {"weights": self.config.weights},
            command=provenance.command(self.config.out / files.CONFIG, self.ranks.world),
            versions=provenance.versions(),
            machine=provenance.machine(self.ranks.device),
            date=date.today().isoformat(),
        )

    def _row(self, sampler: Sampler, results: list[Result]) -> Row:
        keys = [key for key in results[0].scores if all(key in result.scores for result in results)]
        scores = {key: Figure(values=tuple(result.scores[key] for result in results)) for key in keys}
        first = results[0]
        if AGREEMENT in self.columns and first.rmse is not None:
            scores[AGREEMENT.key] = Figure(values=(first.rmse,))
        return Row(
            model=sampler.model,
            sampler=sampler.name,
            group=sampler.group,
            nfe=round(sum(result.nfe for result in results) / len(results), 1),
            scores=scores,
            rmse=first.rmse,
            lpips=first.lpips,
            images_per_second=first.images_per_second,
        )

    def _mark_best(self, rows: list[Row]) -> Iterator[Row]:
        """The rows, the best of the teacher's few-step samplers at each number of evaluations marked."""
        key = self.columns[0].key
        best: dict[float, Row] = {}
        for row in rows:
            if row.group == "few-step" and key in row.scores:
                best[row.nfe] = min(best.get(row.nfe, row), row, key=lambda row: row.scores[key].mean)
        for row in rows:
            yield row.model_copy(update={"best": best.get(row.nfe) is row})

    def _measure_trajectories(self) -> Trajectories | None:
        """How the student fits the trajectories that are given, or those of its training where they are still there."""
        info, student = self.subject.info, self.subject.student
        source = self.config.data or info.config.get("data")
        if student is None or source is None:
            return None
        try:
            return trajectory_fit.measure(student, info, source, self.config.num_trajectories, self.ranks.device)
        except (BadInput, WorkFailed) as error:
            if self.config.data is not None:
                raise
            self.warnings.append(f"no trajectories were compared: {error}")
            return None

    def _warn(self) -> Iterator[str]:
        yield from self.warnings
        if (why := baselines.missing()) is not None and self.subject.teacher is not None:
            yield why
