"""Which pages are made from the code, and by what. They are committed, so that links to them work in a clone too."""

from collections.abc import Callable
from pathlib import Path

from manual import commands, configuration, metrics, networks, notebook, python_api, recipes, teachers

DOCS = Path(__file__).parents[1] / "docs"
NOTE = "<!-- Made from the code by `make reference`: change it there. -->"

PAGES: dict[Path, Callable[[], str]] = {
    DOCS / "tutorials" / "notebook.md": notebook.page,
    DOCS / "reference" / "commands.md": commands.page,
    DOCS / "reference" / "configuration.md": configuration.page,
    DOCS / "reference" / "recipes.md": recipes.page,
    DOCS / "reference" / "losses.md": recipes.losses,
    DOCS / "reference" / "networks.md": networks.page,
    DOCS / "reference" / "teachers.md": teachers.page,
    DOCS / "reference" / "metrics.md": metrics.page,
    DOCS / "reference" / "python.md": python_api.page,
}


def text(path: Path) -> str:
    """What the page at `path` should hold."""
    return f"{PAGES[path]().strip()}\n\n{NOTE}\n"
