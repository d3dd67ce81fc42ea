"""Held-out prompts on the page: each with the teacher's picture and the student's, from the same noise."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from eval.results import Report, Row
from pipeline.common.image_grid import Images, encode_picture

EVALUATIONS = (1, 2, 4)  # of the student's columns
MAX_CHARACTERS = 300  # of a prompt on the page


@dataclass(frozen=True)
class Cell:
    """A picture as the address of its own data, and what it shows."""

    source: str
    text: str


@dataclass(frozen=True)
class PromptTable:
    """Prompts with a picture from each of the `columns`; `is_small`: pixels are to stay visible."""

    columns: tuple[Row, ...]
    rows: list[tuple[str, list[Cell]]]
    num_prompts: int
    is_small: bool


def prompt_table(report: Report, pictures: Mapping[str, Images]) -> PromptTable | None:
    """The first prompts of `report`, with images uint8 [n, C, H, W] by `Row.title`; None without either."""
    columns = tuple(row for row in _columns(report) if row.title in pictures)
    if report.prompts is None or not columns:
        return None
    rows = [
        (_shortened(prompt), [_cell(pictures[row.title], number, prompt, row) for row in columns])
        for number, prompt in enumerate(report.prompts.shown[: min(len(pictures[row.title]) for row in columns)])
    ]
    return PromptTable(columns, rows, report.prompts.num_prompts, max(pictures[columns[0].title].shape[2:]) < 128)


def _columns(report: Report) -> list[Row]:
    student = report.rows_of("student")
    few = [row for row in student if row.nfe in EVALUATIONS]
    return report.rows_of("solver") + (few or student[: len(EVALUATIONS)])


def _cell(images: Images, number: int, prompt: str, row: Row) -> Cell:
    kind, payload = encode_picture(images[number])
    return Cell(f"data:image/{kind};base64,{base64.b64encode(payload).decode()}", f"{row.title}: {_shortened(prompt)}")


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= MAX_CHARACTERS else f"{prompt[: MAX_CHARACTERS - 1]}…"
