"""The columns, rows and legend of an evaluation's tables, and where its figures come from."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eval.features.clip import NAME as CLIP
from eval.results import Figure, Generation, Metric, PromptSet, Report, Row, Space, Work
from eval.sample_counts import MAX_MANIFOLD_SIZE, OTHERS
from pipeline.common.plural import counted

GROUPS = {
    "solver": "Teacher, own solver",
    "few-step": "Teacher, few steps",
    "student": "Student",
    "reference": "The reference itself",
}
# As in the paper's Tables 4 to 7, with metrics that they lack beside similar ones.
ORDER = ("fid", "is", "kid", "precision", "recall", "density", "coverage")
NONE, NOT_FINITE, BEST = "—", "not finite", "★"
MAX_DECIMALS = 5
NOTHING = "none"  # the resizer and the digest of a feature space that has none
SHA256 = re.compile("[0-9a-f]{64}")
NEGLIGIBLE = 10.0**-MAX_DECIMALS
RMSE_UNITS = "where the range of the data is [-1, 1]"
ABOUT_SHARES = (
    "Precision and density: how far samples lie where the reference does. Recall and coverage: how much of the "
    "reference they reach. 1 is best; density may exceed it."
)


class Cell(NamedTuple):
    """A table's text; a figure over several ranges of noise also has a spread and a minimum."""

    text: str
    spread: str = ""
    minimum: str = ""

    def __str__(self) -> str:
        return self.text + (f" ± {self.spread}" if self.spread else "") + (f", min {self.minimum}" * bool(self.minimum))


@dataclass(frozen=True)
class Column:
    """A heading, and a function that makes each row's cell. The key identifies the column, across runs too."""

    key: str
    heading: str
    cell: Callable[[Row], Cell]


def metric_columns(report: Report, spaces: Sequence[Space] | None = None) -> list[Column]:
    """A column for each metric of `spaces`, by default of all; a heading that occurs twice names its space."""
    names = {space.name for space in (report.spaces if spaces is None else spaces)}
    metrics = sorted((m for m in report.metrics if m.space in names), key=lambda m: (m != report.headline, _rank(m)))
    headings = [metric.heading for metric in metrics]
    return [
        Column(
            metric.key,
            _heading(metric) if headings.count(metric.heading) == 1 else f"{_heading(metric)} ({metric.space})",
            _metric_cell(report, metric),
        )
        for metric in metrics
    ]


def distance_columns(report: Report) -> list[Column]:
    """RMSE, of latents too, and LPIPS to the teacher's own solution, if any row has them."""

    def column(key: str, heading: str) -> Column:
        def cell(row: Row) -> Cell:
            value = getattr(row, key)
            return Cell(NONE if value is None else f"{value:.4f}")

        return Column(key, heading, cell)

    headings = {
        "rmse": "Pixel RMSE" if _has_latents(report) else "RMSE",
        "latent_rmse": "Latent RMSE",
        "lpips": "LPIPS",
    }
    return [
        column(key, heading)
        for key, heading in headings.items()
        if any(getattr(row, key) is not None for row in report.rows)
    ]


def _has_latents(report: Report) -> bool:
    return any(row.latent_rmse is not None for row in report.rows)


def cost_columns(report: Report) -> list[Column]:
    """The size and the cost per evaluation of each row's network."""

    def column(heading: str, field: str) -> Column:
        return Column(
            field,
            heading,
            lambda row: Cell(count_text(getattr(report.cost[row.model], field)) if row.model in report.cost else NONE),
        )

    return [column("Params", "parameters"), column("FLOPs", "flops"), column("MACs", "macs")]


def _drawn(text: Callable[[Row], str]) -> Callable[[Row], Cell]:
    """A cell of rows whose samples a network draws."""
    return lambda row: Cell(NONE if row.group == "reference" else text(row))


NFE = Column("nfe", "NFE", _drawn(lambda row: f"{row.nfe:g}"))


def speed_column(report: Report) -> Column:
    """Samples per second, under the noun of `report`."""
    return Column("speed", f"{report.noun}/s", _drawn(lambda row: speed_text(row.images_per_second)))


def columns(report: Report) -> list[Column]:
    """The columns of the page's table."""
    return [NFE, *metric_columns(report), *distance_columns(report), speed_column(report)]


def grouped(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows under the titles of their groups, in the order of `GROUPS`, without empty groups."""
    groups = [(title, [row for row in rows if row.group == group]) for group, title in GROUPS.items()]
    return [(title, members) for title, members in groups if members]


def reference_rows(report: Report) -> list[Row]:
    """A row of what the reference has by itself, where it was measured: the figures of perfect samples."""
    if not report.reference_scores:
        return []
    sampler = f"{report.num_samples:,} of it against others"
    scores = report.reference_scores
    return [Row(model="reference", group="reference", sampler=sampler, nfe=0, scores=scores, images_per_second=0)]


def count_text(count: float) -> str:
    """ "194 k", "9.42 M", "5.2 G": three significant digits."""
    for unit in ("", "k", "M", "G", "T"):
        if count < 999.5:
            return f"{count:.3g} {unit}".rstrip()
        count /= 1000
    return f"{count:.3g} P"


def is_inception(report: Report, space: Space) -> bool:
    """Whether distances over `space` are an FID and a KID; only Inception's features give those names."""
    return any(kind(metric) in ("fid", "kid") for metric in report.metrics if metric.space == space.name)


def facts(report: Report) -> dict[str, str]:
    """Where the figures come from: texts by name."""
    training = report.training
    return {
        "samples": _samples(report),
        "reference": _reference(report),
        **({"prompts": _prompts(report.prompts)} if report.prompts else {}),
        **{f"features, {space.name}": _features(space) for space in report.spaces},
        "quantiser": report.quantiser,
        **({"precision": _precision(report.precision)} if report.precision else {}),
        "checkpoint": f"{report.checkpoint}, after {counted(training.step, 'step')}",
        "weights": _weights(report),
        **({"teacher": _teacher(training.teacher, training.teacher_sha256)} if training.teacher else {}),
        **({"training data": f"sha256 {training.data_sha256}"} if training.data_sha256 else {}),
        **({"generate": _generation(report.generation)} if report.generation else {}),
        **{name: _work(work) for name, work in _works(report) if work is not None},
        "machine": report.machine,
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "date": report.date,
    }


def _teacher(source: str, digest: str | None) -> str:
    """A function of the user's may give any text as its digest."""
    return f"{source}, {'sha256' if SHA256.fullmatch(digest or '') else 'digest'} {digest}"


def _prompts(prompts: PromptSet) -> str:
    return f"{prompts.num_prompts:,} held out, which take turns, given as {prompts.source}, sha256 {prompts.sha256}"


def _generation(made: Generation) -> str:
    return (
        f"{counted(made.num_records, 'record')} of {counted(made.num_states, 'state')}, {made.solver}, "
        f"{count_text(made.nfe)} evaluations each; {made.device_hours:.3g} device hours on {'; '.join(made.machines)}"
    )


def _works(report: Report) -> list[tuple[str, Work | None]]:
    return [("train", report.training_work), ("evaluate", report.evaluation_work)]


def _work(work: Work) -> str:
    """Such as "0.12 h (0.24 device hours) on x86_64, 1 thread, Python 3.12.3, traflow-pipeline 0.1.0"."""
    hours = "" if work.hours is None else f"{work.hours:.3g} h"
    if work.num_devices > 1 and work.device_hours is not None:
        hours += f" ({work.device_hours:.3g} device hours)"
    return " on ".join(filter(None, (hours, str(work.environment or "")))) or "not recorded"


def _samples(report: Report) -> str:
    text = f"{report.num_samples:,} per row, noise of seed {report.seed}"
    if report.num_ranges == 1:
        return text
    return (
        f"{text}, in each of {report.num_ranges} ranges; ± is the standard deviation over the ranges, and over the "
        "parts of the reference itself; figures without it are of the first range"
    )


def _precision(precision: str) -> str:
    return f"{precision} in the samplers' networks; fp32 in the features, float64 in the Fréchet distance"


def reference_text(report: Report) -> str:
    """The reference in a few words."""
    title, count = report.reference.title, report.reference.num_images
    return title if count is None else f"{title} ({count:,} {report.noun})"


def _reference(report: Report) -> str:
    reference = report.reference
    shape = "" if reference.shape is None else f" of {'x'.join(map(str, reference.shape))}"
    return f"{reference_text(report)}{shape}, given as {reference.source}, sha256 {reference.sha256}"


def weights_file(report: Report) -> str:
    """The name of the evaluated weights' file in the checkpoint."""
    return f"{report.training.weights}.safetensors"


def _weights(report: Report) -> str:
    file = weights_file(report)
    digest = report.training.files.get(file)
    return f"{file}, sha256 {digest}" if digest else file


def _features(space: Space) -> str:
    parts = {"resizing: ": space.resizer, "weights sha256 ": space.sha256}
    return "; ".join([space.title, *(f"{name}{text}" for name, text in parts.items() if text != NOTHING)])


def student_first(groups: list[tuple[str, list[Row]]]) -> list[tuple[str, list[Row]]]:
    """`groups` with the student's before the others."""
    return sorted(groups, key=lambda group: group[0] != GROUPS["student"])


def legend(report: Report, columns: Sequence[Column]) -> list[str]:
    """What the abbreviations, the star and the metrics of a table with `columns` mean."""
    texts = ["NFE: evaluations of the network for a sample."]
    if any(row.best for row in report.rows):
        texts.append(f"{BEST}: the teacher's best sampler with as many evaluations.")
    if distance_columns(report):
        texts.append(f"RMSE: to the teacher's own solution from the same noise, {RMSE_UNITS}.")
    if _has_latents(report):
        texts.append("Latent RMSE: the same before decoding, in units of the latents.")
    if any(column.key.startswith("precision-") for column in columns):
        texts.append(ABOUT_SHARES)
    if report.reference_scores:
        texts.append(
            f"{GROUPS['reference']}: random parts of it against the rest, which is what perfect {report.noun} have."
        )
    elif _could_be_larger(report):
        texts.append(
            f"The reference itself has no row: that takes at most {MAX_MANIFOLD_SIZE // OTHERS:,} samples a row, and a "
            f"reference of {OTHERS} times as many."
        )
    if any(metric.space == CLIP for metric in report.metrics):
        texts.append("CLIP score: 100 max(cos(image, prompt), 0), the mean; more fits the prompts better.")
    return texts


def _heading(metric: Metric) -> str:
    return metric.heading[:1].upper() + metric.heading[1:]


def _could_be_larger(report: Report) -> bool:
    """Whether another reference, or fewer samples, would give the reference itself a row."""
    return report.reference.num_images is not None and report.reference.source != "teacher" and bool(report.spaces)


def kind(metric: Metric) -> str:
    return metric.key.split("-")[0]


def _rank(metric: Metric) -> int:
    """The index of a metric's kind in `ORDER`; every Fréchet distance counts as an FID."""
    name = {"fd": "fid", "kd": "kid"}.get(kind(metric), kind(metric))
    return ORDER.index(name) if name in ORDER else len(ORDER)


def _metric_cell(report: Report, metric: Metric) -> Callable[[Row], Cell]:
    figures = [row.scores[metric.key] for row in report.rows if metric.key in row.scores]
    decimals = _decimals(metric, figures)

    def cell(row: Row) -> Cell:
        figure = row.scores.get(metric.key)
        if figure is None:
            return Cell(NONE if row.is_finite or metric != report.headline else NOT_FINITE)
        if figure.spread is None:
            return Cell(number_text(figure.mean, decimals))
        has_minimum = metric.lower_is_better and row.group != "reference"
        minimum = number_text(figure.minimum, decimals) if has_minimum else ""
        return Cell(number_text(figure.mean, decimals), number_text(figure.spread, decimals), minimum)

    return cell


def headline_text(report: Report, row: Row) -> str:
    """The headline's mean in `row`, as the tables have it."""
    return _metric_cell(report, report.headline)(row).text


def _decimals(metric: Metric, figures: Sequence[Figure]) -> int:
    """Enough decimals for two digits of every distance and one of every spread."""
    sizes = [figure.spread for figure in figures if figure.spread is not None]
    sizes += [abs(figure.mean) / 10 for figure in figures] if metric.lower_is_better else []
    wanted = [-math.floor(math.log10(size)) for size in sizes if NEGLIGIBLE < size < math.inf]
    usual = 2 if metric.lower_is_better or kind(metric) == "is" else 3
    return min(MAX_DECIMALS, max([usual, *wanted]))


def evaluations_text(nfe: float) -> str:
    """ "1 evaluation", "120.9 evaluations"."""
    return counted(nfe, "evaluation")


def speed_text(images_per_second: float) -> str:
    """ "6,690", "53", "0.42": three significant digits at most."""
    if images_per_second < 10:
        return f"{images_per_second:.2g}"
    return f"{float(f'{images_per_second:.3g}'):,.0f}"


def number_text(value: float, decimals: int) -> str:
    """`value` with `decimals` decimals; a zero has no sign."""
    return f"{round(value, decimals) + 0.0:.{decimals}f}"
