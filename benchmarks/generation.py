"""Stage 1 on a CPU, in three tables; the first two on one thread, as a shard is made.

1. The share of a shard's wall time (noise, solver, stored velocities, tar, checksums, fsync) that the teacher's own
   forward passes take. What is left is what this project adds.
2. `pipeline.flow.solver.integrate` beside `scipy.integrate.solve_ivp` as the samplers of Rectified Flow and SlimFlow
   call it (the batch as one float64 vector on the host, copied to float32 and back for every evaluation): the same
   network, tolerance, noise and number of threads.
3. The same work as users have it done on a whole machine: `generate` on a local Ray, its start included, beside a
   script that loops over batches with `solve_ivp` on as many threads as torch likes, and saves arrays at its end.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from benchmarks.common import in_turn, main, one_thread, table
from pipeline import networks
from pipeline.flow.noise import draw_noise
from pipeline.flow.numerics import fixed_numerics
from pipeline.flow.solver import Solution, Solver, Velocity, integrate
from pipeline.generation.generate import GenerateConfig, generate, make_plan
from pipeline.generation.shard import generate_and_commit
from pipeline.networks.song import SongUNetConfig
from pipeline.storage.store import Folder
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import NetworkVelocity, Teacher

TOLERANCE = 1e-5
DOPRI5, RK4 = Solver(name="dopri5", rtol=TOLERANCE, atol=TOLERANCE), Solver(name="rk4", num_steps=9)
LARGE = SongUNetConfig(resolution=32, image_channels=3, channels=64, channel_mult=(1, 2, 2, 2), num_blocks=4)
SMALL = SongUNetConfig(resolution=16, image_channels=3, channels=16, channel_mult=(1, 2), num_blocks=1, time_scale=16)


def benchmark(quick: bool) -> str:
    """The tables, as Markdown."""
    with fixed_numerics(), one_thread():  # numpy's threads too, which sum solve_ivp's stages
        on_one_thread = _shares_of_shards(quick) + "\n" + _beside_scipy(quick)
    return on_one_thread + "\n" + _on_the_whole_machine(quick)


def random_teacher(name: str, config: SongUNetConfig, scale: float) -> Teacher:
    """A network moved by `scale` times standard normal weights: its own start is near zero, an ODE without a bend."""
    torch.manual_seed(0)
    network = networks.build(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(scale * torch.randn_like(parameter))
    return Teacher(name, "0" * 64, NetworkVelocity(network), config.shape, network=network)


def conv_teacher() -> Teacher:
    """Three convolutions: a network so cheap that what is around it counts."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1), nn.SiLU())
    net = nn.Sequential(*net, nn.Conv2d(32, 3, 3, padding=1)).eval().requires_grad_(False)

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        answer: Tensor = 10 * net(x) * t[:, None, None, None]
        return answer

    return Teacher("three convolutions 32x32x3", "0" * 64, velocity, (3, 32, 32))


def network_share(velocity: Velocity, work: Callable[[Velocity], object]) -> tuple[float, float]:
    """Seconds that `work` takes with `velocity`, and the share of them that `velocity` itself takes."""
    inside = 0.0

    def watched(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        nonlocal inside
        started = time.perf_counter()
        answer = velocity(x, t, label)
        inside += time.perf_counter() - started
        return answer

    started = time.perf_counter()
    work(watched)
    seconds = time.perf_counter() - started
    return seconds, inside / seconds


def _shares_of_shards(quick: bool) -> str:
    digits, large = load_teacher("digits"), random_teacher("random 32x32x3", LARGE, 0.02)
    n, repeats = (64, 1) if quick else (256, 3)
    rows = [_share_of_shard(digits, solver, n, 64, repeats) for solver in (DOPRI5, RK4)]
    if quick:
        rows.append(_share_of_shard(large, Solver(name="rk4", num_steps=2), 4, 4, repeats))
    else:
        rows.append(_share_of_shard(large, RK4, 8, 8, repeats))
    columns = ["teacher", "parameters", "solver", "records", "batch", "seconds", "teacher's share"]
    return table("Generation: the teacher's share of a shard's wall time (wanted: at least 90 %)", columns, rows)


def _share_of_shard(teacher: Teacher, solver: Solver, n: int, batch_size: int, repeats: int) -> list[str]:
    """One row: `repeats` shards of `n` records."""
    teacher.velocity(torch.zeros(batch_size, *teacher.shape), torch.zeros(batch_size), None)  # it picks its kernels
    with tempfile.TemporaryDirectory() as folder:
        config = GenerateConfig(
            teacher=teacher.name,
            n=n,
            out=folder,
            states=min(8, (solver.num_steps or 9) - 1),
            solver=solver,
            shard_size=n,
            batch_size=batch_size,
            block_size=batch_size,
        )
        plan = make_plan(config, teacher)
        [shard] = plan.shards(n)

        def make(store: Folder, velocity: Velocity) -> None:
            generate_and_commit(plan, shard, replace(teacher, velocity=velocity), store, torch.device("cpu"))

        stores = [Folder(Path(folder) / str(i)) for i in range(repeats)]
        timed = [network_share(teacher.velocity, partial(make, store)) for store in stores]
    seconds, share = (statistics.median(column) for column in zip(*timed, strict=True))
    return [teacher.name, _parameters(teacher), str(solver), str(n), str(batch_size), f"{seconds:.2f}", f"{share:.1%}"]


def _parameters(teacher: Teacher) -> str:
    assert teacher.network is not None
    return f"{sum(p.numel() for p in teacher.network.parameters()) / 1e6:.1f} M"


def _beside_scipy(quick: bool) -> str:
    digits, small, conv = load_teacher("digits"), random_teacher("random 16x16x3", SMALL, 0.1), conv_teacher()
    cases = [(digits, 16), (small, 16), (conv, 16)]
    if not quick:
        cases[1:1] = [(digits, 64), (digits, 256)]
    columns = ["teacher, batch", "scipy: ms a sample", "evaluations", "of its time in the network"]
    columns += ["ours: ms a sample", "evaluations", "RMS apart", "median sample", "ours faster by"]
    rows = [_row_beside_scipy(teacher, batch_size, 1 if quick else 5) for teacher, batch_size in cases]
    title = "Generation: dopri5 beside scipy's RK45, rtol = atol = 1e-5 (wanted: at least 2 times faster)"
    note = "No solver that asks the same network as often can be faster by more than 1 / (share of the network)."
    return table(title, columns, rows, note)


def _row_beside_scipy(teacher: Teacher, batch_size: int, repeats: int) -> list[str]:
    x = torch.from_numpy(draw_noise(0, range(batch_size), teacher.shape))
    sides: dict[str, Callable[[], Solution]] = {
        "scipy": lambda: solve_with_scipy(teacher.velocity, x),
        "ours": lambda: integrate(teacher.velocity, x, torch.tensor([1.0, 0.0]), None, DOPRI5),
    }
    timed = in_turn(sides, repeats)
    scipy, ours = timed["scipy"], timed["ours"]
    _, share = network_share(teacher.velocity, lambda velocity: solve_with_scipy(velocity, x))
    squares = (ours.result.states[-1] - scipy.result.states[-1]).double().square().flatten(1).mean(1)
    return [
        f"{teacher.name}, {batch_size}",
        f"{1e3 * scipy.seconds / batch_size:.2f}",
        str(scipy.result.nfe),
        f"{share:.1%}",
        f"{1e3 * ours.seconds / batch_size:.2f}",
        str(ours.result.nfe),
        f"{float(squares.mean().sqrt()):.1e}",
        f"{float(squares.median().sqrt()):.1e}",
        f"{scipy.seconds / ours.seconds:.2f} x",
    ]


def _on_the_whole_machine(quick: bool) -> str:
    n, batch_size, teacher = (256, 64, load_teacher("digits")) if quick else (4096, 256, load_teacher("digits"))

    def with_ray(folder: Path) -> None:
        config = GenerateConfig(
            teacher="digits",
            n=n,
            out=str(folder),
            states=0,
            velocities=False,
            solver=DOPRI5,
            shard_size=batch_size,
            batch_size=batch_size,
        )
        generate(config)

    def with_a_script(folder: Path) -> None:
        noise = draw_noise(0, range(n), teacher.shape)
        batches = [torch.from_numpy(noise[start : start + batch_size]) for start in range(0, n, batch_size)]
        samples = [solve_with_scipy(teacher.velocity, x).states[-1].numpy() for x in batches]
        folder.mkdir()
        np.savez(folder / "pairs.npz", noise=noise, samples=np.concatenate(samples))

    sides = {"solve_ivp in one process": with_a_script, "generate, a worker a core": with_ray}
    seconds = {}
    for name, side in sides.items():
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
            started = time.perf_counter()
            side(Path(folder) / "out")
            seconds[name] = time.perf_counter() - started
    slowest = max(seconds.values())
    rows = [[name, f"{took:.1f}", f"{1e3 * took / n:.2f}", f"{slowest / took:.2f} x"] for name, took in seconds.items()]
    title = f"Generation: {n} samples of digits by RK45 at 1e-5 on all cores, from start to end (one run of each)"
    return table(title, ["", "seconds", "ms a sample", "faster by"], rows)


@torch.no_grad()
def solve_with_scipy(velocity: Velocity, x: Tensor) -> Solution:
    """From x float32 [B, ...] at t = 1 to t = 0, as Rectified Flow's `rk45_sampler` does it."""

    def func(t: float, flat: NDArray[np.float64]) -> NDArray[np.float32]:
        state = torch.from_numpy(flat.reshape(x.shape)).to(x.device).type(torch.float32)
        drift = velocity(state, torch.ones(len(state), device=x.device) * t, None)
        flattened: NDArray[np.float32] = drift.detach().cpu().numpy().reshape(-1)
        return flattened

    start = x.cpu().numpy().reshape(-1)  # solve_ivp makes it float64
    solution = solve_ivp(func, (1.0, 0.0), start, method="RK45", rtol=TOLERANCE, atol=TOLERANCE)
    end = torch.tensor(solution.y[:, -1]).reshape(x.shape).to(x.device).type(torch.float32)
    return Solution(end[None], solution.nfev)


if __name__ == "__main__":
    main(__doc__, benchmark)
