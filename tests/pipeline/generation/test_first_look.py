"""A set whose first records cannot be data says so once, when they are made."""

from pathlib import Path

import pytest
import torch

from pipeline.flow.solver import Solver
from pipeline.generation.generate import generate
from pipeline.generation.parts import Part, generate_part
from pipeline.teachers.teacher import Teacher
from tests.support.plans import config
from tests.support.problems import SHAPE, GaussianFlow

SIZES = {"shard_size": 16, "batch_size": 16, "block_size": 16, "solver": Solver(name="rk4", num_steps=12), "states": 8}
FLOW = GaussianFlow()


def true(device: torch.device) -> Teacher:
    return Teacher("true", "0" * 64, FLOW.velocity, SHAPE, data_range=(-1.5, 2.0))


def reversed_flow(device: torch.device) -> Teacher:
    return Teacher("reversed", "0" * 64, lambda x, t, label: FLOW.velocity(x, 1 - t), SHAPE, data_range=(-1.5, 2.0))


def collapsed(device: torch.device) -> Teacher:
    return Teacher("collapsed", "0" * 64, lambda x, t, label: x / t.clamp(min=1e-3)[:, None, None, None], SHAPE)


def steep(device: torch.device) -> Teacher:
    def velocity(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        return FLOW.velocity(x, t) + 0.02 * x / (1.001 - t)[:, None, None, None]

    return Teacher("steep", "0" * 64, velocity, SHAPE, data_range=(-1.5, 2.0))


@pytest.mark.parametrize(
    ("factory", "velocities", "said"),
    [
        ("true", True, None),
        ("true", False, None),
        ("reversed_flow", True, "points the other way"),
        ("collapsed", False, "the model has collapsed"),
        ("steep", True, "huge at t = 1"),
    ],
)
def test_the_first_records_are_looked_at_once(
    factory: str, velocities: bool, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"teacher": f"{__name__}:{factory}", "velocities": velocities, **SIZES}
    generate(config(tmp_path / "data", n=32, **values))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == (said is not None)
    for note in notes:
        assert note.startswith("note: the first records look wrong: ")
        assert str(said) in note
        assert note.endswith(f"; see traflow-pipeline teachers check {__name__}:{factory}")
    generate(config(tmp_path / "data", n=64, **values))
    assert "note: " not in capsys.readouterr().out


def test_by_the_part_that_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = config(tmp_path / "data", teacher=f"{__name__}:reversed_flow", n=64, **SIZES)
    for number in (2, 1):
        generate_part(asked, Part(number, 2))
        assert capsys.readouterr().out.count("note: ") == (number == 1)
