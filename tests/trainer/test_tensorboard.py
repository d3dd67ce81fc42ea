"""What TensorBoard itself reads of a run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.problems import make_data
from trainer.config import TrainConfig
from trainer.train import train

NUM_STEPS, CHECKPOINT_EVERY = 6, 3


def config(folder: Path) -> TrainConfig:
    """A training on eight trajectories of a tiny teacher, logged at every step."""
    trainer = {"num_steps": NUM_STEPS, "batch_size": 4, "log_every": 1, "checkpoint_every": CHECKPOINT_EVERY}
    values = {
        "data": make_data(folder, n=8),
        "out": folder / "run",
        "device": "cpu",
        "tensorboard": True,
        "trainer": trainer,
    }
    return TrainConfig.model_validate(values)


def read(run: Path) -> Any:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


@pytest.mark.parametrize("resumes", [False, True], ids=["undisturbed", "killed-and-resumed"])
def test_each_value_is_there_at_each_step_once(tmp_path: Path, resumes: bool) -> None:
    training = config(tmp_path)
    train(training)
    if resumes:  # as after a kill behind the first checkpoint: the events of later steps are there, their weights not
        shutil.rmtree(training.out / "checkpoints" / f"step-{NUM_STEPS:06d}")
        train(training)
    events = read(training.out)
    terms = [term.title for term in training.recipe.terms]
    assert set(events.Tags()["scalars"]) == {
        *(*terms, "loss", "grad_norm", "images_seen", "images_per_second", "stall", "memory_bytes", "lr"),
    }
    for tag in events.Tags()["scalars"]:
        assert [event.step for event in events.Scalars(tag)] == list(range(1, NUM_STEPS + 1)), tag


def test_samples_are_pictures_at_every_checkpoint(tmp_path: Path) -> None:
    training = config(tmp_path)
    train(training)
    events = read(training.out)
    assert events.Tags()["images"] == ["samples"]
    assert [event.step for event in events.Images("samples")] == [CHECKPOINT_EVERY, NUM_STEPS]
    assert all(event.width > event.height > 0 for event in events.Images("samples"))
