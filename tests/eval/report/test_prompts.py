"""The table of held-out prompts on the page: which rows and pictures it shows, and of how much of a prompt."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from eval.report.prompts import MAX_CHARACTERS, PromptTable, prompt_table
from eval.results import Report
from pipeline.common.image_grid import MAX_CELL, MAX_EXACT, Images, encode_picture, shrink
from tests.support.reports import digits_report, pictures, prompted_report

PROMPTS = ("a dog", "<b>fog</b>", "x" * 1000)


def table(report: Report, images: dict[str, Images]) -> PromptTable:
    found = prompt_table(report, images)
    assert found is not None
    return found


def decoded(source: str) -> Images:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))))


def test_each_prompt_stands_beside_the_teacher_and_the_student_in_few_evaluations() -> None:
    report = prompted_report(PROMPTS)
    images = pictures(report)
    found = table(report, images)
    assert [row.title for row in found.columns] == [
        *("teacher's solver, dopri5 1e-5", "student, 1 step", "student, 2 steps", "student, 4 steps"),
    ]
    for number, (_, cells) in enumerate(found.rows):
        for row, cell in zip(found.columns, cells, strict=True):
            np.testing.assert_array_equal(decoded(cell.source), images[row.title][number, 0])
            assert cell.text.startswith(f"{row.title}: ")
    assert (found.num_prompts, found.is_small) == (40, True)


def test_a_long_prompt_is_shortened() -> None:
    texts = [prompt for prompt, _ in table(prompted_report(PROMPTS), pictures(prompted_report(PROMPTS))).rows]
    assert texts[:2] == list(PROMPTS[:2])
    assert texts[2] == "x" * (MAX_CHARACTERS - 1) + "…"


def test_there_are_no_more_prompts_than_pictures() -> None:
    report = prompted_report(PROMPTS)
    assert len(table(report, pictures(report, num_images=2)).rows) == 2


def test_without_prompts_or_pictures_there_is_no_table() -> None:
    assert prompt_table(digits_report(), pictures(digits_report())) is None
    assert prompt_table(prompted_report(PROMPTS), {}) is None


def test_a_report_without_prompts_has_no_field_for_them() -> None:
    assert "prompts" not in digits_report().model_dump()
    assert "latent_rmse" not in digits_report().rows[0].model_dump()


@pytest.mark.parametrize(("side", "kind"), [(MAX_EXACT, "png"), (MAX_EXACT + 1, "jpeg")])
def test_a_large_picture_on_a_page_is_compressed(side: int, kind: str) -> None:
    image = np.full((3, side, side), 90, np.uint8)
    found, payload = encode_picture(image)
    assert found == kind
    assert Image.open(io.BytesIO(payload)).size == (side, side)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_a_grid_keeps_its_shape_and_is_no_larger_than_it_need_be(channels: int) -> None:
    small = np.zeros((2, channels, MAX_CELL, 8), np.uint8)
    assert shrink(small) is small
    assert shrink(np.full((2, channels, 1024, 512), 7, np.uint8)).shape == (2, channels, MAX_CELL, MAX_CELL // 2)
    assert (shrink(np.full((1, channels, 600, 600), 7, np.uint8)) == 7).all()
