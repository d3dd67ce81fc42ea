"""The worked examples of CONTRIBUTING.md are true of the code."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support.problems import MEAN, SHAPE, STD, ExactStudent, GaussianFlow, loss_values, tiny_network
from trainer.data.stream import TrajectoryBatch
from trainer.distillation.models import Models
from trainer.distillation.queries import evaluate
from trainer.distillation.random_draws import draw
from trainer.distillation.student import Student

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"^## Add a (.+?)\n.*?```python\n(.*?)```", TEXT, re.MULTILINE | re.DOTALL))


def example(name: str) -> dict[str, Any]:
    """The names that the example of "Add a `name`" defines."""
    names: dict[str, Any] = {}
    exec(compile(EXAMPLES[name], f"CONTRIBUTING.md, Add a {name}", "exec"), names)
    return names


def test_a_teacher_format_reads_what_torch_saved(tmp_path: Path) -> None:
    network = tiny_network()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    loaded = example("teacher format")["load"](tmp_path / "weights.pt", network.config)
    x, t = torch.randn(2, *SHAPE), torch.tensor([0.2, 0.9])
    assert torch.equal(loaded(x, t), network(x, t))


def test_a_loss_is_zero_at_the_exact_student() -> None:
    flow = GaussianFlow(MEAN, STD)
    x_t, t, s = torch.randn(4, *SHAPE), torch.full((4,), 0.9), torch.tensor([0.0, 0.2, 0.4, 0.6])
    loss = example("loss")["mean_velocity_loss"](x_t, t, flow.state(x_t, t, s), s, None)
    exact: Student = ExactStudent(flow)  # type: ignore[assignment]
    torch.testing.assert_close(loss_values(loss, exact), torch.zeros(4))


def test_a_term_reads_a_batch() -> None:
    term = example("loss")["MeanVelocity"](weight=0.5)
    batch = TrajectoryBatch(
        x=torch.randn(6, 4, *SHAPE),
        velocity=None,
        times=torch.tensor([1.0, 0.7, 0.3, 0.0]).expand(6, -1),
        label=None,
        index=torch.arange(6),
    )
    models = Models(tiny_network(second_time=True))
    draws = draw(0, 0, 6, slice(0, 6), 1, None, 1).of(0)
    (values,) = evaluate([term.compute(models, batch, draws)], models.answer)
    assert values.shape == (6,)
    assert term.title == "mean-velocity"


def test_a_feature_space_is_features_of_bytes() -> None:
    space = example("feature space")["pixels"](torch.device("cpu"))
    images = np.array([0, 255], np.uint8).repeat(16).reshape(2, 1, 4, 4)
    assert space.extract(images).features.tolist() == [[-1] * 16, [1] * 16]
