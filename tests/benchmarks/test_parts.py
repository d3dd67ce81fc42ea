"""The simulation of `benchmarks.parts` where its outcome is known."""

import pytest

from benchmarks.parts import NUM_PARTS, Simulation


def test_without_stealing_each_part_makes_its_share() -> None:
    run = Simulation(160, steals=False).run()
    assert run.num_made == len(run.committed) == 160
    half = Simulation(160, num_alive=8, steals=False).run()
    assert half.num_made == len(half.committed) == 80


@pytest.mark.parametrize("num_alive", [1, 8, NUM_PARTS])
def test_with_stealing_whoever_is_alive_makes_all(num_alive: int) -> None:
    run = Simulation(160, num_alive).run()
    assert len(run.committed) == 160
    assert 160 <= run.num_made < 160 * 1.3


def test_a_part_that_is_alone_makes_nothing_twice() -> None:
    assert Simulation(160, num_alive=1).run().num_made == 160
