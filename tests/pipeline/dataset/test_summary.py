import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.dataset.summary import summarise
from pipeline.generation.generate import generate
from pipeline.storage.store import Folder
from pipeline.teachers.teacher import Teacher
from tests.support.plans import config
from tests.support.problems import SHAPE, make_data, save_tiny_teacher


def straight(device: torch.device) -> Teacher:
    """Every path runs straight to zero at even speed."""
    return Teacher("straight", "1" * 64, lambda x, t, label: x / t[:, None, None, None], SHAPE, t_end=0.1)


def bent(device: torch.device) -> Teacher:
    """x(t) = x(1) + t^2 - 1 in every component: velocity 2 t, mean velocity 1, so S = E (1 - 2t)^2 = 1/3."""

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return 2 * t[:, None, None, None].expand_as(x)

    return Teacher("bent", "2" * 64, velocity, SHAPE)


def test_straight_paths_are_straight(tmp_path: Path) -> None:
    generate(config(tmp_path / "data", teacher="tests.pipeline.dataset.test_summary:straight", dtype="float32"))
    summary = summarise(Folder(tmp_path / "data"))
    assert summary.straightness == pytest.approx(0, abs=1e-6)
    assert summary.detour == pytest.approx(1, abs=1e-4)


def test_the_straightness_of_a_known_path_is_known(tmp_path: Path) -> None:
    source = "tests.pipeline.dataset.test_summary:bent"
    generate(config(tmp_path / "data", teacher=source, states=64, dtype="float32"))
    assert summarise(Folder(tmp_path / "data")).straightness == pytest.approx(1 / 3, rel=0.02)


def test_without_velocities_there_is_no_straightness_but_a_detour(tmp_path: Path) -> None:
    generate(config(tmp_path / "data", velocities=False))
    summary = summarise(Folder(tmp_path / "data"))
    assert summary.straightness is None
    assert summary.detour >= 1


def test_the_histogram_counts_every_record(tmp_path: Path) -> None:
    manifest = generate(config(tmp_path / "data"))
    summary = summarise(Folder(tmp_path / "data"))
    assert sum(records for _, records in summary.nfe) == 20
    assert summary.manifest.sha256 == manifest.sha256
    low, *_, high = (title for title, _ in [*summary.nfe, *summary.nfe])
    assert int(low.split("-")[0]) <= manifest.mean_nfe <= int(high.split("-")[-1])


def test_the_table_says_what_is_there_of_a_set_in_the_making(tmp_path: Path) -> None:
    generate(config(tmp_path / "data"))
    (tmp_path / "data" / "shard-000001.json").unlink()
    said = io.StringIO()
    Console(file=said, width=120).print(summarise(Folder(tmp_path / "data")).table())
    for part in ("gaussian", "dopri5 1e-5", "16 of 20", "4 of 5", "torch", "straightness"):
        assert part in said.getvalue()


def test_the_picture_has_a_row_a_trajectory_from_noise_to_sample(tmp_path: Path) -> None:
    generate(config(tmp_path / "data"))
    pictures = summarise(Folder(tmp_path / "data")).pictures(3)
    assert pictures is not None
    assert list(pictures) == ["record 0", "record 10", "record 19"]
    assert {images.shape for images in pictures.values()} == {(4, *SHAPE)}
    assert all(images.dtype == np.uint8 for images in pictures.values())


def test_the_row_of_a_trajectory_names_its_class(tmp_path: Path) -> None:
    teacher = save_tiny_teacher(tmp_path / "classes.safetensors", num_classes=3)
    pictures = summarise(Folder(make_data(tmp_path, teacher=str(teacher), classes=[2]))).pictures(2)
    assert pictures is not None
    assert list(pictures) == ["record 0, class 2", "record 39, class 2"]


def test_a_set_without_shards_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"wanted a data set; there is no such folder"):
        summarise(Folder(tmp_path / "data"))
    with pytest.raises(BadInput, match=r"wanted a data set; there is no plan\.json"):
        summarise(Folder(tmp_path))
    generate(config(tmp_path / "data"))
    for marker in (tmp_path / "data").glob("shard-*.json"):
        marker.unlink()
    with pytest.raises(BadInput, match="no shard of it is committed yet"):
        summarise(Folder(tmp_path / "data"))
