"""A step is few, large operations, and never waits for the device."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.operations import Operations
from pipeline import networks
from pipeline.common.config import load_section
from pipeline.networks import Network
from tests.support.problems import make_data
from trainer.config import TrainConfig
from trainer.distillation.objective import Objective
from trainer.distillation.recipes import recipe_names
from trainer.distributed import Ranks
from trainer.setup import prepare, read_input
from trainer.step import initial_state, take_step

CPU = torch.device("cpu")
DRAWS = {"rand", "randn", "randint", "randperm", "uniform_", "normal_", "random_"}
OPERATIONS_BEFORE = 4012  # of a step of the 15m student by `anchored` when each term called the network itself


@contextmanager
def counted_calls(network: Network) -> Iterator[list[bool]]:
    """Whether each call of `network` was differentiated."""
    calls: list[bool] = []
    handle = network.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    try:
        yield calls
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("step"), n=16, shard_size=16, batch_size=16, block_size=8)


def one_step(data: Path, recipe: str, network: dict[str, Any] | None = None) -> tuple[Operations, list[bool]]:
    given = {"data": data, "out": data.parent / "run", "recipe": recipe}
    config = TrainConfig.model_validate(given | {"trainer": {"num_steps": 2, "batch_size": 4, "skip_nonfinite": True}})
    ranks, task = Ranks(0, 1, CPU), prepare(config, CPU)
    trained = task.network if network is None else networks.build(networks.parse_config(network))
    state, inputs = initial_state(config, trained, CPU, task.owned), read_input(config, task, ranks, 0)
    if network is not None:
        x = inputs.batch.x  # type: ignore[attr-defined]
        shape = (*x.shape[:2], *trained.config.shape)
        object.__setattr__(inputs.batch, "x", torch.zeros(shape))
    objective = Objective(trained, state.averages[0].network, task.teacher, task.owned)
    take_step(config, ranks, state, objective, config.recipe.phases[0], inputs, 0)  # makes the optimizer's state
    with counted_calls(trained) as calls, Operations() as operations:
        take_step(config, ranks, state, objective, config.recipe.phases[0], inputs, 1)
    return operations, calls


def test_all_terms_of_a_recipe_share_one_trained_call_and_one_of_the_target(data: Path) -> None:
    _, calls = one_step(data, "anchored")
    assert calls == [True, False]


def test_a_derivative_records_gradients_only_where_it_is_trained_through(data: Path) -> None:
    assert {name: one_step(data, name)[1] for name in ("eulerian", "meanflow", "lagrangian")} == {
        "eulerian": [True, False],
        "meanflow": [True, False],
        "lagrangian": [True, True],  # the velocity beside it, and the derivative
    }


def test_no_recipe_calls_a_network_more_often_than_its_equations_chain(data: Path) -> None:
    # Eq. 10's student goes on from where it arrived at the midpoint: a second round, which only the target is asked in.
    calls = {name: one_step(data, name)[1] for name in set(recipe_names()) - {"flow-matching"}}
    assert max(sum(trained) for trained in calls.values()) <= 2
    assert max(map(len, calls.values())) <= 3


def test_a_step_of_the_15m_student_is_a_third_of_the_operations(data: Path) -> None:
    network = load_section("cifar10-15m", "train")["network"] | {"second_time": True}
    operations, _ = one_step(data, "anchored", network)
    assert operations.num_kernels <= OPERATIONS_BEFORE / 3


def test_a_student_takes_its_own_steps_only_and_what_terms_train_takes_all(data: Path) -> None:
    config = TrainConfig.model_validate(
        {"data": data, "out": data.parent / "run", "recipe": "dmd2", "trainer": {"num_steps": 6, "batch_size": 4}}
    )
    ranks, task = Ranks(0, 1, CPU), prepare(config, CPU)
    state = initial_state(config, task.network, CPU, task.owned)
    objective = Objective(task.network, state.averages[0].network, task.teacher, task.owned)
    phase = config.recipe.phases[0]
    networks_of = {"student": task.network, **{term.title: task.owned[term.title] for term in phase.training}}
    moved: dict[str, list[bool]] = {name: [] for name in networks_of}
    for step in range(6):
        before = {name: copy.deepcopy(network.state_dict()) for name, network in networks_of.items()}
        take_step(config, ranks, state, objective, phase, read_input(config, task, ranks, step), step)
        for name, network in networks_of.items():
            moved[name].append(any(not torch.equal(x, before[name][key]) for key, x in network.state_dict().items()))
    assert moved.pop("student") == [True, False, False, False, False, True]
    assert [*moved.values()] == [[True] * 6] * 2


def test_a_step_draws_nothing_and_waits_for_nothing(data: Path) -> None:
    operations, _ = one_step(data, "anchored")
    assert not DRAWS & operations.counts.keys()
    assert "_local_scalar_dense" not in operations.counts  # a number fetched from the device
