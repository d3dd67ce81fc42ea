"""A teacher in another precision: the device's own where it has it, else its roundings imitated in float32."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.common.errors import BadInput
from pipeline.flow.numerics import Precision, has_precision, in_precision
from pipeline.flow.solver import Velocity

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
MANTISSA = 23  # bits of float32 that are stored
TF32_MANTISSA = 10
aten = torch.ops.aten
# The products that GPUs compute in TF32, and which of their arguments are the factors.
FACTORS: dict[object, tuple[int, int]] = {
    aten.convolution.default: (0, 1),
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
}


def parse_precisions(text: str | None, device: torch.device) -> tuple[Precision, ...]:
    """The comma-separated precisions of `text`; by default those of a GPU, and fp32 alone on a CPU.

    Raises:
        BadInput: there is no such precision.
    """
    if text is None:
        return tuple(p for p in PRECISIONS if has_precision(p, device)) if device.type == "cuda" else ("fp32",)
    names = text.split(",")
    if unknown := [name for name in names if name not in PRECISIONS]:
        raise BadInput(f"precision: wanted some of {', '.join(PRECISIONS)}, separated by commas; got {unknown[0]!r}")
    return tuple(p for p in PRECISIONS if p in names)


def as_on_gpu(velocity: Velocity, precision: Precision, device: torch.device) -> Velocity:
    """`velocity` in `precision`. A CPU rounds bf16 and fp16 itself; TF32 is imitated where the device has none."""
    if has_precision(precision, device):
        return in_precision(velocity, precision)

    def rounded_velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        with _RoundedProducts():  # type: ignore[no-untyped-call]
            return velocity(x, t, label)

    return rounded_velocity


def round_mantissa(x: Tensor, bits: int) -> Tensor:
    """`x` float32 with `bits` of its mantissa, rounded to nearest, ties to even, as a GPU reads the factors of TF32."""
    dropped = MANTISSA - bits
    whole = x.view(torch.int32)
    half = (1 << (dropped - 1)) - 1 + ((whole >> dropped) & 1)
    return ((whole + half) & -(1 << dropped)).view(torch.float32)


class _RoundedProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds the factors of float32 products to TF32; the sums stay float32, as on a GPU."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        factors = FACTORS.get(func, ())
        args = tuple(
            round_mantissa(arg, TF32_MANTISSA) if i in factors and arg.dtype == torch.float32 else arg
            for i, arg in enumerate(args)
        )
        return func(*args, **(kwargs or {}))
