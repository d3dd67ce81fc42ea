"""Read the prompts of a data set from a file of the user's."""

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.errors import BadInput, reason
from pipeline.dataset.conditions import Prompts


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """The prompts in a .txt file, one a line, or a .jsonl file of objects with a "prompt".

    Raises:
        BadInput: there are none, one is empty or repeats another, or the file is neither.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".txt", ".jsonl"):
        raise BadInput(f"{path}: wanted prompts in a .txt file, one a line, or a .jsonl file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({reason(error)})") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: wanted text in UTF-8") from error
    prompts = tuple(_parsed(path, lines) if path.suffix == ".jsonl" else lines)
    if not prompts:
        raise BadInput(f"{path}: wanted prompts; it holds none")
    return check_prompts(prompts, f"{path}, line")


def _parsed(path: Path, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError, RecursionError):
            prompt = None
        if not isinstance(prompt, str):
            raise BadInput(f'{path}, line {number}: wanted an object such as {{"prompt": "a cat"}}')
        yield prompt


def check_prompts(prompts: tuple[str, ...], place: str) -> tuple[str, ...]:
    """`prompts`, which stand at `place` 1, 2 and so on.

    Raises:
        BadInput: one is empty, or repeats another one.
    """
    first, unit = dict[str, int](), place.split()[-1]
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise BadInput(f"{place} {number}: wanted a prompt; it is empty")
        if (before := first.setdefault(prompt, number)) != number:
            raise BadInput(
                f"{place} {number}: it repeats {unit} {before}; each prompt is drawn equally often: remove it"
            )
    return prompts


def make_prompts(prompts: tuple[str, ...], negative: str | None, takes_negative: bool, teacher: str) -> Prompts:
    """The rows of a teacher's condition table: the prompts and, where it takes one, the negative prompt.

    Raises:
        BadInput: a negative prompt for a teacher that takes none.
    """
    if negative and not takes_negative:
        raise BadInput(f"{teacher}: it takes no negative prompt: it is told its guidance, or has none; leave it out")
    return Prompts(prompts=prompts, negative=(negative or "") if takes_negative else None)
