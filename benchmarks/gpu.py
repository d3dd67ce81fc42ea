"""What needs a GPU, in at most eight minutes: a table on standard output, and the same figures as JSON.

Parts in order of worth, each with its own time limit; figures are written as they are measured, so that a lease that
ends early still gives those before.

1. Checks: small trainings in bf16, in fp16, compiled, and resumed; a shard made twice, and in another process.
2. Generation: samples/s of one evaluation of networks of 15.7, 55.7 and 295.9 M parameters with random weights, and
   the share of the device's peak, by precision, compiled or not.
3. Training of the 15m student, compiled, by each loss of the paper and by `anchored`, beside the paper's images/s on an
   H100: memory, and the operations of a step; the share of its time that the loop waits for batches.
4. A shard as `generate` makes it: the teacher's share of its wall time.
5. Evaluations and error of a solver by precision, as `probe` measures them.
6. The largest batch that helps the 295.9 M network.
7. dopri5 beside SciPy's RK45 on the flattened batch, as Rectified Flow samples.
8. Sampling with 1, 2 and 4 evaluations beside the teacher's solver; `evaluate` end to end on 10,000 samples.
9. Training as in 3, not compiled.

`--tiny` runs every line of it on small networks, in under a minute on a CPU: whether it runs, not how fast.
"""

import argparse
import hashlib
import json
import math
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import table
from benchmarks.operations import Operations
from benchmarks.training import LOSSES, PAPER, HeldBatch, cifar10, log_of_training
from eval.config import EvaluateConfig
from eval.evaluate import evaluate
from eval.features.spaces import Extracted, FeatureSpace
from eval.metrics.cost import count_flops
from eval.sampling.precision import Precision, fixed_arithmetic
from eval.sampling.samplers import Sampler, draw_samples, student_sampler, teacher_sampler
from pipeline import networks
from pipeline.common.config import merge
from pipeline.common.device import pick_device
from pipeline.common.errors import one_line
from pipeline.dataset.plan import Plan
from pipeline.flow.solver import Solution, Solver, integrate
from pipeline.generation.shard import generate_shard
from pipeline.networks.dhariwal import DhariwalUNetConfig
from pipeline.networks.song import SongUNetConfig
from pipeline.networks.unet import UNet, UNetConfig
from pipeline.storage.store import Folder
from pipeline.teachers import teacher as teachers
from pipeline.teachers.compilation import Compiled, compile_teacher
from pipeline.teachers.precision import PRECISIONS, parse_precisions
from pipeline.teachers.probe import probe
from pipeline.teachers.teacher import Teacher
from trainer.checkpoints import checkpoint
from trainer.config import TrainConfig
from trainer.distillation.student import from_teacher
from trainer.train import train

BUDGET = 450  # seconds
RESUMED_CLOSE = 1e-3  # weights of two trainings on a GPU, whose kernels add up in no fixed order
INIT_STD = 0.02  # of layers that start at zero, which would make an ODE without a bend
# Dense TFLOP/s of the datasheets, by a part of the device's name.
PEAKS: dict[str, dict[Precision, float]] = {
    "H100": {"fp32": 67, "tf32": 494.7, "bf16": 989.4},
    "H200": {"fp32": 67, "tf32": 494.7, "bf16": 989.4},
    "A100": {"fp32": 19.5, "tf32": 156, "bf16": 312},
}
NETWORKS: dict[str, UNetConfig] = {
    "15.7 M": SongUNetConfig(resolution=32, image_channels=3, channels=96, channel_mult=(1, 2, 2), num_blocks=2),
    "55.7 M": SongUNetConfig(resolution=32, image_channels=3, channel_mult=(2, 2, 2), convention="edm"),
    "295.9 M": DhariwalUNetConfig(
        resolution=64,
        image_channels=3,
        channels=192,
        channel_mult=(1, 2, 3, 4),
        num_blocks=3,
        num_classes=1000,
        convention="edm",
    ),
}
TINY = SongUNetConfig(resolution=32, image_channels=3, channels=8, channel_mult=(1,), num_blocks=1)
TINY_NETWORK = TINY.model_dump(exclude={"second_time"})
TINY_TRAINING = {"network": TINY_NETWORK, "trainer": {"num_steps": 2, "checkpoint_every": 2}}


@dataclass(frozen=True)
class Evaluation:
    """A network to evaluate once."""

    network: str
    precision: Precision
    batch_size: int
    compiled: Compiled = False


# The fastest first; convolutions of fp32 need no choice of kernels, and a compilation takes half a minute.
EVALUATIONS = (
    Evaluation("55.7 M", "bf16", 256, compiled=True),
    Evaluation("15.7 M", "bf16", 256, compiled=True),
    Evaluation("55.7 M", "bf16", 256),
    Evaluation("15.7 M", "bf16", 256),
    Evaluation("295.9 M", "bf16", 64),
    Evaluation("55.7 M", "tf32", 256),
    Evaluation("55.7 M", "fp32", 256),
    Evaluation("15.7 M", "tf32", 256),
    Evaluation("15.7 M", "fp32", 256),
    Evaluation("15.7 M", "bf16", 1024),
    Evaluation("295.9 M", "tf32", 64),
    Evaluation("295.9 M", "fp32", 64),
    Evaluation("295.9 M", "bf16", 64, compiled=True),
    Evaluation("15.7 M", "bf16", 64, compiled=True),
    Evaluation("15.7 M", "bf16", 64, compiled="graphs"),
)


class TimeUp(BaseException):
    """A part's time is up. Not an Exception: libraries that catch those must not catch this one."""


@dataclass
class Run:
    """What the parts share: the device, whether to be tiny, a folder of their own, and the figures so far."""

    device: torch.device
    is_tiny: bool
    folder: Path
    out: Path
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, part: str, **row: Any) -> None:
        """Keep and show a row of `part`."""
        self.rows.setdefault(part, []).append(row)
        print(f"{part}: " + ", ".join(f"{name} {_text(value)}" for name, value in row.items()), file=sys.stderr)
        self.write()

    def write(self) -> None:
        """Write all figures so far as JSON."""
        found = {"machine": machine(self.device), "tiny": self.is_tiny, "parts": self.rows, "remarks": self.remarks}
        self.out.write_text(json.dumps(found, indent=1) + "\n")

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self, work: Callable[[], object], seconds: float = 1.0) -> float:
        """How often a second `work` is done, once it has been done twice to choose kernels."""
        work()
        self.synchronise()
        started = time.perf_counter()
        work()
        self.synchronise()
        once = time.perf_counter() - started
        count = 1 if self.is_tiny else max(1, min(1000, round(seconds / once)))
        started = time.perf_counter()
        for _ in range(count):
            work()
        self.synchronise()
        return count / (time.perf_counter() - started)

    @cached_property
    def training_config(self) -> TrainConfig:
        """The training of the config cifar10-15m, on a few random records, which are written once."""
        case = cifar10(self.folder / "training", quick=self.is_tiny)
        changes = TINY_TRAINING if self.is_tiny else {"trainer": {"batch_size": 256, "num_steps": 60, "log_every": 20}}
        return TrainConfig.model_validate(merge(case.config.model_dump(), {"device": str(self.device), **changes}))

    def teacher(self, name: str) -> Teacher:
        """A teacher of random weights with the network called `name` in `NETWORKS`."""
        config = TINY if self.is_tiny else NETWORKS[name]
        return teachers.of_network(name, "0" * 64, random_network(config, self.device), self.device)


def machine(device: torch.device) -> dict[str, str]:
    """The card and the software that the figures are of."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": card, "torch": torch.__version__, "python": platform.python_version()}


def random_network(config: UNetConfig, device: torch.device) -> UNet:
    """A network of random weights, also where a training would start at zero."""
    torch.manual_seed(0)
    with device:
        built = networks.build(config)
    network = networks.lay_out(built).eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(std=INIT_STD)
    return network


# Generation: one evaluation


def evaluations(run: Run) -> None:
    """Rows of one evaluation of a network, and the share of the device's peak."""
    for case in EVALUATIONS:
        with suppress_failure(run, f"evaluation of {case}"):
            _evaluation_row(run, "evaluation", replace(case, batch_size=2) if run.is_tiny else case)


def _evaluation_row(run: Run, part: str, case: Evaluation) -> float:
    """Add a row of `case` to `part`; returns its samples/s."""
    config = TINY if run.is_tiny else NETWORKS[case.network]
    with torch.device("meta"):
        flops = count_flops(networks.build(config))
    rate = run.rate(_evaluation(run, config, case)) * case.batch_size
    teraflops = rate * flops / 1e12
    run.add(
        part,
        network=case.network,
        precision=case.precision,
        compiled=case.compiled,
        batch=case.batch_size,
        samples_per_second=rate,
        teraflops=teraflops,
        share_of_peak=_share_of_peak(run.device, case.precision, teraflops),
    )
    return rate


def _evaluation(run: Run, config: UNetConfig, case: Evaluation) -> Callable[[], object]:
    network: Callable[..., Tensor] = random_network(config, run.device)
    if case.compiled:
        torch.compiler.reset()
        mode = "reduce-overhead" if case.compiled == "graphs" and not run.is_tiny else None
        network = torch.compile(network, dynamic=False, backend="eager" if run.is_tiny else "inductor", mode=mode)
    x = torch.randn(case.batch_size, *config.shape, device=run.device)
    t = torch.full((case.batch_size,), 0.5, device=run.device)
    label = torch.zeros(case.batch_size, dtype=torch.int64, device=run.device) if config.num_classes else None

    @torch.no_grad()
    def evaluate_once() -> None:
        with fixed_arithmetic(case.precision, run.device):
            network(x, t, label=label)

    return evaluate_once


def _share_of_peak(device: torch.device, precision: Precision, teraflops: float) -> float | None:
    name = machine(device)["device"]
    return next((teraflops / peaks[precision] for part, peaks in PEAKS.items() if part in name), None)


# Generation: more than one evaluation


def errors(run: Run) -> None:
    """Rows of evaluations and error by precision, of an adaptive solver and one of fixed steps."""
    precisions = (*PRECISIONS[:2],) if run.is_tiny else parse_precisions(None, run.device)
    solvers = (Solver(), Solver(name="rk4", num_steps=8))
    found = probe(run.teacher("15.7 M"), 2 if run.is_tiny else 64, 0, run.device, None, precisions, solvers)
    for point in found.points:
        run.add(
            "error",
            precision=point.precision,
            solver=str(point.solver),
            evaluations=point.nfe,
            median=point.median,
            nine_of_ten=point.p90,
            ms_per_sample=1e3 * point.seconds,
        )


def beside_scipy(run: Run) -> None:
    """Rows of dopri5 and of SciPy's RK45, which copies the batch to the host and back at each evaluation."""
    if find_spec("scipy") is None:
        run.remarks.append("SciPy's RK45 was left out: wanted scipy")
        return
    from benchmarks.generation import DOPRI5, solve_with_scipy

    teacher, batch_size = run.teacher("15.7 M"), 2 if run.is_tiny else 256
    x, ends = torch.randn(batch_size, 3, 32, 32, device=run.device), torch.tensor([1.0, 0.0], device=run.device)
    solvers: dict[str, Callable[[], Solution]] = {
        "dopri5 1e-5": lambda: integrate(teacher.velocity, x, ends, None, DOPRI5),
        "scipy RK45 1e-5": lambda: solve_with_scipy(teacher.velocity, x),
    }
    with fixed_arithmetic("fp32", run.device), torch.no_grad():
        teacher.velocity(x, torch.ones(batch_size, device=run.device), None)  # kernels are chosen
        for name, solve in solvers.items():
            run.synchronise()
            started = time.perf_counter()
            nfe = solve().nfe
            run.synchronise()
            seconds = time.perf_counter() - started
            rates = {"samples_per_second": batch_size / seconds, "ms_per_evaluation": 1e3 * seconds / nfe}
            run.add("solver", solver=name, batch=batch_size, evaluations=nfe, **rates)


def largest_batch(run: Run) -> None:
    """Rows of the 295.9 M network in bf16 at doubled batches, until they help no more or do not fit; then compiled."""
    best, batch_size = 0.0, 1 if run.is_tiny else 64
    while (rate := _try_batch(run, batch_size, compiled=False)) > 1.03 * best and batch_size < (
        2 if run.is_tiny else 4096
    ):
        best, batch_size = rate, 2 * batch_size
    _try_batch(run, batch_size if rate > best else batch_size // 2, compiled=True)


def _try_batch(run: Run, batch_size: int, compiled: bool) -> float:
    """Add a row of the 295.9 M network; returns its samples/s, 0 where the batch does not fit."""
    try:
        return _evaluation_row(run, "batch", Evaluation("295.9 M", "bf16", batch_size, compiled))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        run.remarks.append(f"295.9 M, bf16: a batch of {batch_size} does not fit")
        return 0.0


# Training


def training(run: Run, title: str, compiled: bool) -> None:
    """A row of images/s on a held batch, by the loss called `title` or by `anchored`."""
    config = run.training_config
    recipe = {"phases": [{"terms": [LOSSES[title]]}]} if title in LOSSES else config.recipe.model_dump()
    case = TrainConfig.model_validate(config.model_dump() | {"recipe": recipe})
    run.add("training", loss=title, compiled=compiled, **_training_row(run, case, compiled), paper=PAPER.get(title))


def training_loop(run: Run) -> None:
    """A row of the whole loop."""
    lines = log_of_training(run.training_config)
    run.add("training loop", images_per_second=lines[-1]["images_per_second"], waiting=lines[-1]["stall"])


def _training_row(run: Run, config: TrainConfig, compiled: bool) -> dict[str, float | None]:
    """Images per second, peak memory in bytes, and operations of steps on a batch that is held on the device."""
    num_steps = 1 if run.is_tiny else 20
    held = HeldBatch(config)
    held.take_steps(1)  # the optimizer's state is made
    with Operations() as operations:
        held.take_steps(1)
    if compiled:
        torch.compiler.reset()
        held.state.network.compile(backend="eager" if run.is_tiny else "inductor")
    held.take_steps(min(num_steps, 3))  # kernels are chosen
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    rate = held.take_steps(num_steps) * config.trainer.batch_size
    memory = torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else None
    return {"images_per_second": rate, "memory": memory, "operations": operations.num_kernels}


# A shard


def shards(run: Run) -> None:
    """A row of a shard as `generate` makes it: its wall time, and the teacher's share of it."""
    teacher, plan = run.teacher("15.7 M"), _plan(run.is_tiny)
    _make_shard(run, plan, teacher)  # kernels are chosen
    inside = 0.0

    def watched(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        nonlocal inside
        run.synchronise()
        started = time.perf_counter()
        velocity = teacher.velocity(x, t, label)
        run.synchronise()
        inside += time.perf_counter() - started
        return velocity

    started = time.perf_counter()
    _make_shard(run, plan, replace(teacher, velocity=watched))
    seconds = time.perf_counter() - started
    run.add(
        "shard",
        records=plan.shard_size,
        seconds=seconds,
        records_per_second=plan.shard_size / seconds,
        teachers_share=inside / seconds,
    )


def _plan(is_tiny: bool) -> Plan:
    num_records, batch_size = (4, 2) if is_tiny else (1024, 256)
    return Plan(
        teacher="15.7 M",
        teacher_sha256="0" * 64,
        shape=(3, 32, 32),
        num_classes=0,
        seed=0,
        solver=Solver(name="rk4", num_steps=3),
        num_states=2,
        velocities=False,
        dtype="float16",
        shard_size=num_records,
        batch_size=batch_size,
        block_size=min(64, batch_size),
    )


def _make_shard(run: Run, plan: Plan, teacher: Teacher) -> bytes:
    [shard] = plan.shards(plan.shard_size)
    payload, _ = generate_shard(plan, shard, teacher, Folder(run.folder / "shards"), run.device)
    return payload


# Checks


def checks(run: Run) -> None:
    """Rows of small trainings, in half precision, compiled and resumed, and of a shard that is made again."""
    cases: dict[str, dict[str, Any]] = {"bf16": {"precision": "bf16"}, "fp16": {"precision": "fp16"}}
    if not run.is_tiny:
        cases["compile"] = {"compile": True}
    for name, trainer in cases.items():
        with suppress_failure(run, f"check of {name}"):
            loss = log_of_training(_small_training(run, name, trainer))[-1]["output"]
            run.add("check", what=f"training, {name}", result=loss, holds=math.isfinite(loss))
    with suppress_failure(run, "check of resuming"):
        difference = _resume(_small_training(run, "resume", {"precision": "fp32"}))
        run.add("check", what="resumed, largest difference", result=difference, holds=difference < RESUMED_CLOSE)
    with suppress_failure(run, "check of shards"):
        first, second = (_shard_digest(run) for _ in range(2))
        run.add("check", what="a shard made twice", result=first[:8], holds=first == second)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            other = pool.submit(_shard_digest, replace(run, rows={}, remarks=[])).result()
        run.add("check", what="a shard of another process", result=other[:8], holds=first == other)
    with suppress_failure(run, "check of CUDA graphs"):
        ways: tuple[Compiled, ...] = (False,) if run.is_tiny else (True, "graphs")
        first, *others = (_shard_digest(run, way) for way in ways)
        run.add("check", what="a shard by CUDA graphs", result=first[:8], holds=all(other == first for other in others))


def _shard_digest(run: Run, way: Compiled = False) -> str:
    teacher = compile_teacher(run.teacher("15.7 M"), run.device, way)
    return hashlib.sha256(_make_shard(run, _plan(run.is_tiny), teacher)).hexdigest()


def _small_training(run: Run, name: str, trainer: dict[str, Any]) -> TrainConfig:
    small = {"num_steps": 4, "batch_size": 8, "log_every": 1, "checkpoint_every": 2, **trainer}
    changes = {"out": str(run.folder / name), "network": TINY_NETWORK, "trainer": small}
    return TrainConfig.model_validate(merge(run.training_config.model_dump(), changes))


def _resume(config: TrainConfig) -> float:
    """The largest difference between the weights of a training and of its second half, taken again."""
    train(config)
    newest = checkpoint.find(config.out)
    before = load_file(newest / checkpoint.EMA)
    shutil.rmtree(newest)
    train(config)
    after = load_file(checkpoint.find(config.out) / checkpoint.EMA)
    return max(float((after[name] - tensor).abs().max()) for name, tensor in before.items())


# Sampling


def sampling(run: Run) -> None:
    """Rows of samples/s with few evaluations by a student, beside its teacher's solver."""
    teacher = run.teacher("15.7 M")
    assert isinstance(teacher.network, UNet)
    student, _ = from_teacher(teacher.network, None)
    student.to(run.device)
    samplers: list[Sampler] = [student_sampler(student, steps, 1.0, 0.0) for steps in (1, 2, 4)]
    samplers.append(teacher_sampler(teacher, Solver(name="rk4", num_steps=2) if run.is_tiny else Solver()))
    num_samples, batch_size = (2, 2) if run.is_tiny else (1024, 256)
    for sampler in samplers:
        draw = partial(_draw, run, sampler, num_samples, batch_size)
        with suppress_failure(run, f"sampling, {sampler.title}"):
            nfe = draw()
            run.add("sampling", sampler=sampler.title, evaluations=nfe, samples_per_second=run.rate(draw) * num_samples)


@torch.no_grad()
def _draw(run: Run, sampler: Sampler, num_samples: int, batch_size: int) -> int:
    batches = list(draw_samples(sampler, (3, 32, 32), 0, 0, range(num_samples), batch_size, run.device))
    return batches[0].nfe


# Evaluation


def evaluation(run: Run) -> None:
    """A row of `evaluate`, end to end, on a student that was hardly trained."""
    if missing := [name for name in ("cleanfid", "torch_fidelity", "prdc", "sklearn") if find_spec(name) is None]:
        run.remarks.append(f"evaluate was left out: wanted {', '.join(missing)}")
        return
    num_samples = 8 if run.is_tiny else 10_000
    config = TrainConfig.model_validate(merge(run.training_config.model_dump(), {"out": str(run.folder / "student")}))
    train(config)
    images = np.random.default_rng(0).integers(0, 256, (num_samples, 32, 32, 3), dtype=np.uint8)
    np.savez(run.folder / "images.npz", images=images)
    values = {
        "checkpoint": str(run.folder / "student"),
        "out": str(run.folder / "report"),
        "reference": str(run.folder / "images.npz"),
        "features": "benchmarks.gpu:square_means",
        "num_samples": num_samples,
        "num_ranges": 1,
        "teacher": "none",
        "lpips": "none",
        "num_trajectories": 8 if run.is_tiny else 256,
        "device": str(run.device),
    }
    started = time.perf_counter()
    evaluate(EvaluateConfig.model_validate(values))
    run.add("evaluate", samples=num_samples, rows=4, seconds=time.perf_counter() - started)


def square_means(device: torch.device) -> FeatureSpace:
    """Features without weights that would have to be downloaded: means of 8x8 squares, [N, 48]."""

    def extract(images: NDArray[np.uint8]) -> Extracted:
        squares = F.avg_pool2d(torch.from_numpy(images).to(device).float(), 8)
        return Extracted(squares.flatten(1).cpu().numpy())

    return FeatureSpace("squares", "means of 8x8 squares", "none", "0" * 64, extract)


@dataclass(frozen=True)
class Part:
    """Some figures, and the most seconds that they may take."""

    name: str
    measure: Callable[[Run], None]
    seconds: float


def _trainings(compiled: bool) -> list[Part]:
    how = "compiled" if compiled else "not compiled"
    titles = ["anchored", *reversed(LOSSES)]
    return [
        Part(f"training by {title}, {how}", partial(training, title=title, compiled=compiled), 60) for title in titles
    ]


PARTS = [
    Part("checks", checks, 60),
    Part("evaluations", evaluations, 120),
    *_trainings(compiled=True),
    Part("shard", shards, 30),
    Part("errors", errors, 30),
    Part("training loop", training_loop, 40),
    Part("largest batch", largest_batch, 60),
    Part("beside SciPy", beside_scipy, 30),
    Part("sampling", sampling, 40),
    Part("evaluate", evaluation, 50),
    *_trainings(compiled=False),
]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` in the block after `seconds`, as soon as Python code runs."""

    def stop(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def suppress_failure(run: Run, what: str) -> Iterator[None]:
    """Note a failure of `what` instead of raising it: the other figures are worth having."""
    try:
        yield
    except Exception as error:
        run.remarks.append(f"{what} failed: {type(error).__name__}: {one_line(error)}")


def measure(run: Run, budget: float) -> None:
    """Run the parts, each within its limit and all within `budget` seconds."""
    started = time.monotonic()
    for part in PARTS:
        left = budget - (time.monotonic() - started)
        try:
            with time_limit(min(part.seconds, left)), suppress_failure(run, part.name):
                part.measure(run)
        except TimeUp:
            run.remarks.append(f"{part.name}: stopped when its time was up")
        run.write()


def tables(run: Run) -> str:
    """All figures, as Markdown."""
    parts = [
        table(part, list(rows[0]), [[_text(value) for value in row.values()] for row in rows])
        for part, rows in run.rows.items()
    ]
    return "\n".join([", ".join(machine(run.device).values()), "", *parts, *(f"- {remark}" for remark in run.remarks)])


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small networks: whether it runs, not how fast")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all parts together")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the file of the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(pick_device(options.device), options.tiny, Path(folder), options.out)
        with redirect_stdout(sys.stderr):
            measure(run, options.budget)
    print(tables(run))


if __name__ == "__main__":
    main()
