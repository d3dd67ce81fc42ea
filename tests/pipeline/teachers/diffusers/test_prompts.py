"""Prompts are read from a file of the user's, each once."""

from pathlib import Path

import pytest

from pipeline.common.errors import BadInput
from pipeline.dataset.conditions import Prompts
from pipeline.teachers.diffusers.prompts import make_prompts, read_prompts


def test_a_text_file_has_a_prompt_a_line_and_a_jsonl_file_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\nzwei Hunde, groß\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat"}\n{"id": 3, "prompt": "zwei Hunde, gro\\u00df"}\n')
    assert read_prompts(tmp_path / "a.txt") == read_prompts(tmp_path / "a.jsonl") == ("a cat", "zwei Hunde, groß")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "wanted prompts; it holds none"),
        ("a.txt", "a cat\n\na dog\n", "line 2: wanted a prompt; it is empty"),
        ("a.txt", "a cat\na dog\na cat\n", "line 3: it repeats line 1"),
        ("a.jsonl", '{"text": "a cat"}\n', "line 1: wanted an object such as"),
        ("a.jsonl", "a cat\n", "line 1: wanted an object such as"),
        ("a.csv", "a cat\n", "wanted prompts in a .txt file"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=message):
        read_prompts(tmp_path / name)


def test_a_negative_prompt_is_for_teachers_that_are_guided_by_one() -> None:
    assert make_prompts(("a cat",), None, True, "teacher").negative == ""
    assert make_prompts(("a cat",), None, False, "teacher").negative is None
    with pytest.raises(BadInput, match="it takes no negative prompt"):
        make_prompts(("a cat",), "blurry", False, "teacher")


@pytest.mark.parametrize("negative", [None, "", "blurry"])
def test_what_a_data_set_stores_of_its_prompts_is_read_back(negative: str | None) -> None:
    prompts = Prompts(prompts=("a cat", 'zwei "Hunde"'), negative=negative)
    assert Prompts.parsed(prompts.dumped()) == prompts
