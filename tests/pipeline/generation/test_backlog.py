"""What is tried again, by whom, and which worker is retired: decisions over shards that nobody makes."""

import threading
from collections.abc import Callable, Iterator

import pytest

from pipeline.dataset.plan import Shard
from pipeline.dataset.shards import Marker
from pipeline.generation.backlog import Backlog, Cause, Failure, Health
from tests.support.fake_work import marker
from tests.support.plans import make_plan

PLAN = make_plan(shard_size=1024, batch_size=256, block_size=64)


def backlog_of(num_shards: int, clock: Callable[[], float] = lambda: 0.0) -> Backlog:
    return Backlog(PLAN.shards(num_shards * PLAN.shard_size), threading.Event(), clock)


def fail(backlog: Backlog, shard: Shard, worker: str | None, error: str = "no", cause: Cause = "shard") -> list[object]:
    return list(backlog.final_results(Failure(shard, error, cause), worker))


def finish(backlog: Backlog, shard: Shard, worker: str | None = None) -> list[object]:
    return list(backlog.final_results(marker(PLAN, shard), worker))


def taken(backlog: Backlog, worker: str | None = None) -> Shard:
    shard = backlog.take(worker)
    assert isinstance(shard, Shard)
    return shard


def test_what_was_lost_is_tried_three_times_and_reports_its_first_error() -> None:
    backlog, reported = backlog_of(1), []
    for reason in ("first", "second", "third"):
        reported += fail(backlog, taken(backlog), None, reason, "lost")
    assert reported == [Failure(PLAN.shards(1024)[0], "first (tried 3 times)")]
    assert not backlog
    assert not backlog.num_in_work


@pytest.mark.parametrize("cause", ["loading", "device", "shard"])
def test_this_process_does_not_try_again_what_would_fail_again(cause: Cause) -> None:
    backlog = backlog_of(1)
    shard = taken(backlog)
    assert fail(backlog, shard, None, cause=cause) == [Failure(shard, "no")]
    assert backlog.take() is None


def test_a_shard_that_failed_is_tried_on_another_worker_and_not_on_the_same() -> None:
    backlog = backlog_of(1)
    shard = taken(backlog, "a")
    assert fail(backlog, shard, "a") == []
    assert backlog.take("a") is None
    assert backlog.take("b") == shard
    assert finish(backlog, shard, "b") == [marker(PLAN, shard)]


def test_a_shard_that_failed_on_every_worker_is_given_up_with_its_first_error() -> None:
    backlog = backlog_of(1)
    for worker in ("a", "b"):
        shard = taken(backlog, worker)
        assert fail(backlog, shard, worker, f"on {worker}") == []
    assert list(backlog.give_up()) == [Failure(shard, "on a (tried 2 times)")]
    assert not backlog


def test_what_a_worker_could_not_load_is_no_fault_of_its_shard() -> None:
    backlog = backlog_of(1)
    for worker in map(str, range(10)):
        shard = taken(backlog, worker)
        assert fail(backlog, shard, worker, cause="loading") == []
    assert list(backlog.give_up()) == []
    assert backlog.take("healthy") == shard


def test_a_stopped_backlog_hands_out_nothing_more() -> None:
    backlog = backlog_of(2)
    shard = taken(backlog)
    backlog.stop.set()
    assert not backlog
    assert backlog.take() is None
    assert finish(backlog, shard) == [marker(PLAN, shard)]


def test_the_last_shards_of_a_slow_worker_are_given_to_an_idle_one_and_the_first_result_counts() -> None:
    now = [0.0]
    backlog = backlog_of(3, lambda: now[0])
    quick, slow = taken(backlog, "quick"), taken(backlog, "slow")
    now[0] = 10.0
    finish(backlog, quick, "quick")
    last = taken(backlog, "quick")
    now[0] = 19.0
    finish(backlog, last, "quick")
    assert backlog.take("quick") is None, "not yet twice the median"
    now[0] = 20.0
    assert backlog.take("slow") is None, "it is at it already"
    assert backlog.take("quick") == slow
    assert backlog.take("idle") is None, "a copy is enough"
    assert finish(backlog, slow, "quick") == [marker(PLAN, slow)]
    assert not backlog.num_in_work
    assert finish(backlog, slow, "slow") == []


def test_a_copy_that_fails_leaves_the_shard_to_the_other() -> None:
    now = [0.0]
    backlog = backlog_of(2, lambda: now[0])
    shard, other = taken(backlog, "a"), taken(backlog, "b")
    now[0] = 1.0
    finish(backlog, other, "b")
    now[0] = 5.0
    assert backlog.take("b") == shard
    assert fail(backlog, shard, "b") == []
    assert backlog.take("b") is None
    assert finish(backlog, shard, "a") == [marker(PLAN, shard)]


def test_what_a_retired_worker_had_in_work_is_handed_out_again() -> None:
    backlog = backlog_of(2)
    shard = taken(backlog, "a")
    backlog.give_back(shard)
    assert [backlog.take("b"), backlog.take("b")] == [backlog.shards[1], shard]


def outcomes(health: Health, *results: Marker | Failure) -> Iterator[bool]:
    return (health.is_fit_after(result, is_first=True) for result in results)


def test_a_worker_is_unfit_after_a_failure_of_its_own_or_two_shards_in_a_row() -> None:
    made, failed = marker(PLAN, PLAN.shards(1024)[0]), Failure(PLAN.shards(1024)[0], "no")
    assert list(outcomes(Health(), failed, made, failed, made)) == [True] * 4
    assert list(outcomes(Health(), failed, failed)) == [True, False]
    for cause in ("loading", "device"):
        assert list(outcomes(Health(), made, Failure(failed.shard, "no", cause))) == [True, False]
    assert list(outcomes(Health(), *[Failure(failed.shard, "no", "lost")] * 5)) == [True] * 5
    health = Health()
    assert all(health.is_fit_after(failed, is_first=False) for _ in range(5)), "shards that fail everywhere"


def test_one_sick_worker_of_two_spoils_no_shard() -> None:
    """It fails in no time, and would be asked for all shards."""
    backlog, health = backlog_of(200), {"sick": Health(), "well": Health()}
    results: list[object] = []
    while backlog:
        for name in [name for name in ("sick", "sick", "sick", "well") if name in health]:
            if not isinstance(shard := backlog.take(name), Shard):
                continue
            is_first = not backlog.has_failed(shard)
            result = Failure(shard, "not finite") if name == "sick" else marker(PLAN, shard)
            results += backlog.final_results(result, name)
            if not health[name].is_fit_after(result, is_first):
                del health[name]
                break
    assert set(health) == {"well"}
    assert len(results) == 200
    assert not any(isinstance(result, Failure) for result in results)
