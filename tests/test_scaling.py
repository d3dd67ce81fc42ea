"""The simulation of `benchmarks.scaling` where its outcome is known."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.common import random_plan
from benchmarks.scaling import Fleet, Simulation, num_lists, num_objects

CALM = Fleet(
    num_workers=7, preemptions_per_hour=0, replacement_seconds=0, start_seconds=0, dispatch_seconds=0, spread=0
)


@settings(deadline=None)
@given(num_workers=st.integers(1, 20), num_shards=st.integers(1, 60), start=st.sampled_from([0.0, 9.0]))
def test_undisturbed_workers_take_turns_of_a_shard_each(num_workers: int, num_shards: int, start: float) -> None:
    fleet = Fleet(num_workers, 0, start_seconds=start, dispatch_seconds=0, spread=0)
    run = Simulation(fleet, 10.0, num_shards).run()
    assert run.makespan_seconds == pytest.approx(start + 10.0 * math.ceil(num_shards / num_workers))
    assert (run.wasted_seconds, run.num_attempts) == (0, num_shards)
    assert run.useful_seconds == pytest.approx(10.0 * num_shards)


def test_a_shard_is_tried_e_to_the_rate_times_its_length_and_loses_the_time_that_this_implies() -> None:
    rate, seconds, num_shards = 1 / 3600, 1800.0, 4000
    fleet = Fleet(50, 1.0, replacement_seconds=0, start_seconds=0, dispatch_seconds=0, spread=0)
    run = Simulation(fleet, seconds, num_shards).run()
    attempts = math.exp(rate * seconds)
    assert run.num_attempts / num_shards == pytest.approx(attempts, rel=0.05)
    # A renewal argument: (e^{rT} - 1) / r is the time until a stretch of T without an event has passed.
    assert run.wasted_seconds / num_shards == pytest.approx((attempts - 1) / rate - seconds, rel=0.1)


def test_the_driver_hands_out_one_shard_at_a_time() -> None:
    fleet = Fleet(100, 0, start_seconds=0, dispatch_seconds=0.5, spread=0)
    assert Simulation(fleet, 1.0, 300).run().makespan_seconds == pytest.approx(300 * 0.5 + 1.0)


def test_a_worker_that_is_taken_away_is_missed_until_another_has_started() -> None:
    fleet = Fleet(1, 1.0, replacement_seconds=100, start_seconds=50, dispatch_seconds=0, spread=0)
    run = Simulation(fleet, 1800.0, 20).run()
    absences = run.makespan_seconds - run.useful_seconds - run.wasted_seconds
    num_losses = run.num_attempts - run.num_shards
    assert num_losses > 0
    # Whoever is taken away while it starts is missed once more, for a part of the start.
    assert absences >= 50 + 150 * num_losses - 1e-6
    assert absences <= 50 + 150 * (num_losses + 3)


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(0, 20), num_shards=st.integers(1, 200), seed=st.integers(0, 99))
def test_every_shard_is_made_once_and_no_run_beats_its_work(rate: float, num_shards: int, seed: int) -> None:
    fleet = Fleet(5, rate, spread=0.1)
    run, again = (Simulation(fleet, 60.0, num_shards, seed).run() for _ in range(2))
    assert run == again
    assert run.num_attempts >= run.num_shards == num_shards
    assert 5 * (run.makespan_seconds - fleet.start_seconds) >= run.useful_seconds + run.wasted_seconds - 1e-6
    assert 1 <= run.peak_markers_per_second <= num_shards


def test_all_markers_of_workers_in_step_come_in_one_second() -> None:
    assert Simulation(CALM, 10.0, 14).run().peak_markers_per_second == 7


def test_a_shards_time_is_its_samples_its_bytes_and_two_requests() -> None:
    plan = random_plan(velocities=True)
    fleet = Fleet(put_seconds=0.1, bytes_per_second=1e8)
    assert fleet.shard_seconds(plan, 4.0) == pytest.approx(1024 / 4 + 0.2 + 1024 * plan.record_bytes / 1e8)


def test_a_listing_takes_a_request_for_every_thousand_objects() -> None:
    assert num_objects(1000) == 2003
    assert num_lists(1000) == 3
    assert num_lists(498) == 1
