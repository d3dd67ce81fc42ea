"""Stage 1 on one thread of the CPU, in two tables.

1. Of the wall time of a shard (noise, solver, stored velocities, tar, checksums, fsync), the share that the teacher's
   own forward passes take. What is left is what this project adds.
2. `pipeline.solver.integrate` beside `scipy.integrate.solve_ivp`, as the samplers of Rectified Flow and SlimFlow call it
   (the batch as one float64 vector on the host, copied to float32 and back for every evaluation): the same network,
   tolerance, noise and number of threads.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.common import in_turn, main, table
from pipeline import networks
from pipeline.dataset import GenerateConfig, make_plan
from pipeline.generate import NUM_THREADS, fixed_numerics, generate_and_commit
from pipeline.networks.song import SongUNetConfig
from pipeline.noise import draw_noise
from pipeline.solver import Solution, Solver, Velocity, integrate
from pipeline.store import Folder
from pipeline.teachers import load_teacher
from pipeline.teachers.teacher import NetworkVelocity, Teacher

CPU = torch.device("cpu")
TOLERANCE = 1e-5
LARGE = SongUNetConfig(resolution=32, image_channels=3, channels=64, channel_mult=(1, 2, 2, 2), num_blocks=4)
SMALL = SongUNetConfig(resolution=16, image_channels=3, channels=16, channel_mult=(1, 2), num_blocks=1, time_scale=16)


def benchmark(quick: bool) -> str:
    """Both tables, as Markdown."""
    with threadpool_limits(NUM_THREADS):  # numpy's, which solve_ivp sums its stages with
        return _teacher_shares(quick) + "\n" + _beside_scipy(quick)


def random_teacher(name: str, config: SongUNetConfig, size: float) -> Teacher:
    """A network with random weights; `size` scales those it does not start with, as its own start is near zero."""
    torch.manual_seed(0)
    network = networks.build(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(size * torch.randn_like(parameter))
    return Teacher(name, "0" * 64, NetworkVelocity(network), config.shape, network=network)


def _teacher_shares(quick: bool) -> str:
    digits, large = load_teacher("digits"), random_teacher("random 32x32x3", LARGE, 0.02)
    n, repeats = (128, 1) if quick else (1024, 3)
    rk4 = Solver(name="rk4", num_steps=9)
    rows = [
        _teacher_share(digits, Solver(name="dopri5"), n, 64, repeats),
        _teacher_share(digits, rk4, n, 64, repeats),
        _teacher_share(large, Solver(name="rk4", num_steps=2), 4, 4, 1)
        if quick
        else _teacher_share(large, rk4, 16, 8, repeats),
    ]
    columns = ["teacher", "parameters", "solver", "records x batch", "seconds a shard", "teacher's share"]
    return table("Generation: the teacher's share of a shard's wall time (wanted: at least 90 %)", columns, rows)


def _teacher_share(teacher: Teacher, solver: Solver, n: int, batch_size: int, repeats: int) -> list[str]:
    """One row: whole shards of `n` records, the first of them untimed."""
    asked = 0.0

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        nonlocal asked
        started = time.perf_counter()
        answer = teacher.velocity(x, t, label)
        asked += time.perf_counter() - started
        return answer

    states = 8 if solver.num_steps is None else min(8, solver.num_steps - 1)
    sizes = {"shard_size": n, "batch_size": batch_size, "block_size": batch_size}
    seconds, shares = [], []
    with tempfile.TemporaryDirectory() as folder:
        config = GenerateConfig(teacher=teacher.name, n=n, out=folder, states=states, solver=solver, **sizes)
        plan = make_plan(config, teacher)
        for repeat in range(repeats + 1):
            store, asked = Folder(Path(folder) / str(repeat)), 0.0
            started = time.perf_counter()
            generate_and_commit(plan, plan.shards(n)[0], replace(teacher, velocity=velocity), store, CPU)
            seconds.append(time.perf_counter() - started)
            shares.append(asked / seconds[-1])
    assert teacher.network is not None
    parameters = sum(p.numel() for p in teacher.network.parameters())
    wall, share = statistics.median(seconds[1:]), statistics.median(shares[1:])
    return [
        teacher.name,
        f"{parameters / 1e6:.1f} M",
        str(solver),
        f"{n} x {batch_size}",
        f"{wall:.2f}",
        f"{share:.1%}",
    ]


def _beside_scipy(quick: bool) -> str:
    digits, small = load_teacher("digits"), random_teacher("random 16x16x3", SMALL, 0.1)
    cases = [(digits, 16), (small, 16)] if quick else [(digits, 16), (digits, 64), (digits, 256), (small, 16)]
    with fixed_numerics():
        rows = [_one_beside_scipy(teacher, batch_size, 3 if quick else 7) for teacher, batch_size in cases]
    columns = ["teacher", "batch", "scipy ms a sample", "ours ms a sample", "scipy evaluations", "ours", "RMS apart"]
    columns.append("ours faster by")
    title = "Generation: dopri5 beside scipy's RK45, rtol = atol = 1e-5 (wanted: at least 2 times faster)"
    return table(title, columns, rows)


def _one_beside_scipy(teacher: Teacher, batch_size: int, repeats: int) -> list[str]:
    x = torch.from_numpy(draw_noise(0, range(batch_size), teacher.shape))
    solver = Solver(name="dopri5", rtol=TOLERANCE, atol=TOLERANCE)
    times = torch.tensor([1.0, 0.0])
    sides: dict[str, Callable[[], Solution]] = {
        "scipy": lambda: solve_with_scipy(teacher.velocity, x),
        "ours": lambda: integrate(teacher.velocity, x, times, None, solver),
    }
    timed = in_turn(sides, repeats)
    scipy, ours = timed["scipy"], timed["ours"]
    rms = float((ours.result.states[-1] - scipy.result.states[-1]).double().square().mean().sqrt())
    per_sample = [f"{1e3 * side.seconds / batch_size:.3f}" for side in (scipy, ours)]
    evaluations = [str(side.result.nfe) for side in (scipy, ours)]
    ratio = f"{scipy.seconds / ours.seconds:.2f} x"
    return [teacher.name, str(batch_size), *per_sample, *evaluations, f"{rms:.1e}", ratio]


@torch.no_grad()
def solve_with_scipy(velocity: Velocity, x: Tensor) -> Solution:
    """From x float32 [B, ...] at t = 1 to t = 0, as Rectified Flow's `rk45_sampler` does it."""

    def func(t: float, flat: NDArray[np.float64]) -> NDArray[np.float32]:
        state = torch.from_numpy(flat.reshape(x.shape)).to(x.device).type(torch.float32)
        drift = velocity(state, torch.ones(len(state), device=x.device) * t, None)
        flattened: NDArray[np.float32] = drift.detach().cpu().numpy().reshape(-1)
        return flattened

    start = x.cpu().numpy().reshape(-1)
    solution = solve_ivp(func, (1.0, 0.0), start, method="RK45", rtol=TOLERANCE, atol=TOLERANCE)
    end = torch.tensor(solution.y[:, -1]).reshape(x.shape).to(x.device).type(torch.float32)
    return Solution(end[None], solution.nfev)


if __name__ == "__main__":
    main(__doc__, benchmark)
