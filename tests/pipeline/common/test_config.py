from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from eval.config import EvaluateConfig
from pipeline.common.config import differences, given, load_section, merge, parse_assignment, validate
from pipeline.common.errors import BadInput
from pipeline.common.plural import parse_count
from pipeline.generation.generate import GenerateConfig
from trainer.config import TrainConfig


@pytest.mark.parametrize(
    ("text", "count"), [("4096", 4096), ("16k", 16_000), ("1M", 10**6), ("2.5k", 2500), ("0", 0), (7, 7)]
)
def test_counts_are_read_with_their_suffix(text: object, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "many", "-3", "1.5", "nan", "infM", "1e400"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted a count such as 4096, 16k or 1M"):
        parse_count(text)


def test_counts_are_counts_in_every_section() -> None:
    trainer = {"num_steps": "5k", "batch_size": "1k", "ema": {"half_life_images": "2M"}}
    trained = validate(TrainConfig, {"out": "x", "trainer": trainer}, "train").trainer
    assert (trained.num_steps, trained.batch_size, trained.ema[0].half_life_images) == (5000, 1000, 2e6)
    made = validate(GenerateConfig, {"teacher": "digits", "n": "4k", "out": "x", "batch_size": "1k"}, "generate")
    assert (made.n, made.batch_size) == (4000, 1000)
    scored = {"checkpoint": "run", "out": "x", "num_samples": "4k", "num_trajectories": "1k"}
    assert validate(EvaluateConfig, scored, "evaluate").num_trajectories == 1000


def test_later_layers_win_key_by_key_and_a_flag_not_given_says_nothing() -> None:
    layers: list[dict[str, Any]] = [
        {"a": {"x": 1, "y": 2}, "b": 1},
        given({"a": {"x": None, "y": 3}, "b": None}),
        parse_assignment("c.d=[1, 2]"),
    ]
    assert merge(*layers) == {"a": {"x": 1, "y": 3}, "b": 1, "c": {"d": [1, 2]}}


def test_an_unknown_key_comes_with_the_valid_ones_of_its_level() -> None:
    with pytest.raises(
        BadInput, match=r"unknown key 'trainer\.learning_rate'; valid keys: num_steps, batch_size, accumulate, lr, "
    ):
        validate(TrainConfig, {"out": "x", "trainer": {"num_steps": 1, "learning_rate": 1}}, "train")
    values = {"teacher": "digits", "n": 1, "out": "x", "solver": {"tolerance": 1}}
    with pytest.raises(BadInput, match=r"unknown key 'solver\.tolerance'; valid keys: name, rtol"):
        validate(GenerateConfig, values, "generate")


def test_all_faults_stand_in_one_line() -> None:
    with pytest.raises(BadInput) as caught:
        validate(GenerateConfig, {"n": "some", "out": "x", "seed": -1}, "generate")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("'teacher' is missing", "wanted a count", "got 'some'", "seed: "):
        assert part in message


def test_an_unknown_config_or_section_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no config 'quick': wanted one of .*quickstart"):
        load_section("quick", "train")
    with pytest.raises(BadInput, match="it has no section 'generate', only train"):
        load_section("digits-teacher", "generate")
    path = tmp_path / "mine.yaml"
    path.write_text("training: {}")
    with pytest.raises(BadInput, match="wanted sections named generate, train, evaluate, slurm; found training"):
        load_section(str(path), "train")
    path.write_text("a: [")
    with pytest.raises(BadInput, match="not YAML"):
        load_section(str(path), "train")


TRAINER = {"num_steps": 1}


@pytest.mark.parametrize(
    ("model", "values", "said"),
    [
        (TrainConfig, {"trainer": TRAINER | {"lr": "abc"}}, "trainer.lr: wanted a number, got 'abc'"),
        (TrainConfig, {"trainer": TRAINER | {"lr": 0}}, "trainer.lr: wanted more than 0, got 0"),
        (TrainConfig, {"trainer": TRAINER | {"batch_size": 1.5}}, "trainer.batch_size: wanted a whole number, got 1.5"),
        (
            TrainConfig,
            {"trainer": TRAINER | {"batch_size": None}},
            "trainer.batch_size: wanted a whole number, got null",
        ),
        (TrainConfig, {"trainer": TRAINER | {"betas": [0.9]}}, "trainer.betas.1: wanted a value"),
        (TrainConfig, {"trainer": TRAINER | {"betas": 3}}, "trainer.betas: wanted a list, got 3"),
        (
            TrainConfig,
            {"trainer": TRAINER | {"compile": "maybe"}},
            "trainer.compile: wanted true or false, got 'maybe'",
        ),
        (TrainConfig, {"trainer": 7}, "trainer: wanted a mapping of keys to values, got 7"),
        (
            TrainConfig,
            {"trainer": TRAINER | {"schedule": "cosin"}},
            "trainer.schedule: wanted 'linear', 'cosine' or 'constant', got 'cosin'; did you mean 'cosine'?",
        ),
        (GenerateConfig, {"teacher": "x", "n": 1, "out": ""}, "out: wanted text that is not empty, got ''"),
        (GenerateConfig, {"teacher": "x", "n": 1, "classes": "0-9"}, "classes.0: wanted 0 or more, got '0-9'"),
        (EvaluateConfig, {"steps": ["x"]}, "steps.0: wanted a whole number or a list, got 'x'"),
        (EvaluateConfig, {"steps": [0]}, "steps.0: wanted 1 or more or a list, got 0"),
        (GenerateConfig, {"teacher": "x" * 999, "n": 1, "seed": "y" * 999}, "seed: wanted a whole number, got 'yyy"),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_said_in_plain_english(
    model: type[BaseModel], values: dict[str, Any], said: str
) -> None:
    given = {"out": "x", "checkpoint": "y"} if model is EvaluateConfig else {"out": "x"}
    with pytest.raises(BadInput) as caught:
        validate(model, given | values, "it")
    assert str(caught.value).startswith(f"it: {said}")
    for pydantic in ("Input should", "Value error", "http", "valid integer", "constrained"):
        assert pydantic not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("trainer.lrr", "trainer.lr"), ("trainer.batchsize", "trainer.batch_size"), ("recipee", "recipe")],
)
def test_an_unknown_key_is_answered_with_the_one_that_was_meant(wrong: str, right: str) -> None:
    with pytest.raises(BadInput, match=f"unknown key '{wrong}'; valid keys: .*; did you mean '{right}'"):
        validate(TrainConfig, merge({"out": "x", "trainer": TRAINER}, parse_assignment(f"{wrong}=1")), "train")


def test_an_unknown_config_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(BadInput, match=r"no config 'quikstart'.*; did you mean 'quickstart'\?"):
        load_section("quikstart", "train")


RECIPE: dict[str, Any] = {
    "name": "mine",
    "phases": [{"share": 1.0, "terms": [{"loss": "output", "weight": 1.0, "first": 0}]}],
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"name": "yours", "phases": []}, "recipe: mine there, yours asked"),
        (
            {"phases": [{"share": 1.0, "terms": [{"loss": "output", "weight": 2.0, "first": 0}]}]},
            "recipe.phases.0.terms.0.weight: 1.0 there, 2.0 asked",
        ),
        (
            {"phases": [{"share": 1.0, "terms": [{"loss": "velocity"}]}]},
            "recipe.phases.0.terms.0: output there, velocity asked",
        ),
        ({"phases": RECIPE["phases"] * 2}, "recipe.phases: [{'share': 1.0, "),
        ({"about": "x" * 999}, f"recipe.about: None there, {'x' * 80}... asked"),
    ],
)
def test_of_two_configurations_only_what_differs_is_said(changes: dict[str, Any], said: str) -> None:
    assert differences({"seed": 1, "recipe": RECIPE}, {"seed": 1, "recipe": {**RECIPE, **changes}}).startswith(said)
    assert bool(differences({"recipe": RECIPE}, {"recipe": {**RECIPE, **changes}})) == bool(said)


def test_many_differences_are_counted() -> None:
    said = differences({f"key{i}": 0 for i in range(20)}, {f"key{i}": 1 for i in range(20)})
    assert said.endswith("key7: 0 there, 1 asked; and 12 more")
