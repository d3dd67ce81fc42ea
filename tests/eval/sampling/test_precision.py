import torch

from eval.sampling.precision import fixed_arithmetic, in_precision
from eval.sampling.samplers import Sampler

CPU = torch.device("cpu")


def flags() -> tuple[str, bool, bool]:
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.is_autocast_enabled("cpu"),
    )


def test_a_precision_is_fixed_in_its_block_and_whatever_was_set_comes_back() -> None:
    before = flags()
    with fixed_arithmetic("fp32", CPU):
        assert flags() == ("highest", False, False)
        with fixed_arithmetic("tf32", CPU):
            assert flags() == ("high", True, False)
        with fixed_arithmetic("bf16", CPU):
            assert flags() == ("highest", False, True)
        assert flags() == ("highest", False, False)
    assert flags() == before


def test_a_sampler_draws_in_its_precision() -> None:
    weight = torch.ones(2, 2)
    sampler = in_precision(Sampler("student", "", lambda x, label: (x @ weight, 1)), "bf16", CPU)
    assert sampler.draw(torch.ones(1, 2), None)[0].dtype == torch.bfloat16
