"""The configuration of an evaluation: what prompts add to it, and that it is as it was without them."""

import pytest
import yaml

from eval.config import EvaluateConfig
from eval.sample_counts import FULL_NUM_SAMPLES
from pipeline.common.config import resolved, validate
from pipeline.common.errors import BadInput

PLACES = {"checkpoint": "run", "out": "report"}


def test_without_prompts_it_has_the_keys_and_values_that_it_had() -> None:
    values = yaml.safe_load(resolved(EvaluateConfig.model_validate(PLACES), "evaluate"))["evaluate"]
    assert values["num_samples"] == FULL_NUM_SAMPLES
    assert not {"prompts", "clip"} & values.keys()


def test_with_prompts_their_number_is_that_of_the_samples() -> None:
    config = EvaluateConfig.model_validate(PLACES | {"prompts": "held-out.txt"})
    assert config.num_samples is None
    again = yaml.safe_load(resolved(config, "evaluate"))["evaluate"]
    assert EvaluateConfig.model_validate(again) == config
    assert EvaluateConfig.model_validate(again | {"num_samples": "2k"}).num_samples == 2000


def test_a_clip_model_without_prompts_is_refused() -> None:
    with pytest.raises(BadInput, match="wanted prompts too"):
        validate(EvaluateConfig, PLACES | {"clip": "folder"}, "evaluate")
