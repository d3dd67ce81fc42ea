"""What a configuration's faults are answered with: the key or the value that was meant."""

from typing import Any

import pytest
from pydantic import BaseModel

from eval.config import EvaluateConfig
from pipeline.common.config import merge, parse_assignment, validate
from pipeline.common.errors import BadInput
from pipeline.generation.config import GenerateConfig
from traflow_pipeline.run_settings import RunSettings
from trainer.config import TrainConfig

NEEDED: dict[type[BaseModel], dict[str, Any]] = {
    GenerateConfig: {"teacher": "digits", "n": 1, "out": "data"},
    TrainConfig: {"out": "run", "trainer": {"num_steps": 1}},
    EvaluateConfig: {"checkpoint": "run", "out": "report"},
    RunSettings: {"location": "run", "train": {"out": "run", "trainer": {"num_steps": 1}}},
}


def refusal(model: type[BaseModel], assignment: str) -> str:
    with pytest.raises(BadInput) as caught:
        validate(model, merge(NEEDED[model], parse_assignment(assignment)), "it")
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "assignment", "meant"),
    [
        (TrainConfig, "trainer.learning_rate=1", "trainer.lr"),
        (TrainConfig, "lr=1", "trainer.lr"),
        (TrainConfig, "iterations=1", "trainer.num_steps"),
        (TrainConfig, "trainer.batch=1", "trainer.batch_size"),
        (TrainConfig, "trainer.seed=1", "seed"),
        (TrainConfig, "trainer.ema_decay=0.9", "trainer.ema.decay"),
        (TrainConfig, "trainer.ema.halflife_images=1", "trainer.ema.half_life_images"),
        (TrainConfig, "trainer.ema=[{halflife_images: 1}]", "trainer.ema.0.half_life_images"),
        (TrainConfig, "network={family: mlp, widht: 1}", "network.width"),
        (TrainConfig, "recipe={phases: [{terms: [{loss: velocity, wieght: 1}]}]}", "recipe.phases.0.terms.0.weight"),
        (GenerateConfig, "num_samples=1", "n"),
        (GenerateConfig, "steps=1", "solver.num_steps"),
        (GenerateConfig, "cfg=1", "guidance_scale"),
        (EvaluateConfig, "n=1", "num_samples"),
        (EvaluateConfig, "num_steps=1", "steps"),
        (EvaluateConfig, "teacher_solver.tolerance=1", "teacher_solver.rtol"),
        (RunSettings, "train.lr=1", "train.trainer.lr"),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_that_was_meant(
    model: type[BaseModel], assignment: str, meant: str
) -> None:
    assert refusal(model, assignment).endswith(f"; did you mean '{meant}'?")


@pytest.mark.parametrize(
    ("model", "assignment", "said"),
    [
        (TrainConfig, "network={family: mpl}", "network.family: wanted one of song, dhariwal, mlp, got 'mpl'"),
        (TrainConfig, "recipe={phases: [{terms: [{loss: velcity}]}]}", "did you mean 'velocity'?"),
        (TrainConfig, "recipe={phases: [{terms: [{}]}]}", "'recipe.phases.0.terms.0.loss' is missing: wanted one of"),
        (TrainConfig, "network=mlp", "network: wanted a mapping of keys to values such as {family: mlp}, got 'mlp'"),
        (GenerateConfig, "dtype=fp16", "got 'fp16'; did you mean 'float16'?"),
        (GenerateConfig, "executor=local", "got 'local'; did you mean 'inline'?"),
        (GenerateConfig, "solver=heun", "got 'heun'; did you mean 'heun2'?"),
    ],
)
def test_an_unknown_word_is_answered_with_the_one_that_was_meant(
    model: type[BaseModel], assignment: str, said: str
) -> None:
    assert said in refusal(model, assignment)


@pytest.mark.parametrize(
    ("network", "families"),
    [("{width: 64}", "family: mlp"), ("{family: mlp, channel_mult: [1]}", "family: song or family: dhariwal")],
)
def test_a_key_of_another_family_is_answered_with_the_families_that_have_it(network: str, families: str) -> None:
    assert refusal(TrainConfig, f"network={network}").endswith(f"; it goes with {families}")


def test_a_key_spelt_like_one_of_another_family_comes_with_the_family() -> None:
    said = refusal(TrainConfig, "network.widht=3")
    assert "valid keys of family song" in said
    assert said.endswith("; did you mean 'network.width'? It goes with family: mlp")
    assert refusal(TrainConfig, "network.chanels=3").endswith("; did you mean 'network.channels'?")


def test_a_list_is_not_called_too_short_because_an_item_of_it_is_at_fault() -> None:
    assert "values" not in refusal(TrainConfig, "trainer.ema={decay: 2}")
    assert "wanted 1 or more values" in refusal(TrainConfig, "trainer.ema=[]")
