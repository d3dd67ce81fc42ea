"""The page of the notebook in examples/: its text, and its code."""

import json
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
WHERE = "This page is the notebook `examples/quickstart.ipynb` of the repository, without its outputs; run it there.\n"


def page() -> str:
    """The cells, in order; the first is the title."""
    title, *cells = json.loads(NOTEBOOK.read_text())["cells"]
    return "\n\n".join(map(str.strip, (_text(title), WHERE, *map(_text, cells))))


def _text(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    return source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
