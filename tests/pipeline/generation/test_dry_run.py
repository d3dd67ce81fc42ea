from pathlib import Path

import pytest
import torch

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.generation.dry_run import dry_run
from pipeline.generation.generate import generate
from pipeline.teachers.probe import probe
from pipeline.teachers.teacher import Teacher
from tests.support.plans import config
from tests.support.problems import SHAPE


def test_the_bytes_foretold_are_the_bytes_stored(tmp_path: Path) -> None:
    asked = config(tmp_path / "data", shard_size=64, batch_size=32, block_size=16, n=256)
    foretold = dry_run(asked)
    assert not (tmp_path / "data").exists()
    manifest = generate(asked)
    stored = sum(path.stat().st_size for path in (tmp_path / "data").glob("*.tar"))
    assert foretold.num_bytes == pytest.approx(stored, rel=0.01)
    assert foretold.nfe == manifest.blocks["nfe"][0].as_py()
    assert foretold.num_committed == 0
    assert dry_run(asked.model_copy(update={"n": 512})).num_committed == 256


def test_hours_are_records_over_samples_per_second_over_workers(tmp_path: Path) -> None:
    found = dry_run(config(tmp_path / "data", executor="ray", workers=4, n=1000))
    assert found.num_workers == 4
    assert found.samples_per_second == pytest.approx(2 / found.batch_seconds)
    assert found.seconds == pytest.approx(1000 / found.samples_per_second / 4)
    said = "\n".join(found.lines())
    for part in (
        "1,000 trajectories; nothing was written",
        "evaluations per sample",
        "samples/s",
        "hours",
        "4 workers",
    ):
        assert part in said


def test_another_plan_there_is_refused(tmp_path: Path) -> None:
    generate(config(tmp_path / "data"))
    with pytest.raises(BadInput, match="seed: 0 there, 1 asked"):
        dry_run(config(tmp_path / "data", seed=1))


def broken(device: torch.device) -> Teacher:
    def velocity(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        raise ValueError("boom")

    return Teacher("broken", "4" * 64, velocity, SHAPE)


def test_what_a_teacher_raises_is_said_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(
        WorkFailed, match=r"teacher broken: .*test_dry_run.py:\d+ in velocity: ValueError: boom \(called"
    ):
        dry_run(config(tmp_path / "data", teacher="tests.pipeline.generation.test_dry_run:broken"))
    with pytest.raises(
        WorkFailed, match=r"teacher broken: .*test_dry_run.py:\d+ in velocity: ValueError: boom \(called"
    ):
        probe(broken(torch.device("cpu")), 4, 0, torch.device("cpu"))


def labelled(device: torch.device) -> Teacher:
    def velocity(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        assert label is not None
        return torch.zeros_like(x)

    return Teacher("labelled", "3" * 64, velocity, SHAPE, num_classes=3)


def test_a_conditional_teacher_is_tried_with_labels(tmp_path: Path) -> None:
    assert dry_run(config(tmp_path / "data", teacher="tests.pipeline.generation.test_dry_run:labelled")).nfe > 0
