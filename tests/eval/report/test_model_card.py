import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from eval.report import markdown
from eval.report.model_card import card
from eval.results import Report
from pipeline import networks
from tests.support.problems import tiny_config
from tests.support.reports import TRAINING, bare_report, digits_report, inception_report, row


def front_matter(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(matter)
    return found


def example(text: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return str(found)


def teacher_report() -> Report:
    rows = (row("solver", "dopri5 1e-5", 100, [1.0]), row("few-step", "euler 1", 1, [9.0], best=True))
    training = {**TRAINING, "trains": "teacher", "teacher": None, "teacher_sha256": None, "recipe": "flow-matching"}
    return digits_report(rows=rows, training=training, trajectories=None)


def test_the_front_matter_is_what_hugging_face_reads() -> None:
    matter = front_matter(card(digits_report()))
    assert matter["pipeline_tag"] == "unconditional-image-generation"
    assert matter["library_name"] == "traflow-pipeline"
    assert matter["license"] == "other"
    assert "arxiv:2502.16972" in matter["tags"]


def test_the_card_has_the_same_table_and_remarks_as_the_report() -> None:
    for report in (digits_report(), inception_report(), bare_report()):
        text = card(report)
        assert markdown.table(report) in text
        assert markdown.bullets(markdown.remarks(report)) in text


def test_the_card_says_what_it_is_made_of_and_whom_to_cite() -> None:
    text = card(digits_report())
    for part in (
        *("distilled from digits", "be" * 32, "c3" * 32, "15" * 32, "anchored, 800 steps", "num_steps: 800"),
        *("2502.16972", "wu2025scot", "None was chosen", "digits: MIT", "not examined"),
        "traflow-pipeline sample checkpoints/step-000800 --steps 4 --out samples.png",
    ):
        assert part in text, part


@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_example_of_a_student_draws_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_classes: int
) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "checkpoints" / "step-000800"
    folder.mkdir(parents=True)
    networks.save(folder / "ema.safetensors", networks.build(tiny_config(second_time=True, num_classes=num_classes)))
    monkeypatch.chdir(tmp_path)
    exec(example(card(digits_report())), {})
    assert Image.open("samples.png").width > 100


def test_the_example_of_a_teacher_draws_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "checkpoints" / "step-000800"
    folder.mkdir(parents=True)
    networks.save(folder / "ema.safetensors", networks.build(tiny_config()))
    monkeypatch.chdir(tmp_path)
    text = card(teacher_report())
    exec(example(text), {})
    assert Image.open("samples.png").width > 100
    assert "# A rectified flow" in text
    assert "student" not in text.partition("## How it was made")[0].replace("Student", "")
    assert "liu2022flow" in text


def test_a_checkpoint_that_lies_alone_is_beside_its_card() -> None:
    text = card(digits_report(checkpoint="weights of mine"))
    assert "traflow-pipeline sample . --steps 4" in text
    assert "'ema.safetensors'" in example(text)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a | b", "**a**", "a\n---\nlicense: mit"])
def test_a_name_in_the_card_is_text_wherever_it_stands(name: str) -> None:
    report = digits_report(
        rows=(row("student", name, 1, [1.0]),),
        training={**TRAINING, "teacher": name, "recipe": name, "config": {name: name}},
        warnings=(name,),
        machine=name,
    )
    text = card(report)
    assert front_matter(text)["license"] == "other"
    body = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert "<script" not in body
    assert body.count("<h1>") == 1
    assert body.count("<h2>") == 6
