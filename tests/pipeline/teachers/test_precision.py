import pytest
import torch

from pipeline.common.errors import BadInput
from pipeline.flow.solver import Solver
from pipeline.teachers.precision import as_on_gpu, parse_precisions, round_mantissa
from pipeline.teachers.probe import Point, ProbeResult, probe
from pipeline.teachers.teacher import NetworkVelocity, Teacher
from tests.support.problems import SHAPE, tiny_network

CPU = torch.device("cpu")


def test_a_mantissa_is_rounded_to_nearest_and_ties_to_even() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 100
    torch.testing.assert_close(round_mantissa(x, 7), x.bfloat16().float(), rtol=0, atol=0)
    ulp = 2.0**-10
    ties = torch.tensor([1 + ulp / 2, 1 + 3 * ulp / 2, -1 - ulp / 2])
    assert round_mantissa(ties, 10).tolist() == [1, 1 + 2 * ulp, -1]


def test_tf32_is_imitated_by_rounding_the_factors_of_products() -> None:
    network, x = tiny_network(), torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.9])
    exact, imitated = network(x, t, label=None), as_on_gpu(NetworkVelocity(network), "tf32", CPU)(x, t, None)
    assert 1e-5 < float((imitated - exact).abs().max() / exact.abs().max()) < 5e-3
    weight, rows = torch.full((1, 1), 1 + 2.0**-12), torch.full((1, 1), 3.0)
    product = as_on_gpu(lambda x, t, label: x @ weight, "tf32", CPU)(rows, t, None)
    assert product.item() == 3


def test_precisions_are_named_or_the_devices() -> None:
    assert parse_precisions(None, CPU) == ("fp32",)
    assert parse_precisions("bf16,fp32", CPU) == ("fp32", "bf16")
    with pytest.raises(BadInput, match="wanted some of fp32, tf32, bf16, fp16, separated by commas; got 'fp8'"):
        parse_precisions("fp32,fp8", CPU)


def test_each_solver_is_probed_in_each_precision_against_a_reference_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.teachers.probe.SOLVERS", (Solver(), Solver(name="rk4", num_steps=9)))
    teacher = Teacher("tiny", "0" * 64, NetworkVelocity(tiny_network()), SHAPE)
    found = probe(teacher, 8, 0, CPU, precisions=("fp32", "tf32", "bf16"))
    adaptive = {point.precision: point for point in found.points if point.solver == Solver()}
    assert list(adaptive) == ["fp32", "tf32", "bf16"]
    assert max(adaptive["fp32"].p90, adaptive["tf32"].p90) < adaptive["bf16"].p90
    assert adaptive["bf16"].nfe > adaptive["fp32"].nfe  # it chases roundings


def test_the_cheapest_pair_under_the_error_is_recommended() -> None:
    def point(precision: str, nfe: int, p90: float, seconds: float) -> Point:
        return Point(Solver(), precision, nfe, p90, p90, p90, seconds)  # type: ignore[arg-type]

    points = [point("fp32", 128, 1e-4, 3.0), point("tf32", 122, 5e-4, 1.0), point("bf16", 326, 5e-3, 2.0)]
    by_seconds = ProbeResult(points, [], 8, 500, by_seconds=True)
    assert by_seconds.recommend(1e-3).precision == "tf32"
    assert by_seconds.recommend(2e-4).precision == "fp32"
    assert by_seconds.recommend(1e-3).flags == "--solver dopri5 --rtol 1e-5 --atol 1e-5 --precision tf32"
