import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.common.errors import BadInput
from pipeline.flow.solver import Solver
from tests.support.plans import make_plan


@given(num_states=st.integers(0, 40), batch=st.integers(0, 10**12), seed=st.integers(0, 2**62))
def test_times_fall_strictly_with_one_in_each_stratum(num_states: int, batch: int, seed: int) -> None:
    times = make_plan(num_states=num_states, seed=seed).times(batch)
    assert times[0] == 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    strata = ((1 - times[1:-1].double()) * num_states).floor().tolist()
    assert strata == list(range(num_states))


def test_batches_have_times_of_their_own_that_cover_the_flow() -> None:
    plan = make_plan()
    inner = [t for batch in range(0, 4000, 4) for t in plan.times(batch)[1:-1].tolist()]
    tenths = [sum(low <= 10 * t < low + 1 for t in inner) for low in range(10)]
    assert min(tenths) > 240  # of 300 if it were exactly even


def test_a_flow_may_start_and_end_inside_the_interval() -> None:
    times = make_plan(t_start=80 / 81, t_end=0.002).times(0)
    assert times[0].item() == pytest.approx(80 / 81)
    assert times[-1].item() == pytest.approx(0.002)


@given(num_records=st.integers(1, 100))
def test_shards_cut_the_records_without_gap_or_overlap(num_records: int) -> None:
    covered: list[int] = []
    for shard in make_plan().shards(num_records):
        covered += range(shard.first_index, shard.first_index + shard.num_records)
    assert covered == list(range(num_records))


def test_another_plan_is_refused_with_the_fields_that_differ() -> None:
    with pytest.raises(BadInput, match=r"seed: 1 there, 0 asked; solver\.rtol: 0\.001 there, 1e-05 asked\)"):
        make_plan().check_same(make_plan(seed=1, solver=Solver(rtol=1e-3)), "data")


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 3},
        {"block_size": 3},
        {"solver": Solver(name="rk4", num_steps=3)},
        {"seed": -1},
        {"t_start": 0.1, "t_end": 0.2},
        {"dtype": "float64"},
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make_plan(**changes)


def test_a_plan_of_fp32_is_the_plan_that_it_was_before_there_were_precisions() -> None:
    assert "precision" not in make_plan(precision="fp32").model_dump()
    assert make_plan(precision="fp32").sha256 == make_plan().sha256 != make_plan(precision="tf32").sha256
