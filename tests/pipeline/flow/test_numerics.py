import pytest
import torch

from pipeline.common.errors import BadInput
from pipeline.flow.numerics import (
    Numerics,
    Precision,
    check_precision,
    fixed_numerics,
    has_precision,
    in_precision,
    numerics_of,
)
from tests.support.problems import SHAPE, tiny_network

CPU = torch.device("cpu")


def test_a_record_without_a_precision_is_of_fp32() -> None:
    old = Numerics.model_validate({"torch": "2.11", "device": "abacus", "threads": 1})
    assert (old.precision, old.compiled) == ("fp32", False)
    assert numerics_of(CPU, "bf16").precision == "bf16"


def test_a_cpu_has_all_precisions_but_tf32() -> None:
    assert [name for name in ("fp32", "tf32", "bf16", "fp16") if has_precision(name, CPU)] == ["fp32", "bf16", "fp16"]
    with pytest.raises(BadInput, match="precision tf32: wanted a GPU that has it, got a CPU: take a GPU, or precision"):
        check_precision("tf32", CPU)


def test_tf32_is_allowed_only_where_the_precision_says_so() -> None:
    before = torch.get_float32_matmul_precision()
    cases: list[tuple[Precision, bool]] = [("fp32", False), ("bf16", False), ("tf32", True)]
    for precision, allowed in cases:
        with fixed_numerics(precision):
            assert torch.backends.cudnn.allow_tf32 == allowed
            assert (torch.get_float32_matmul_precision() == "high") == allowed
    assert torch.get_float32_matmul_precision() == before


def test_a_velocity_in_bf16_is_rounded_inside_and_float32_outside() -> None:
    network, x = tiny_network(), torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.9])
    exact, rounded = (in_precision(network, name)(x, t, None) for name in ("fp32", "bf16"))
    assert rounded.dtype == torch.float32
    assert 1e-4 < float((rounded - exact).abs().max() / exact.abs().max()) < 5e-2
