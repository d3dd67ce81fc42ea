"""The pages that are made from the code are committed as the code makes them."""

from pathlib import Path

import pytest

from manual.pages import DOCS, PAGES, text
from manual.text import table


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_a_page_says_what_the_code_says(path: Path) -> None:
    assert path.read_text() == text(path), "run `make reference`, which uses constraints.txt, and commit what it writes"


def test_a_bar_ends_no_cell() -> None:
    assert table(["type", "meaning"], [("`int | None`", "one | none")]).splitlines() == [
        "| type | meaning |",
        "| --- | --- |",
        r"| `int` \| `None` | one \| none |",
    ]
