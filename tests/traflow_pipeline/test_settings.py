from typing import Any

import pytest

from pipeline.generation.generate import GenerateConfig
from traflow_pipeline.settings import build_settings, follow_recipe


def velocities(recipe: str | None, generate: dict[str, Any] | None = None, **train: Any) -> object:
    sections = {"generate": {"out": "data", **(generate or {})}, "train": {"data": "data", **train}}
    if recipe is not None:
        sections["train"]["recipe"] = recipe
    return follow_recipe(sections)["generate"].get("velocities")


@pytest.mark.parametrize(
    ("recipe", "needed"), [("anchored", False), (None, False), ("half-steps", True), ("reflow", False)]
)
def test_velocities_are_stored_where_the_recipe_needs_them(recipe: str | None, needed: bool) -> None:
    assert velocities(recipe) is needed


def test_a_config_that_says_itself_whether_to_store_velocities_is_left() -> None:
    assert velocities("anchored", {"velocities": True}) is True
    assert velocities("half-steps", {"velocities": False}) is False


def test_a_config_can_take_back_what_its_base_says_of_velocities() -> None:
    assert velocities("anchored", {"velocities": None}) is False
    assert velocities("flow-matching", {"velocities": None}) is None


def test_training_that_does_not_read_these_data_decides_nothing() -> None:
    assert velocities("anchored", data="another") is None
    assert velocities("flow-matching") is None
    assert velocities("no-such-recipe") is None  # train says so


def test_generate_alone_follows_the_recipe_of_its_config_too() -> None:
    asked = {"teacher": "digits", "n": 8, "out": "data"}
    settings = build_settings(GenerateConfig, "generate", "cifar10-15m", {})
    assert (settings.velocities, settings.precision) == (False, "tf32")
    assert build_settings(GenerateConfig, "generate", "quickstart", {}).velocities
    assert build_settings(GenerateConfig, "generate", None, asked).velocities
