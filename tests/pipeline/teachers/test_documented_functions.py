"""The functions of docs/how-to/teacher.md for models that predict noise, run on models with a known answer."""

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.path import match_dims
from pipeline.teachers.check import check_teacher
from pipeline.teachers.teacher import Teacher, guided
from tests.support.problems import MixtureFlow

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "teacher.md"
CPU = torch.device("cpu")
# Data that lie well inside [-1, 1], so that a clip of the exact estimate does nothing; the last one has no label.
FLOWS = (
    MixtureFlow((-0.7,), 0.05),
    MixtureFlow((0.0,), 0.05),
    MixtureFlow((0.7,), 0.05),
    MixtureFlow((-0.7, 0, 0.7), 0.05),
)
SHAPE = (1, 12, 12)
WEIGHTS = nn.Linear(1, 1).state_dict()


def exact_noise(scaled: Tensor, sigma: Tensor, flow: MixtureFlow) -> Tensor:
    """E[noise | x] of `flow`, from x scaled to unit variance and the noise level [B]."""
    t = sigma / (1 + sigma)
    before = match_dims(t, scaled)
    x = scaled * torch.hypot(1 - before, before)
    return x + (1 - before) * flow.velocity(x, t)


class CosineNet(nn.Linear):
    """What `my_code.MyNet` is in the page: noise from x, the time of a cosine schedule, and a class."""

    error = 0.0

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, x: Tensor, tau: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        sigma = (math.pi / 2 * tau).tan()
        rows = [exact_noise(x[i : i + 1], sigma[i : i + 1], FLOWS[n]) for i, n in enumerate(label.tolist())]
        return torch.cat(rows) + self.error * torch.linspace(-1, 1, 12)


class DdpmNet(nn.Linear):
    """What `UNet2DModel` is in the page: noise from x and a step, which need not be whole, of a table."""

    config = SimpleNamespace(in_channels=1, sample_size=12)
    alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)

    def __init__(self) -> None:
        super().__init__(1, 1)

    @classmethod
    def from_pretrained(cls, _: str) -> Any:
        return cls()

    def forward(self, x: Tensor, step: Tensor) -> Any:  # type: ignore[override]
        sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt().log()
        low = step.long().clamp(max=998)
        sigma = torch.lerp(sigmas[low], sigmas[low + 1], (step - low).double()).exp().float()
        return SimpleNamespace(sample=exact_noise(x, sigma, FLOWS[3]))


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Teacher]:
    """The teacher that the page's function in a file makes, of the models above; `without` a piece of its text."""

    def load(file: str, without: str = "") -> Teacher:
        example = re.search(rf"```python\n# {file}\n(.*?)```", PAGE.read_text(), re.DOTALL)
        assert example
        torch.save(WEIGHTS, tmp_path / "cosine.pt")
        namespace: dict[str, Any] = {}
        assert without in example[1]
        exec(example[1].replace(without, "") if without else example[1], namespace)
        made: Teacher = namespace["load"](CPU)
        return made

    code, diffusers = ModuleType("my_code"), ModuleType("diffusers")
    code.MyNet = CosineNet  # type: ignore[attr-defined]
    diffusers.UNet2DModel = diffusers.DDPMScheduler = DdpmNet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_code", code)
    monkeypatch.setitem(sys.modules, "diffusers", diffusers)
    monkeypatch.chdir(tmp_path)
    return load


def points(teacher: Teacher) -> tuple[Tensor, Tensor]:
    """States [9, *shape] as such flows pass through, and their times [9], from end to end."""
    torch.manual_seed(0)
    t = torch.linspace(teacher.t_start, teacher.t_end, 9)
    data = 0.7 * torch.randint(-1, 2, (9, *SHAPE)) + 0.05 * torch.randn(9, *SHAPE)
    return torch.lerp(data, torch.randn(9, *SHAPE), match_dims(t, data)), t


def test_noise_of_a_cosine_schedule_becomes_the_velocity_of_its_class_or_of_none(
    documented: Callable[..., Teacher],
) -> None:
    teacher = documented("my_cosine.py")
    x, t = points(teacher)
    for label in (0, 1, 2, -1):
        velocity = teacher.velocity(x, t, torch.full((9,), label))
        torch.testing.assert_close(velocity, FLOWS[label].velocity(x, t), atol=2e-3, rtol=1e-3)


def test_noise_of_a_ddpm_becomes_the_velocity(documented: Callable[..., Teacher]) -> None:
    teacher = documented("my_ddpm.py")
    x, t = points(teacher)
    known = t / (1 - t) >= 0.0101  # the first step's noise level
    velocity = teacher.velocity(x, t, None)
    torch.testing.assert_close(velocity[known], FLOWS[3].velocity(x, t)[known], atol=2e-3, rtol=1e-3)


def test_an_error_that_would_overshoot_is_clipped(
    documented: Callable[..., Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CosineNet, "error", 0.5)
    plain, clipped = (
        check_teacher(documented("my_cosine.py", without), 8, 0, CPU) for without in (".clamp(-1, 1)", "")
    )
    assert "clip its estimate of the data" in plain.verdict.warning
    assert not clipped.verdict.complaint
    assert not clipped.verdict.warning


def test_a_documented_model_of_classes_can_be_guided(documented: Callable[..., Teacher]) -> None:
    teacher = documented("my_cosine.py")
    x, t = points(teacher)
    label = torch.arange(9) % 3
    without, with_label = teacher.velocity(x, t, torch.full((9,), -1)), teacher.velocity(x, t, label)
    strong = guided(teacher, 2).velocity(x, t, label)
    torch.testing.assert_close(strong, without + 2 * (with_label - without))
