"""Reports to test with: the digits of the quickstart, one of everything, and one of nothing that can be left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.metrics.nearest import NearestImages
from eval.report.pictures import Pictures
from eval.results import (
    Cost,
    Figure,
    Grid,
    Line,
    Metric,
    NotComputed,
    PromptSet,
    Reference,
    Report,
    Row,
    Space,
    TrajectoryFit,
)
from pipeline.common.image_grid import Images
from pipeline.common.point_cloud import draw_points

DIGITS = Space(name="digits", title="digit classifier, 64 features", resizer="none: 8x8 as they are", sha256="5d" * 32)
INCEPTION = Space(name="inception", title="Inception-v3", resizer="clean-fid: bicubic to 299x299", sha256="f5" * 32)
DIGITS_METRICS = (
    Metric(key="fd-digits", heading="Fréchet distance", space="digits", lower_is_better=True),
    Metric(key="precision-digits", heading="Precision", space="digits", lower_is_better=False),
    Metric(key="recall-digits", heading="Recall", space="digits", lower_is_better=False),
)
INCEPTION_METRICS = (
    Metric(key="fid", heading="FID", space="inception", lower_is_better=True),
    Metric(key="kid", heading="KID", space="inception", lower_is_better=True),
    Metric(key="precision-inception", heading="Precision", space="inception", lower_is_better=False),
    Metric(key="recall-inception", heading="Recall", space="inception", lower_is_better=False),
    Metric(key="density-inception", heading="Density", space="inception", lower_is_better=False),
    Metric(key="coverage-inception", heading="Coverage", space="inception", lower_is_better=False),
)
TRAINING: dict[str, Any] = {
    "step": 800,
    "trains": "student",
    "recipe": "anchored",
    "teacher": "digits",
    "teacher_sha256": "c3" * 32,
    "data_sha256": "15" * 32,
    "t_start": 1.0,
    "t_end": 0.0,
    "guidance_scale": 1.0,
    "data_range": [-1.0, 1.0],
    "config": {
        "out": "runs/quickstart/train",
        "recipe": {"name": "anchored", "phases": [{"terms": [{"loss": "output", "weight": 1.0}], "share": 1.0}]},
        "seed": 0,
        "trainer": {"num_steps": 800, "batch_size": 128, "lr": 0.002},
    },
    "weights": "ema",
    "files": {"ema.safetensors": "be" * 32, "network.safetensors": "1e" * 32},
}
# group, sampler, evaluations, Fréchet distance, precision, recall, RMSE, images/s, best
FIGURES: list[tuple[Any, ...]] = [
    ("solver", "dopri5 1e-5", 120.9, (0.44, 0.45, 0.43), 0.874, 0.910, 0.0, 131, False),
    ("few-step", "euler 1", 1, (229.6,), 0.222, 0.0, 0.5244, 13073, True),
    ("few-step", "euler 2", 2, (35.64,), 0.720, 0.295, 0.2802, 7129, False),
    ("few-step", "midpoint 2", 2, (21.3,), 0.741, 0.402, 0.2411, 7201, True),
    ("few-step", "euler 4", 4, (6.35,), 0.844, 0.740, 0.1681, 3781, False),
    ("few-step", "DPM-Solver++ 4", 4, (3.12,), 0.851, 0.803, 0.1302, 3690, True),
    ("few-step", "euler 8", 8, (1.81,), 0.873, 0.862, 0.1022, 1888, False),
    ("few-step", "heun 8, EDM grid", 8, (0.92,), 0.871, 0.889, 0.0621, 1902, True),
    ("student", "1 step", 1, (1.16, 1.18, 1.13), 0.769, 0.904, 0.1507, 11094, False),
    ("student", "2 steps", 2, (0.80, 0.81, 0.79), 0.808, 0.918, 0.1544, 6511, False),
    ("student", "4 steps", 4, (0.65, 0.66, 0.63), 0.847, 0.912, 0.1532, 4253, False),
    ("student", "8 steps", 8, (0.55, 0.57, 0.54), 0.864, 0.907, 0.1534, 2125, False),
]


def row(group: Any, sampler: str, nfe: float, values: Sequence[float], **more: Any) -> Row:
    """A row with a Fréchet distance over the digit classifier's features, and whatever `more` says."""
    own = {"fd-digits": Figure(values=tuple(values))} if values else {}
    scores = {**own, **more.pop("scores", {})}
    model: Any = "student" if group == "student" else "teacher"
    given = {"images_per_second": 1000.0, **more}
    return Row(model=model, sampler=sampler, group=group, nfe=nfe, scores=scores, **given)


def digits_rows() -> tuple[Row, ...]:
    """What the quickstart's evaluation looks like."""
    return tuple(
        row(
            group,
            sampler,
            nfe,
            values,
            scores={"precision-digits": Figure(values=(precision,)), "recall-digits": Figure(values=(recall,))},
            rmse=rmse,
            images_per_second=speed,
            best=best,
        )
        for group, sampler, nfe, values, precision, recall, rmse, speed, best in FIGURES
    )


def digits_report(**changes: Any) -> Report:
    """The quickstart's evaluation, with everything that can be in one."""
    given = {
        "rows": digits_rows(),
        "metrics": DIGITS_METRICS,
        "spaces": (DIGITS,),
        "reference": Reference(
            source="digits", title="scikit-learn's digits", num_images=1797, shape=(1, 8, 8), sha256="ab" * 32
        ),
        "not_computed": (
            NotComputed(
                metrics=("FID", "KID"), reason="Inception's weights are not there: put inception.pt into ~/.cache."
            ),
        ),
        "num_samples": 4096,
        "num_ranges": 3,
        "seed": 0,
        "quantiser": "clip(127.5 x + 128, 0, 255) to bytes, x in [-1, 1]",
        "cost": {
            "teacher": Cost(
                parameters=188_769, flops=9_410_560, macs=4_705_280, latency_ms=2.31, peak_memory_bytes=None
            ),
            "student": Cost(
                parameters=194_081, flops=9_420_800, macs=4_710_400, latency_ms=2.44, peak_memory_bytes=None
            ),
        },
        "trajectories": trajectories(),
        "curves": curves(),
        "checkpoint": "runs/quickstart/train/checkpoints/step-000800",
        "training": TRAINING,
        "command": "traflow-pipeline evaluate --config runs/quickstart/evaluate.yaml",
        "versions": {"traflow-pipeline": "0.1.0", "torch": "2.15.0", "clean-fid": "0.1.35"},
        "machine": "x86_64, 2 threads",
        "date": "2026-11-21",
    }
    return Report.model_validate({**given, **changes})


def bare_report(**changes: Any) -> Report:
    """A student without its teacher, and without all that can be left out."""
    given = {
        "rows": (row("student", "1 step", 1, [2.0]),),
        "metrics": DIGITS_METRICS[:1],
        "not_computed": (),
        "num_ranges": 1,
        "cost": {},
        "trajectories": None,
        "curves": (),
        "training": {**TRAINING, "teacher": None, "files": {}, "data_sha256": None},
        "versions": {},
    }
    return digits_report(**{**given, **changes})


def failed_report() -> Report:
    """A student that is worse than the teacher's Euler steps at one evaluation, as good at two, and better at four."""
    rows = (
        row("solver", "dopri5 1e-5", 100, [0.07]),
        *(row("few-step", f"euler {n}", n, [value], best=True) for n, value in ((1, 0.2), (2, 0.1), (4, 0.09))),
        *(row("student", f"{n} steps", n, [value]) for n, value in ((1, 0.31), (2, 0.1), (4, 0.08))),
    )
    return digits_report(rows=rows)


def prompted_report(prompts: Sequence[str]) -> Report:
    """The evaluation of a student of prompts, of which `prompts` are the first."""
    return digits_report(
        prompts=PromptSet(source="held-out.txt", num_prompts=40, sha256="ab" * 32, shown=tuple(prompts))
    )


def points_report() -> Report:
    """An evaluation of points in the plane, with every metric of values."""
    headings = {
        "w2": "Wasserstein distance",
        "fd": "Fréchet distance",
        "kd": "Kernel distance",
        "precision": "Precision",
        "recall": "Recall",
        "density": "Density",
        "coverage": "Coverage",
        "energy": "Energy distance",
    }
    metrics = tuple(
        Metric(key=f"{key}-values", heading=heading, space="values", lower_is_better="distance" in heading)
        for key, heading in headings.items()
    )
    scores = {metric.key: Figure(values=(0.0123, 0.0125, 0.0119)) for metric in metrics}
    rows = tuple(each.model_copy(update={"scores": scores}) for each in digits_report().rows)
    reference = digits_report().reference.model_copy(update={"shape": (2,)})
    space = Space(name="values", title="the values themselves", resizer="none", sha256="none")
    return digits_report(rows=rows, metrics=metrics, spaces=(space,), shape=(2,), reference=reference, not_computed=())


def drawn_points(report: Report) -> Pictures:
    """A picture of points for each row, and for each state of the paths."""
    points = np.random.default_rng(0).normal(0, 0.3, (1024, 2)).astype(np.float32)
    picture = draw_points(points, (-1.0, 1.0))
    paths = {model: picture.repeat(9, axis=0) for model in ("teacher", "student")}
    return Pictures(samples={row.title: picture for row in report.rows}, paths=paths)


def inception_report(**changes: Any) -> Report:
    """One over Inception's features, in full."""
    scores = {metric.key: Figure(values=(3.42, 3.45, 3.39)) for metric in INCEPTION_METRICS[:1]}
    scores |= {metric.key: Figure(values=(0.00123, 0.00125, 0.00119)) for metric in INCEPTION_METRICS[1:2]}
    scores |= {metric.key: Figure(values=(0.6512, 0.6561, 0.6498)) for metric in INCEPTION_METRICS[2:]}
    rows = tuple(r.model_copy(update={"scores": scores, "lpips": 0.0321}) for r in digits_rows())
    given = {
        "rows": rows,
        "metrics": INCEPTION_METRICS,
        "spaces": (INCEPTION,),
        "num_samples": 50_000,
        "not_computed": (),
    }
    return digits_report(**{**given, **changes})


def trajectories() -> TrajectoryFit:
    """Errors that grow with the length of the jump."""
    times = (1.0, 0.75, 0.5, 0.25, 0.0)
    return TrajectoryFit(
        data="runs/quickstart/data",
        data_sha256="15" * 32,
        seen_in_training=True,
        num_records=2048,
        endpoint_rmse=0.1494,
        state_rmse=Grid(times=times, values=upper(times, 0.15)),
        consistency_gap=Grid(times=times, values=upper(times, 0.06)),
        velocity_rmse=Line(name="velocity", x=(0.0, 0.25, 0.5, 0.75, 1.0), y=(0.31, 0.12, 0.07, 0.05, 0.04)),
        student_straightness=0.0213,
        teacher_straightness=0.0871,
    )


def upper(times: Sequence[float], scale: float) -> tuple[tuple[float | None, ...], ...]:
    """Values over t > s."""
    return tuple(tuple(scale * (t - s) ** 0.5 if t > s else None for s in times) for t in times)


def curves() -> tuple[Line, ...]:
    """Losses that fall."""
    steps = tuple(float(step) for step in range(20, 801, 20))
    falls = {"output": 0.43, "velocity": 0.32, "soft-consistency": 0.09, "grad_norm": 0.63}
    return tuple(
        Line(name=name, x=steps, y=tuple(start * (20 / step) ** 0.4 for step in steps)) for name, start in falls.items()
    )


def pictures(report: Report, num_images: int = 16) -> dict[str, Images]:
    """Noise for each row, the same in each."""
    images = np.random.default_rng(0).integers(0, 256, (num_images, 1, 8, 8), np.uint8)
    return {row.title: images for row in report.rows}


def every_picture(shape: tuple[int, ...] = (1, 8, 8), num_images: int = 64) -> Pictures:
    """Noise for everything that a page can show of `digits_report`, as images of `shape`."""
    report, random = digits_report(), np.random.default_rng(0)

    def images(*size: int) -> Images:
        return random.integers(0, 256, (*size, *shape), np.uint8)

    return Pictures(
        samples={row.title: images(num_images) for row in report.rows},
        paths={f"{model}, noise {n}": images(9) for n in (1, 2, 3) for model in ("teacher", "student")},
        classes={row.title: {f"{n} name": images(6) for n in range(10)} for row in (report.rows[8], report.rows[0])},
        nearest=NearestImages("student, 1 step", images(6), images(6, 3), 1797, DIGITS.title),
    )


HOSTILE = "<script>alert(1)</script>"


def hostile(text: str) -> Report:
    """A report with `text` wherever anyone could put some."""
    rows: tuple[Row, ...] = tuple(
        r.model_copy(update={"sampler": f"{text} {number}"}) for number, r in enumerate(digits_report().rows)
    )
    return digits_report(
        rows=rows,
        spaces=(DIGITS.model_copy(update={"title": text, "resizer": text}),),
        reference=digits_report().reference.model_copy(update={"title": text, "source": text}),
        not_computed=({"metrics": (text,), "reason": text},),
        warnings=(text,),
        quantiser=text,
        checkpoint=text,
        curves=(digits_report().curves[0].model_copy(update={"name": text}),),
        training={**TRAINING, "teacher": text, "recipe": text, "config": {text: text}},
        command=text,
        versions={text: text},
        machine=text,
        date=text,
    )


UNUSUAL = {
    "bare": bare_report(),
    "no metrics": bare_report(
        metrics=(), spaces=(), rows=(row("student", "1 step", 1, [], scores={"fd-digits": Figure(values=(1.0,))}),)
    ),
    "40 rows": digits_report(rows=tuple(row("few-step", f"euler {n}", n, [1.0 / n]) for n in range(1, 41))),
}
