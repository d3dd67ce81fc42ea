"""Reproducible arithmetic for shards: a fixed number of threads, a stated precision, and a record of the machine."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.flow.solver import Velocity
from pipeline.flow.solver_config import Precision as Precision

# What a teacher computes its velocity in. The state, the solver's sums and the stored arrays' sums stay fp32.
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
AMPERE = (8, 0)  # the first CUDA capability with TF32 and bf16


class Numerics(BaseModel):
    """The software and hardware that made a shard; under other numerics the last bits may differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    torch: str
    device: str
    threads: int
    precision: Precision = "fp32"  # the default of markers that are older than these fields
    compiled: bool = False  # by torch.compile, whose fused operations round otherwise
    # Those besides torch that compute, with their versions; left out where there are none.
    libraries: str = Field(default="", exclude_if=lambda libraries: not libraries)

    def __str__(self) -> str:
        teacher = f"{self.precision}, compiled" if self.compiled else self.precision
        libraries = f", {self.libraries}" if self.libraries else ""
        return f"{self.device}, torch {self.torch}{libraries}, threads: {self.threads}, {teacher}"


# Convolutions split their sums by thread: with one thread the bytes do not depend on the number of cores. More workers
# use the cores better than more threads do.
NUM_THREADS = 1


@contextmanager
def fixed_products(precision: Precision = "fp32") -> Iterator[None]:
    """Float32 products and convolutions in TF32 only if `precision` says so, and deterministic convolutions."""
    before, is_tf32 = torch.get_float32_matmul_precision(), precision == "tf32"
    torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=is_tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def fixed_numerics(precision: Precision = "fp32") -> Iterator[None]:
    """One thread, and the products of `precision`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(NUM_THREADS)
    try:
        with fixed_products(precision):
            yield
    finally:
        torch.set_num_threads(threads)


def in_precision(velocity: Velocity, precision: Precision) -> Velocity:
    """`velocity` computed in `precision`, within `fixed_numerics(precision)`; it takes and returns float32."""
    dtype = AUTOCAST.get(precision)
    if dtype is None:
        return velocity

    def cast(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, dtype):
            return velocity(x, t, label).float()

    return cast


def has_precision(precision: Precision, device: torch.device) -> bool:
    """Whether `device` computes in `precision`: every one in fp32, and CPUs in bf16 and fp16 too, though slowly."""
    if precision == "fp32":
        return True
    if device.type != "cuda":
        return precision != "tf32"
    return precision == "fp16" or torch.cuda.get_device_capability(device) >= AMPERE


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raises `BadInput` if `device` lacks `precision`."""
    if not has_precision(precision, device):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
        raise BadInput(f"precision {precision}: wanted a GPU that has it, got {name}: take a GPU, or precision fp32")


def numerics_of(
    device: torch.device, precision: Precision = "fp32", compiled: bool = False, libraries: str = ""
) -> Numerics:
    """The numerics of `device` on this machine; call it within `fixed_numerics` for those of a shard."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return Numerics(
        torch=torch.__version__,
        device=name,
        threads=torch.get_num_threads(),
        precision=precision,
        compiled=compiled,
        libraries=libraries,
    )
