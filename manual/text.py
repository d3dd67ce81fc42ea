"""Markdown out of docstrings, comments and values of the code."""

import inspect
import re
from collections.abc import Iterable, Sequence

# A field of a class with the comment behind it.
FIELD = re.compile(r"^    (\w+): .*?(?:  # (.+))?$", re.MULTILINE)
SECTION = re.compile(r"^(Raises|Returns|Yields|Args):\n((?:    .*\n?|\n)+)", re.MULTILINE)
ITEM = re.compile(r"^    (\w+): ", re.MULTILINE)
BAR = re.compile(r" ?\| ?")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells may hold any text."""
    lines = [headings, ["---"] * len(headings), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """`text` on one line, as a cell of a table, which a bar ends, on GitHub in code too: code is split there."""
    parts = " ".join(text.split()).split("`")
    return "`".join(BAR.sub(r"` \| `", part) if i % 2 else part.replace("|", r"\|") for i, part in enumerate(parts))


def code(value: object) -> str:
    """A value as code; nothing for nothing."""
    text = str(value)
    return f"`{text}`" if text else ""


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: the sections that say what is raised and returned become lists."""
    text = inspect.cleandoc(docstring or "")
    return SECTION.sub(lambda found: f"\n**{found[1]}**\n\n{_items(found[2])}\n", text + "\n").strip()


def _items(text: str) -> str:
    """The items of a section of a docstring, as a list."""
    if not ITEM.search(text):
        return inspect.cleandoc(text)
    marked = ITEM.sub(lambda found: f"- `{found[1]}`: ", text)
    return "\n".join(
        line.strip() if line.lstrip().startswith("- ") else f"  {line.strip()}"
        for line in marked.splitlines()
        if line.strip()
    )


def comments(cls: type) -> dict[str, str]:
    """What the comments behind the fields of a class and its bases say, by the field."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] in ("pipeline", "trainer", "eval", "traflow_pipeline"):
            found |= {name: comment or found.get(name, "") for name, comment in FIELD.findall(inspect.getsource(base))}
    return found


def type_name(annotation: object) -> str:
    """An annotation as it reads: without modules and constraints, `None` last."""
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    text = re.sub(r"Annotated\[(\w+), .*\)\]", r"\1", text)
    text = re.sub(r"(?:\w+\.)+(\w+)", r"\1", text).replace("NoneType", "None")
    return re.sub(r"ndarray\[tuple\[Any, ...\], dtype\[(\w+)\]\]", r"NDArray[\1]", text)
