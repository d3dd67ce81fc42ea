"""A teacher of your own: train a small flow on toy images, then store its trajectories.

    python examples/my_teacher.py

Time runs from 1, noise, to 0, data: x_t = (1 - t) data + t noise, and the velocity is dx/dt = noise - data.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

import traflow_pipeline as tp
from pipeline.teachers.teacher import state_sha256

SHAPE = (1, 8, 8)
WEIGHTS = Path("runs/my-teacher/weights.pt")


class Flow(nn.Module):
    """x [B, 1, 8, 8] and t [B] to the velocity there."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(65, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        velocity: Tensor = self.layers(torch.cat([x.flatten(1), t[:, None]], 1))
        return velocity.view_as(x)


def bars(count: int) -> Tensor:
    """Images with one bright column, in [-1, 1]."""
    columns = nn.functional.one_hot(torch.randint(8, (count,)), 8)
    return 2 * columns[:, None, None, :].expand(-1, *SHAPE[:2], 8).float() - 1


def fit(num_steps: int) -> Flow:
    """Flow matching: regress the velocity of straight lines from noise to data."""
    torch.manual_seed(0)
    flow = Flow()
    optimizer = torch.optim.AdamW(flow.parameters(), lr=2e-3)
    for _ in range(num_steps):
        data, noise, t = bars(256), torch.randn(256, *SHAPE), torch.rand(256)
        x = torch.lerp(data, noise, t[:, None, None, None])
        loss = (flow(x, t) - (noise - data)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return flow


def load(device: torch.device) -> tp.Teacher:
    """The factory that `--teacher my_teacher:load` names; every worker calls it."""
    flow = Flow()
    flow.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    flow = flow.to(device).eval().requires_grad_(False)

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        answer: Tensor = flow(x, t)
        return answer

    return tp.Teacher("my-teacher", state_sha256(flow.state_dict()), velocity, SHAPE)


def main(num_steps: int = 1000, n: int = 1024) -> None:
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    torch.save(fit(num_steps).state_dict(), WEIGHTS)
    dataset = tp.generate(
        teacher="my_teacher:load",
        n=n,
        out=WEIGHTS.parent / f"data-{num_steps}",
        executor="inline",  # in this process; "ray" uses all CPUs or GPUs
    )
    print(f"{len(dataset)} trajectories, from {dataset[0].noise.std():.2f} noise to a {dataset.plan.shape} sample")


if __name__ == "__main__":
    main()
