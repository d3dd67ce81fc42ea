"""Which pages are made from the code, and by what."""

from collections.abc import Callable

from manual import commands, configuration, metrics, networks, notebook, python_api, recipes, teachers

PAGES: dict[str, Callable[[], str]] = {
    "tutorials/notebook.md": notebook.page,
    "reference/commands.md": commands.page,
    "reference/configuration.md": configuration.page,
    "reference/recipes.md": recipes.page,
    "reference/losses.md": recipes.losses,
    "reference/networks.md": networks.page,
    "reference/teachers.md": teachers.page,
    "reference/metrics.md": metrics.page,
    "reference/python.md": python_api.page,
}
