"""All three stages on a tiny SD3 pipeline: from prompts to the scores of a student, interrupted and resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from eval.config import EvaluateConfig
from eval.evaluate import evaluate
from pipeline.common.errors import BadInput
from pipeline.generation.generate import generate
from tests.support.prompts import prompted
from tests.support.runs import EVALUATION
from traflow_pipeline.loading import load_student
from trainer.checkpoints import checkpoint
from trainer.config import TrainConfig
from trainer.train import train

LORA = {"rank": 2}


def training(folder: Path, **changes: Any) -> TrainConfig:
    trainer = {"num_steps": 4, "batch_size": 4, "log_every": 2, "checkpoint_every": 2, "schedule": "constant"}
    values: dict[str, Any] = {"data": str(folder / "data"), "out": folder / "run", "device": "cpu", "lora": LORA}
    trainer |= changes.pop("trainer", {})
    return TrainConfig.model_validate(values | {"recipe": "trajectory", "trainer": trainer} | changes)


@pytest.fixture(scope="module")
def workplace(pipelines: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    generate(prompted(folder, pipelines("sd3"), n=16))
    return folder


@pytest.fixture(scope="module")
def trained(workplace: Path) -> Path:
    return train(training(workplace))


def test_a_checkpoint_of_an_adapter_holds_what_was_trained_alone(trained: Path) -> None:
    for name in ("network.safetensors", "ema.safetensors"):
        names = load_file(trained / name).keys()
        assert names
        assert all(".lora_" in key or ".second." in key or key.endswith(".gate") for key in names)


def test_a_resumed_training_ends_in_the_same_weights(workplace: Path, trained: Path) -> None:
    apart = training(workplace, out=workplace / "apart")
    train(apart.model_copy(update={"trainer": apart.trainer.model_copy(update={"num_steps": 2})}))
    resumed = train(apart)
    for name in ("network.safetensors", "ema.safetensors"):
        assert (resumed / name).read_bytes() == (trained / name).read_bytes()


def test_a_trained_student_draws_latents_and_pixels(trained: Path) -> None:
    samples = load_student(trained, device="cpu").sample(2, steps=2)
    assert samples.arrays.shape == (2, 4, 8, 8)
    assert samples.images.shape == (2, 8, 8, 3)


def test_a_student_is_scored_in_pixels(workplace: Path, trained: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    np.savez(workplace / "images.npz", images=images)
    config = EvaluateConfig.model_validate(
        {
            "checkpoint": str(trained),
            "out": str(workplace / "report"),
            "reference": str(workplace / "images.npz"),
            **EVALUATION,
        }
    )
    report = evaluate(config)
    assert report is not None
    assert {row.model for row in report.rows} == {"teacher", "student"}
    assert all(row.scores for row in report.rows)
    assert report.trajectories is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"channels": 8}}, "leave 'network' and 'start' out"),
        ({"start": "scratch"}, "leave 'network' and 'start' out"),
        ({"trainer": {"compile": True}}, "is not compiled"),
        ({"recipe": "lagrangian", "trainer": {"gradient_checkpointing": True}}, "set gradient_checkpointing=false"),
        ({"lora": {"rank": 2, "targets": ["to_x"]}}, "no layer of SD3Transformer2DModel is called to_x"),
    ],
)
def test_what_a_pipelines_student_cannot_do_is_refused(changes: dict[str, Any], message: str, workplace: Path) -> None:
    with pytest.raises(BadInput, match=message):
        train(training(workplace, out=workplace / "refused", **changes))


def test_all_weights_can_be_trained_and_are_found_again(workplace: Path) -> None:
    config = training(workplace, out=workplace / "full", lora=None, trainer={"num_steps": 1, "precision": "bf16"})
    folder = train(config)
    assert checkpoint.read_info(folder).config.get("lora") is None
    assert load_student(folder, device="cpu").sample(1).arrays.shape == (1, 4, 8, 8)
