"""The settings of a stage: a section of a config, what was given over it, and assignments over all."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from pipeline.common.config import Model, load_section, load_sections, merge, parse_assignment, validate


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
    if config is not None and stage == "generate":
        section = follow_recipe(load_sections(config))[stage]
    solver = given.get("solver")
    if isinstance(solver, Mapping) and solver.get("name"):
        section = {key: value for key, value in section.items() if key != "solver"}
    return merge(section, given, *map(parse_assignment, assignments))


def follow_recipe(sections: Mapping[str, dict[str, Any]]) -> Mapping[str, dict[str, Any]]:
    """`sections` whose generate says whether to store velocities: by itself, else as the recipe that reads them needs.

    None, with which a config takes back what its base says, is no answer. Velocities double the bytes of a data set,
    and most recipes never read them.
    """
    data, training = sections.get("generate"), sections.get("train")
    if not isinstance(data, Mapping) or data.get("velocities") is not None:
        return sections
    data = {key: value for key, value in data.items() if key != "velocities"}
    sections = {**sections, "generate": data}
    if not isinstance(training, Mapping):
        return sections
    if training.get("data") not in (None, data.get("out")):
        return sections
    from trainer.distillation.recipes import Recipe, RecipeSource

    try:
        recipe: Recipe = TypeAdapter(RecipeSource).validate_python(training.get("recipe", "anchored"))
    except ValueError:  # train's own settings say so
        return sections
    if recipe.reads != "trajectories":
        return sections
    return {**sections, "generate": {**data, "velocities": recipe.needs_velocities}}
