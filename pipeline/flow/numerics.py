"""Reproducible arithmetic for shards: a fixed number of threads, fixed precision, and a record of the machine."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import BaseModel, ConfigDict


class Numerics(BaseModel):
    """The software and hardware that made a shard; under other numerics the last bits may differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    torch: str
    device: str
    threads: int


# Convolutions split their sums by thread: with one thread the bytes do not depend on the number of cores. More workers
# use the cores better than more threads do.
NUM_THREADS = 1


@contextmanager
def fixed_numerics() -> Iterator[None]:
    """One thread and full fp32: TF32's ten bits would make an adaptive solver chase rounding errors."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(NUM_THREADS)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def numerics_of(device: torch.device) -> Numerics:
    """The numerics of `device` on this machine; call it within `fixed_numerics` for those of a shard."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return Numerics(torch=torch.__version__, device=name, threads=torch.get_num_threads())
