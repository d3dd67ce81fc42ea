"""Every key of every configuration is described, and a config written from the descriptions is that of the defaults."""

from typing import Any

import pytest

from pipeline.common.config import merge, validate
from pipeline.common.safe_yaml import parse_yaml
from traflow_pipeline import keys
from traflow_pipeline.keys import MODELS, commented, import_model
from traflow_pipeline.run_settings import gather
from trainer.config import TrainConfig
from trainer.distillation.recipes import Recipe

REQUIRED: dict[str, dict[str, Any]] = {
    "generate": {"teacher": "digits", "n": 8, "out": "data"},
    "train": {"out": "run", "trainer": {"num_steps": 8}},
    "evaluate": {"checkpoint": "run", "out": "report"},
    "slurm": {},
}


@pytest.mark.parametrize("topic", MODELS)
def test_every_key_has_a_sentence(topic: str) -> None:
    for key in keys.keys(topic):
        assert key.sentence[:1].isupper(), key.name
        assert key.sentence.endswith((".", "...")), key.name
        assert key.type, key.name


@pytest.mark.parametrize("topic", MODELS)
def test_every_key_is_listed_once_for_each_model_that_may_hold_it(topic: str) -> None:
    names = [(key.name, key.case) for key in keys.keys(topic)]
    assert len(names) == len(set(names))


def test_a_key_has_its_type_with_bounds_its_default_and_its_unit() -> None:
    by_name = {(key.name, key.case): key for key in keys.keys("train")}
    found = [
        (key.type, key.default, key.unit)
        for key in (by_name[name, ""] for name in ("trainer.num_steps", "trainer.ema.decay", "recipe", "trainer.betas"))
    ]
    assert found == [
        ("integer >= 1", "required", "steps"),
        ("number > 0 and < 1 | null", "null", ""),
        ("name | mapping", "anchored", ""),
        ("[number >= 0 and < 1, number >= 0 and < 1]", "[0.9, 0.99]", ""),
    ]
    assert by_name["network.width", "mlp"].default == "256"


@pytest.mark.parametrize("topic", REQUIRED)
def test_a_commented_config_is_that_of_the_defaults(topic: str) -> None:
    section = parse_yaml(commented(topic).encode())[topic]
    model = import_model(MODELS[topic])
    assert validate(model, merge(section, REQUIRED[topic]), topic) == validate(model, REQUIRED[topic], topic)


def test_a_family_that_shares_keys_with_the_one_above_names_them() -> None:
    said = commented("train")
    mlp = said[said.index("family: mlp") :]
    assert "#   # Also, as above: dropout, num_classes, label_dropout, convention," in mlp
    assert "Also, as above" not in said[: said.index("family: song")]


def test_a_commented_config_says_what_it_lacks() -> None:
    section = parse_yaml(commented("generate").encode())["generate"]
    assert not section.keys() & {"teacher", "n", "out"}
    assert "  # n:  # integer >= 1; trajectories; required\n" in commented("generate")


def test_a_commented_recipe_is_the_default_recipe() -> None:
    assert Recipe.model_validate(parse_yaml(commented("recipe").encode())) == keys.default_recipe()


def test_a_commented_config_of_a_run_leaves_its_paths_to_it(tmp_path: Any) -> None:
    (tmp_path / "my.yaml").write_text(commented("run"))
    wanted = ["generate.teacher=digits", "generate.n=8", "train.trainer.num_steps=8"]
    gathered = gather(str(tmp_path / "my.yaml"), "runs/mine", wanted, None)
    assert gathered["train"]["data"] == gathered["generate"]["out"] == "runs/mine/data"
    assert validate(TrainConfig, gathered["train"], "train").recipe == keys.default_recipe()
