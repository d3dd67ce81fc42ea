"""The settings of a stage: a section of a config, what was given over it, and assignments over all."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.common.config import Model, load_section, merge, parse_assignment, validate


def build_settings(
    model: type[Model],
    stage: str,
    config: str | None,
    given: Mapping[str, Any],
    assignments: Sequence[str] = (),
    title: str | None = None,
) -> Model:
    """The section `stage` of `config` as a `model`, with `given` and then `assignments` ("key=value") over it.

    A solver given by name replaces the config's, tolerances and all. Errors begin with `title`, else with `stage`.

    Raises:
        BadInput: no such config, an unknown or missing key, or a value that is out of range.
    """
    return validate(model, merge_settings(stage, config, given, assignments), title or stage)


def merge_settings(
    stage: str, config: str | None, given: Mapping[str, Any], assignments: Sequence[str] = ()
) -> dict[str, Any]:
    """The keys of `build_settings`, not validated."""
    section = load_section(config, stage)
    solver = given.get("solver")
    if isinstance(solver, Mapping) and solver.get("name"):
        section = {key: value for key, value in section.items() if key != "solver"}
    return merge(section, given, *map(parse_assignment, assignments))
