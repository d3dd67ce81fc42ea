"""The arithmetic of an evaluation: full fp32, but for the samplers' networks, whose precision is a setting."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from eval.sampling.samplers import Sampler
from pipeline.common.errors import BadInput

Precision = Literal["fp32", "tf32", "bf16"]
MIN_CAPABILITY = (8, 0)  # of a GPU with TF32 and bfloat16


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raises `BadInput` if `device` lacks `precision`."""
    if precision == "fp32" or (precision == "bf16" and device.type == "cpu"):
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        raise BadInput(f"precision {precision}: wanted an NVIDIA GPU from Ampere on; {device} lacks it: take fp32")


@contextmanager
def fixed_arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """The arithmetic of `precision` on `device`, whatever the process had set.

    fp32 is fp32 throughout; tf32 rounds the factors of convolutions and matrix products to ten bits; bf16 computes
    them in bfloat16, by autocast. A GPU's convolutions are deterministic.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with (
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=precision == "tf32"
            ),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def in_precision(sampler: Sampler, precision: Precision, device: torch.device) -> Sampler:
    """`sampler`, which draws in `precision` on `device`."""

    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        with fixed_arithmetic(precision, device):
            return sampler.draw(noise, label)

    return replace(sampler, draw=draw)
