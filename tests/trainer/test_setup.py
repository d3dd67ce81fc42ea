"""What a training takes from its data: shape, classes and their names; and what it refuses of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.common.errors import BadInput
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.reader import BlockReader
from pipeline.generation.generate import GenerateConfig, generate
from pipeline.storage.store import open_store
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher
from tests.support.problems import SHAPE, GaussianFlow, make_data, tiny_config
from trainer.checkpoints import checkpoint
from trainer.config import TrainConfig
from trainer.setup import prepare
from trainer.train import train

SMALL = {"channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attention_resolutions": [2], "time_scale": 10.0}


def points(device: torch.device) -> Teacher:
    """A factory of a flow whose samples are no images."""
    return Teacher("points", "0" * 64, GaussianFlow().velocity, (2,))


def write_images(path: Path, *shape: int, labels: list[int] | None = None) -> Path:
    arrays: dict[str, Any] = {} if labels is None else {"labels": np.array(labels)}
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), **arrays)
    return path


def image_config(images: Path, out: Path, network: dict[str, Any]) -> TrainConfig:
    trainer = {"num_steps": 1, "batch_size": 4}
    values = {"recipe": "flow-matching", "images": str(images), "network": network, "out": out, "trainer": trainer}
    return TrainConfig.model_validate({**values, "device": "cpu"})


def labels_of(manifest: Manifest) -> set[int]:
    reader = BlockReader(manifest)
    return {int(label) for block in range(manifest.blocks.num_rows) for label in reader.read(block).label}


def test_a_network_takes_shape_and_classes_from_the_images(tmp_path: Path) -> None:
    images = write_images(tmp_path / "set.npz", 4, 4, 8, 3, labels=[0, 1, 2, 1])
    folder = train(image_config(images, tmp_path / "run", SMALL))
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]["network"]
    assert (written["resolution"], written["image_channels"], written["num_classes"]) == ([4, 8], 3, 3)
    teacher = load_teacher(str(folder))
    assert (teacher.shape, teacher.num_classes, teacher.labels) == ((3, 4, 8), 3, None)
    # Resuming with the completed configuration is the same run.
    assert train(image_config(images, tmp_path / "run", written)) == folder


def test_a_network_that_says_all_is_as_it_says(tmp_path: Path) -> None:
    images = write_images(tmp_path / "set.npz", 4, 4, 4, labels=[0, 1, 2, 1])
    folder = train(image_config(images, tmp_path / "run", tiny_config().model_dump()))
    assert checkpoint.read_info(folder).config["network"]["num_classes"] == 0
    assert checkpoint.read_info(folder).classes == ()


def test_a_students_network_takes_shape_and_classes_from_the_trajectories(tmp_path: Path) -> None:
    trainer = {"num_steps": 1, "batch_size": 8}
    values = {"data": make_data(tmp_path), "out": tmp_path / "run", "network": SMALL, "device": "cpu"}
    info = checkpoint.read_info(train(TrainConfig.model_validate({**values, "trainer": trainer})))
    assert (info.config["network"]["resolution"], info.config["network"]["image_channels"]) == (4, 1)


def test_a_side_that_cannot_be_halved_is_named_with_the_data(tmp_path: Path) -> None:
    images = write_images(tmp_path / "set.npz", 4, 4, 7)
    with pytest.raises(BadInput, match=r"network, for data of \[1, 4, 7\]: resolution .* cannot be halved"):
        train(image_config(images, tmp_path / "run", SMALL))


def test_only_classes_with_images_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "set.npz", 4, 4, 4, labels=[3, 6, 3, 3])
    run = train(image_config(images, tmp_path / "run", SMALL | {"num_classes": 8}))
    said = capsys.readouterr().out
    assert "set: 4 images of [1, 4, 4], 2 classes: 3 (3), 6 (1)" in said
    assert "6 of 8 classes have no image and are not trained: 0 to 2, 4 to 5, 7" in said
    assert load_teacher(str(run)).labels == (3, 6)
    solver = {"name": "euler", "num_steps": 4}
    values = {"teacher": str(run), "n": 16, "states": 2, "executor": "inline", "solver": solver}
    values |= {"shard_size": 16, "batch_size": 16, "block_size": 16}

    def made(out: str, **changes: Any) -> Manifest:
        return generate(GenerateConfig.model_validate(values | {"out": tmp_path / out} | changes))

    manifest = made("default")
    assert manifest.plan.classes == (3, 6)
    assert labels_of(manifest) == {3, 6}
    assert made("default").sha256 == manifest.sha256
    assert labels_of(made("some", classes="6")) == {6}
    assert labels_of(made("other", classes=[7, 1])) == {1, 7}
    assert made("all", classes=list(range(8))).plan.classes is None
    with pytest.raises(BadInput, match=r"another plan \(classes: \[3, 6\] there, \[6\] asked\)"):
        made("default", classes=6)
    with pytest.raises(BadInput, match="classes: wanted increasing numbers from 0 to 7"):
        made("wrong", classes="8")
    trainer = {"num_steps": 1, "batch_size": 8}
    student = {"data": tmp_path / "default", "out": tmp_path / "student", "device": "cpu", "trainer": trainer}
    info = checkpoint.read_info(train(TrainConfig.model_validate(student)))
    assert [str(one) for one in info.classes] == ["3 (3)", "6 (1)"]


def test_a_plan_without_classes_keeps_its_digest(tmp_path: Path) -> None:
    assert "classes" not in read_manifest(open_store(str(make_data(tmp_path)))).plan.model_dump()


def test_a_student_of_a_function_that_draws_no_images_is_asked_for_its_family(tmp_path: Path) -> None:
    data = make_data(tmp_path, teacher="tests.trainer.test_setup:points")
    trainer = {"num_steps": 1, "batch_size": 8}
    config = TrainConfig.model_validate({"data": data, "out": tmp_path / "run", "device": "cpu", "trainer": trainer})
    with pytest.raises(BadInput, match=r"has no network to start from: give 'network'.*family: mlp"):
        train(config)


SCALE = 1.0


def scaled(device: torch.device) -> Teacher:
    """A user's function, which a test corrects."""
    scale, velocity = SCALE, GaussianFlow().velocity
    return Teacher("mine", "0" * 64, lambda x, t, label: scale * velocity(x, t), SHAPE)


def test_a_live_teacher_is_the_flow_that_made_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"recipe": "lagrangian", "data": make_data(tmp_path, teacher=f"{__name__}:scaled")}
    values |= {
        "network": tiny_config().model_dump(),
        "out": tmp_path / "run",
        "device": "cpu",
        "trainer": {"num_steps": 1},
    }
    asked = TrainConfig.model_validate(values)
    prepare(asked, torch.device("cpu"))
    monkeypatch.setattr(f"{__name__}.SCALE", 1.1)
    with pytest.raises(BadInput, match="wanted the velocity that its records were made with"):
        prepare(asked, torch.device("cpu"))
