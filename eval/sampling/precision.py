"""The arithmetic of an evaluation: full fp32, but for the samplers' networks, whose precision is a setting."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from eval.sampling.samplers import Sampler
from pipeline.flow.numerics import AUTOCAST, fixed_products

Precision = Literal["fp32", "tf32", "bf16"]


@contextmanager
def fixed_arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """The arithmetic of `precision` on `device`, whatever the process had set.

    fp32 is fp32 throughout; tf32 rounds the factors of convolutions and matrix products to ten bits; bf16 computes
    them in bfloat16, by autocast. A GPU's convolutions are deterministic.
    """
    dtype = AUTOCAST.get(precision)
    with fixed_products(precision), torch.autocast(device.type, dtype, enabled=dtype is not None):
        yield


def in_precision(sampler: Sampler, precision: Precision, device: torch.device) -> Sampler:
    """`sampler`, which draws in `precision` on `device`."""

    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        with fixed_arithmetic(precision, device):
            return sampler.draw(noise, label)

    return replace(sampler, draw=draw)
