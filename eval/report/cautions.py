"""What a reader must know before an evaluation's figures are compared with others."""

from collections.abc import Iterable

from eval.features.clip import NAME as CLIP
from eval.report.gains import short_of
from eval.report.tables import headline_text, is_inception, kind, reference_rows
from eval.results import FULL_NUM_SAMPLES, Figure, NotComputed, Report, Row
from eval.sample_counts import MAX_PAIRS

FAR = 1.5  # times what the reference has by itself


def cautions(report: Report) -> list[str]:
    """What a reader must know before comparing figures, in a text for each caution."""
    texts = _not_fids(report)
    if report.has_few_samples:
        texts.append(_few_samples(report))
    missing = missing_texts(report.not_computed)
    return [*_far_teacher(report), *texts, *missing, *report.warnings]


def missing_texts(not_computed: Iterable[NotComputed]) -> list[str]:
    """A text for each reason why metrics are missing."""
    reasons: dict[str, list[str]] = {}
    for each in not_computed:
        reasons.setdefault(each.reason, []).extend(each.metrics)
    return [f"Not computed ({', '.join(metrics)}): {reason}" for reason, metrics in reasons.items()]


def compared_text(report: Report) -> str:
    """How many samples the headline is over: "1,000 pairs", "4,096 images"."""
    if _is_over_pairs(report):
        return f"{min(report.num_samples, report.reference.num_images or MAX_PAIRS, MAX_PAIRS):,} pairs"
    return f"{report.num_samples:,} {report.noun}"


def _is_over_pairs(report: Report) -> bool:
    return bool(report.metrics) and kind(report.headline) == "w2"


def _not_fids(report: Report) -> list[str]:
    if report.reference.source == "teacher":
        return ["Distances are to the teacher's own samples, not to data: none is an FID, nor comparable with one."]
    if report.noun != "images":  # nobody takes a distance of others for an FID
        return []
    return [
        f"Compared by {space.title}, not by Inception: the Fréchet distance is not an FID and not comparable with one."
        for space in report.spaces
        if space.name != CLIP and not is_inception(report, space)  # CLIP's compares with prompts
    ]


def _few_samples(report: Report) -> str:
    kinds = {kind(metric) for metric in report.metrics}
    if report.noun != "images" or _is_over_pairs(report):
        return f"Over {compared_text(report)}. Distances fall with their number: compare only figures over as many."
    what = "FIDs" if any(is_inception(report, space) for space in report.spaces) else "figures"
    bias = " With fewer samples a Fréchet distance is biased upwards." if kinds & {"fid", "fd"} else ""
    return f"{report.num_samples:,} samples: not comparable with {what} over {FULL_NUM_SAMPLES:,}.{bias}"


def _far_teacher(report: Report) -> list[str]:
    """A text where the teacher's own samples are well behind what the reference has by itself."""
    solver, own = next(iter(report.rows_of("solver")), None), report.reference_scores
    if solver is None or not report.metrics or report.headline.key not in own:
        return []
    found, short = list[str](), short_of(report, solver.scores, own)
    if _is_far(report, solver, own[report.headline.key]):
        texts = [headline_text(report, row) for row in (solver, *reference_rows(report))]
        found = [f"has {report.headline.heading} {texts[0]}, where the reference itself has {texts[1]}"]
    found += [f"falls short of the reference {short}"] if short else []
    learned = "A student learns to draw as its teacher does."
    return [f"The teacher itself {', and '.join(found)}. {learned}"] if found else []


def _is_far(report: Report, solver: Row, own: Figure) -> bool:
    value = report.value(solver)
    if value is None or not report.headline.lower_is_better:
        return False
    return value > FAR * own.mean + (own.spread or 0.0)
