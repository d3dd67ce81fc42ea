import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.report import page
from eval.report.pictures import Pictures
from eval.results import Figure, Report
from tests.support.reports import (
    DIGITS,
    HOSTILE,
    INCEPTION_METRICS,
    TRAINING,
    bare_report,
    digits_report,
    every_picture,
    hostile,
    inception_report,
    pictures,
    row,
)


class Document(HTMLParser):
    """What a page holds: its texts by the innermost tag, what it would load, and its table rows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.rows: list[tuple[str, list[str]]] = []
        self.text = ""
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") or "", []))
        if tag in ("td", "th"):
            self.rows[-1][1].append("")

        self.in_cell = self.in_cell or tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][1][-1] += data

    def pngs(self) -> list[Image.Image]:
        found = [link for link in self.links if link.startswith("data:image/png;base64,")]
        return [Image.open(BytesIO(base64.b64decode(link.partition(",")[2]))) for link in found]


def shown(report: Report, **more: Any) -> Document:
    return Document(page.render(report, Pictures(**{"samples": pictures(report), **more})))


def test_the_table_has_the_student_first_then_the_solver_and_the_best_and_the_rest_on_demand() -> None:
    html = page.render(digits_report())
    before, _, after = html.partition("<details>")
    chosen, others = Document(before), Document(after.partition("</details>")[0])
    names = [cells[0] for kind, cells in chosen.rows if kind.split()[:1] in (["student"], ["solver"], ["few-step"])]
    assert names == [
        *("1 step", "2 steps", "4 steps", "8 steps"),
        *("dopri5 1e-5", "euler 1 ★", "midpoint 2 ★", "DPM-Solver++ 4 ★", "heun 8, EDM grid ★"),
    ]
    assert "euler 8" in [cells[0] for _, cells in others.rows]


def test_without_a_best_one_all_of_the_teachers_samplers_are_shown() -> None:
    rows = tuple(r.model_copy(update={"best": False}) for r in digits_report().rows)
    document = shown(digits_report(rows=rows), samples={})
    assert len([cells for kind, cells in document.rows if kind.split()[:1] == ["few-step"]]) == 7
    assert document.tags.count("details") == 1  # the configuration


def test_figures_over_ranges_have_their_spread_and_minimum() -> None:
    document = shown(inception_report())
    (student,) = [cells for kind, cells in document.rows if kind == "student" and cells[0] == "1 step"]
    assert student[2:5] == ["3.42± 0.03min 3.39", "0.00122± 0.00003min 0.00119", "0.652± 0.003"]


def test_the_page_needs_nothing_but_itself() -> None:
    document = shown(digits_report(), paths=pictures(digits_report()))
    assert document.links
    assert all(link.startswith("data:") for link in document.links)
    assert not {"script", "iframe", "object", "embed", "form"} & set(document.tags)
    assert "@import" not in document.text
    assert "url(" not in document.text


def test_the_strip_is_the_teacher_its_euler_and_the_student_in_one_two_and_four_evaluations() -> None:
    html = page.render(digits_report(), every_picture())
    strip = html.partition('class="tiles strip"')[2].partition("</details>")[0]
    first, _, every = strip.partition("<details>")
    assert re.findall(r"<b>(.*?)</b>", first) == [
        *(
            "Teacher&#39;s solver, dopri5 1e-5",
            "Teacher, euler 1",
            "Student, 1 step",
            "Student, 2 steps",
            "Student, 4 steps",
        ),
    ]
    assert "1 evaluation, Fréchet distance 229.60" in first
    assert len(re.findall(r"<b>(.*?)</b>", every)) == len(digits_report().rows)


def test_there_is_a_grid_of_each_of_the_student_s_rows_and_of_the_teacher() -> None:
    html = page.render(digits_report(), every_picture())
    grids = html.split('class="tiles grid"')[1:]
    assert [re.findall(r'aria-label="(.*?), [\d.]+ eval', grid)[0] for grid in grids] == [
        *("64 samples: student, 1 step", "64 samples: student, 2 steps", "64 samples: student, 4 steps"),
        *("64 samples: student, 8 steps", "64 samples: teacher&#39;s solver, dopri5 1e-5"),
    ]


def test_classes_neighbours_and_paths_have_their_places() -> None:
    text = " ".join(shown(digits_report(), **vars(every_picture())).text.split())
    for part in ("Samples of each class", "3 name", "From noise to image", "Student, noise 3"):
        assert part in text, part
    assert "the nearest of 1,797 images of the reference, scikit-learn's digits, by the Euclidean distance" in text
    assert f"between features of {DIGITS.title}" in text


def test_a_picture_keeps_every_pixel() -> None:
    pictures = every_picture()
    first, *_ = shown(digits_report(), **vars(pictures)).pngs()
    assert np.array_equal(np.asarray(first), pictures.samples["teacher's solver, dopri5 1e-5"][0, 0])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 64), (3, 512, 512)])
def test_a_page_stays_below_two_megabytes(shape: tuple[int, ...]) -> None:
    assert len(page.render(digits_report(), every_picture(shape, 16 if shape[1] > 64 else 64))) < 2_000_000


def test_the_same_report_makes_the_same_bytes() -> None:
    assert page.render(digits_report(), every_picture()) == page.render(digits_report(), every_picture())


def test_points_in_the_plane_are_one_picture_a_row_and_no_grid() -> None:
    cloud = np.full((1, 1, 96, 96), 255, np.uint8)
    html = page.render(digits_report(), Pictures(samples={row.title: cloud for row in digits_report().rows}))
    assert 'class="tiles single"' in html
    assert "Random samples" not in html
    assert "<b>Reference</b>" not in html
    samples = {row.title: cloud for row in digits_report().rows}
    assert "<b>Reference</b>" in page.render(digits_report(), Pictures(samples=samples, reference=cloud))


def test_without_pictures_there_are_none() -> None:
    document = shown(digits_report(), samples={})
    assert "img" not in document.tags
    assert "same noise down" not in document.text


def test_the_page_names_things_and_no_paths() -> None:
    training = {**TRAINING, "teacher": "/home/ada/models/tiny.safetensors", "config": {"data": "/home/ada/runs/a/data"}}
    report = digits_report(
        training=training,
        checkpoint="runs/a/train/checkpoints/step-000800",
        command="traflow-pipeline evaluate --config /home/ada/runs/a/report/evaluate.yaml",
        warnings=("s3://bucket/runs/a: cannot be read", "put it into ~/.cache/traflow/weights.pt"),
        reference={**digits_report().reference.model_dump(), "source": "/home/ada/images.npz"},
    )
    html = page.render(report)
    for part in ("/home/ada", "runs/a", "s3://", "~/.cache/traflow"):
        assert part not in html, part
    text = Document(html).text
    for part in (
        "A student of “tiny.safetensors”",
        "step-000800",
        "--config evaluate.yaml",
        "weights.pt",
        "images.npz",
    ):
        assert part in text, part


def test_headings_go_down_one_level_at_a_time() -> None:
    tags = shown(digits_report(), **vars(every_picture())).tags
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_everything_that_is_there_has_its_place() -> None:
    text = " ".join(shown(digits_report()).text.split())
    for part in (
        *("At 1 evaluation the student has Fréchet distance 1.16", "Not computed (FID, KID)", "194,081", "2.44 ms"),
        *("Over 2,048 stored trajectories, which the training has seen", "0.0213", "0.0871", "soft-consistency"),
        *("traflow-pipeline evaluate --config", "num_steps: 800", "ab" * 32, "1,797 images", DIGITS.resizer),
    ):
        assert part in text, part


def test_nothing_is_said_of_what_is_not_there() -> None:
    text = shown(bare_report()).text
    for part in ("trajectories", "Cost of", "Training\n", "Not computed", "At 1 evaluation"):
        assert part not in text, part


@pytest.mark.parametrize(
    ("seen", "words"), [(True, "which the training has seen"), (False, "which no training has seen")]
)
def test_trajectories_of_the_training_are_called_so(seen: bool, words: str) -> None:
    stored = digits_report().trajectories
    assert stored is not None
    report = digits_report(trajectories=stored.model_copy(update={"seen_in_training": seen}))
    assert words in " ".join(shown(report).text.split())


def test_a_heat_map_is_darkest_at_the_largest_value_and_empty_where_there_is_none() -> None:
    html = page.render(digits_report())
    shares = {text: float(share) for share, text in re.findall(r'--share: ([\d.]+)">([\d.]+)</td>', html)}
    assert shares["0.150"] == page.DEEPEST == max(shares.values())
    assert shares["0.075"] == pytest.approx(page.DEEPEST / 2)
    assert '<td style="--share: 0.0"></td>' in html


def test_a_heat_map_of_zeros_has_no_colour() -> None:
    stored = digits_report().trajectories
    assert stored is not None
    flat = stored.consistency_gap.model_copy(update={"values": ((None, 0.0), (None, None)), "times": (1.0, 0.0)})
    heat = page.HeatMap.of("gap", flat)
    assert (heat.times, heat.rows) == (["0"], [("1", [("0.000", 0.0)])])


@pytest.mark.parametrize("text", [HOSTILE, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "</style><b>"])
def test_what_the_page_is_given_is_shown_as_text(text: str) -> None:
    report = hostile(text)
    clean, dirty = (
        Document(page.render(digits_report(curves=digits_report().curves[:1]))),
        Document(page.render(report)),
    )
    assert set(dirty.tags) == set(clean.tags)
    assert dirty.text.count(text) > 25
    compared = Document(page.render_comparison([(text, report, None), ("b", digits_report(), None)]))
    assert "script" not in compared.tags
    assert "img" not in compared.tags
    assert text in compared.text


def test_a_value_over_other_features_is_never_called_fid() -> None:
    text = shown(digits_report(not_computed=())).text
    assert text.count("is not an FID and not comparable with one") == text.count("it is no FID") == 1
    assert text.count("FID") == 2
    assert "no FID" not in shown(inception_report()).text


@pytest.mark.parametrize("changes", [{"metrics": ()}, {"metrics": (), "spaces": ()}, {"num_ranges": 1}])
def test_whatever_is_missing_there_is_a_page(changes: dict[str, Any]) -> None:
    assert shown(bare_report(**changes)).rows
    assert page.render_comparison([("a", bare_report(**changes), None)])


# Several runs


def compared(*runs: tuple[str, Report]) -> Document:
    return Document(page.render_comparison([(name, report, None) for name, report in runs]))


def test_runs_stand_in_one_table_a_row_for_each_number_of_evaluations() -> None:
    document = compared(("first", digits_report()), ("second", digits_report()))
    rows = [cells for _, cells in document.rows if cells[1].endswith(("step", "steps"))]
    assert [cells[:3] for cells in rows] == [
        *(["first", "1 step", "1"], ["", "2 steps", "2"], ["", "4 steps", "4"], ["", "8 steps", "8"]),
        *(["second", "1 step", "1"], ["", "2 steps", "2"], ["", "4 steps", "4"], ["", "8 steps", "8"]),
    ]
    assert "do not compare" not in document.text
    assert "How the trainings differ" not in document.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_samples": 1000}, "Not the same numbers of samples. a: 4,096. b: 1,000."),
        ({"seed": 7}, "Not the same seeds of the noise. a: 0. b: 7."),
        ({"quantiser": "rounded"}, "b: rounded."),
        ({"spaces": (DIGITS.model_copy(update={"sha256": "00" * 32}),)}, "Not the same feature networks."),
        ({"reference": {**digits_report().reference.model_dump(), "sha256": "00" * 32}}, "Not the same references."),
        ({"training": {**TRAINING, "teacher_sha256": "00" * 32}}, "Not the same teachers"),
        ({"machine": "abacus"}, "Not the same machines"),
    ],
)
def test_what_makes_runs_incomparable_is_said(changes: dict[str, Any], words: str) -> None:
    document = compared(("a", digits_report()), ("b", digits_report(**changes)))
    assert "Not all figures of these runs are comparable" in document.text
    assert words in document.text


def test_runs_over_other_features_share_no_column() -> None:
    values = {metric.key: Figure(values=(3.0,)) for metric in INCEPTION_METRICS}
    other = inception_report(rows=(row("student", "1 step", 1, [], scores=values),))
    document = compared(("a", digits_report()), ("b", other))
    assert "Not the same headline metrics. a: Fréchet distance. b: FID." in document.text
    head = document.rows[0][1]
    assert {"Fréchet distance", "FID", "Precision (precision-digits)", "Precision (precision-inception)"} < set(head)
    first = document.rows[1][1]
    assert first[head.index("FID")] == "—"


def test_only_what_differs_between_the_trainings_is_listed() -> None:
    config = {**TRAINING["config"], "trainer": {**TRAINING["config"]["trainer"], "lr": 0.01, "warmup_steps": 5}}
    document = compared(("a", digits_report()), ("b", digits_report(training={**TRAINING, "config": config})))
    (start,) = [number for number, (_, cells) in enumerate(document.rows) if cells[0] == "setting"]
    assert [cells for _, cells in document.rows[start:]] == [
        *(["setting", "a", "b"], ["trainer.lr", "0.002", "0.01"], ["trainer.warmup_steps", "—", "5"]),
    ]


def test_a_nested_difference_has_the_place_in_its_list() -> None:
    recipe = {"name": "anchored", "phases": [{"terms": [{"loss": "output", "weight": 2.0}], "share": 1.0}]}
    config = {**TRAINING["config"], "recipe": recipe}
    document = compared(("a", digits_report()), ("b", digits_report(training={**TRAINING, "config": config})))
    assert document.rows[-1][1] == ["recipe.phases.0.terms.0.weight", "1.0", "2.0"]


def test_the_grids_of_runs_stand_below_each_other() -> None:
    buffer = BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format="png")
    runs = [("a", digits_report(), buffer.getvalue()), ("b", digits_report(), None)]
    assert len(Document(page.render_comparison(runs)).pngs()) == 1
