from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.common.config import validate
from pipeline.common.errors import BadInput
from tests.support.plans import make_plan
from tests.support.problems import GaussianFlow
from trainer.config import TrainConfig
from trainer.data.prefetch import Prefetcher
from trainer.data.stream import ImageBatch, TrajectoryBatch
from trainer.distillation.recipes import Recipe, load_recipe, recipe_names

FLOW = GaussianFlow()
B, T = 16, 9


def recipe(*phases: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"phases": phases})


def test_every_recipe_of_the_paper_and_of_ours_is_here() -> None:
    wanted = {"anchored", "traflow", "traflow-joint", "scot", "instaflow", "ctm", "shortcut", "trajectory"}
    assert wanted | {"lagrangian", "flow-matching", "reflow"} <= set(recipe_names())
    for name in recipe_names():
        found = Recipe.model_validate(load_recipe(name))
        assert found.name == name
        assert found.about


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([{"terms": []}], "at least 1 item"),
        ([{"share": 0.5, "terms": [{"loss": "output"}]}], "add up to 1"),
        ([{"terms": [{"loss": "output"}, {"loss": "output"}]}], "give them different ones"),
        ([{"terms": [{"loss": "output", "first": 2, "stride": 2}]}], "a row below the stride"),
        ([{"terms": [{"loss": "output", "at": "line"}]}], "Extra inputs"),
        ([{"terms": [{"loss": "velocity", "times": "uniform"}]}], "leave times"),
        ([{"terms": [{"loss": "velocity", "distance": "lpips-vgg"}]}], "velocities are no images"),
        ([{"terms": [{"loss": "outputs"}]}], "does not match any of the expected tags"),
        ([{"terms": [{"loss": "output"}, {"loss": "flow-matching"}]}], "not several"),
        ([{"student_every": 5, "terms": [{"loss": "output"}]}], "leave it out"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(phases: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(*phases)


def test_the_default_takes_another_recipe_for_points_if_their_velocities_are_stored() -> None:
    anchored = Recipe.model_validate(load_recipe("anchored"))
    points = make_plan(shape=(2,), velocities=True)
    assert anchored.fitting(points).name == "anchored-states"
    assert anchored.fitting(make_plan(shape=(2,), velocities=False)) is anchored
    assert anchored.fitting(make_plan(shape=(1, 8, 8), velocities=True)) is anchored
    trajectory = Recipe.model_validate(load_recipe("trajectory"))
    assert trajectory.fitting(points) is trajectory


def test_an_unknown_recipe_or_key_is_answered_with_those_there_are(tmp_path: Path) -> None:
    values: dict[str, Any] = {"out": tmp_path, "trainer": {"num_steps": 1}}
    with pytest.raises(BadInput, match=r"no recipe 'trafow': wanted one of anchored, .*ctm, .*traflow"):
        validate(TrainConfig, values | {"recipe": "trafow"}, "train")
    wrong = {"phases": [{"terms": [{"loss": "output", "wieght": 1}]}]}
    with pytest.raises(
        BadInput, match=r"unknown key 'recipe\.phases\.0\.terms\.0\.wieght'; valid keys of loss output: .*distance"
    ):
        validate(TrainConfig, values | {"recipe": wrong}, "train")
    with pytest.raises(BadInput, match=r"unknown key 'network\.foo'; valid keys of family song: resolution, "):
        validate(TrainConfig, values | {"network": {"resolution": 4, "image_channels": 1, "foo": 1}}, "train")


def test_a_recipe_costs_what_its_evaluations_do() -> None:
    assert recipe({"terms": [{"loss": "output"}]}).cost == 3
    assert recipe({"terms": [{"loss": "output"}, {"loss": "velocity", "stride": 2}]}).cost == 4.5
    assert recipe({"terms": [{"loss": "consistency"}]}).cost == 9
    assert recipe({"terms": [{"loss": "consistency", "target": "stopped"}]}).cost == 5
    assert recipe({"terms": [{"loss": "soft-consistency"}]}).cost == 4
    assert recipe({"terms": [{"loss": "lagrangian"}]}).cost == 7
    matching = {"terms": [{"loss": "distribution-matching"}]}
    assert recipe(matching).cost == 8
    assert recipe(matching | {"student_every": 5}).cost == 8 - 2 * 4 / 5
    halves = [{"share": 0.5, "terms": [{"loss": "output"}]}, {"share": 0.5, "terms": [{"loss": "consistency"}]}]
    assert recipe(*halves).cost == 6


def exact_batch() -> TrajectoryBatch:
    """Trajectories of a Gaussian flow, at jittered times."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(B, 1, 4, 4, generator=generator)
    inner = (torch.arange(T - 2) + torch.rand(B, T - 2, generator=generator)) / (T - 2)
    times = torch.cat([torch.ones(B, 1), 1 - inner, torch.zeros(B, 1)], dim=1)
    one = torch.ones(B)
    x = torch.stack([FLOW.state(noise, one, t) for t in times.unbind(1)], dim=1)
    velocity = torch.stack([FLOW.velocity(x[:, i], times[:, i]) for i in range(T)], dim=1)
    return TrajectoryBatch(x, velocity, times, None, torch.arange(B))


def test_states_between_the_stored_ones_are_interpolated_closely() -> None:
    batch = exact_batch()
    for t in (torch.linspace(0, 1, B), batch.times[:, 3], torch.zeros(B), torch.ones(B)):
        exact = FLOW.state(batch.noise, torch.ones(B), t)
        torch.testing.assert_close(batch.at(t), exact, rtol=0, atol=3e-3)
    torch.testing.assert_close(batch.at(batch.times[:, 4]), batch.x[:, 4])


def image_batch(step: int) -> ImageBatch:
    return ImageBatch(torch.full((2, 1, 2, 2), float(step)), None, torch.tensor([step, step]))


def test_batches_come_in_order_and_what_reading_raises_comes_too() -> None:
    def read(step: int) -> ImageBatch:
        if step == 5:
            raise BadInput("shard 5 is gone")
        return image_batch(step)

    batches = Prefetcher(read, 2, 100, torch.device("cpu"))
    assert [batches.batch(step).index[0].item() for step in (2, 3, 4)] == [2, 3, 4]
    with pytest.raises(BadInput, match="shard 5 is gone"):
        batches.batch(5)
    batches.close()


def test_a_reader_that_is_ahead_can_be_closed() -> None:
    batches = Prefetcher(image_batch, 0, 10_000, torch.device("cpu"))
    batches.batch(0)
    batches.close()
    assert not batches._thread.is_alive()
