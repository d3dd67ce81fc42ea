"""The stages on tiny pipelines: from prompts or classes to a student and its scores, interrupted and resumed."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from eval.config import EvaluateConfig
from eval.evaluate import evaluate
from pipeline.common.errors import BadInput
from pipeline.generation.generate import generate
from tests.support.command import assert_one_line, call
from tests.support.prompts import PROMPTS, prompted, write_prompts
from tests.support.runs import EVALUATION
from traflow_pipeline.loading import load_student
from traflow_pipeline.run import Run, check_stages, open_run
from trainer.checkpoints import checkpoint
from trainer.config import TrainConfig
from trainer.train import train

LORA = {"rank": 2}


def training(folder: Path, **changes: Any) -> TrainConfig:
    trainer = {"num_steps": 4, "batch_size": 4, "log_every": 2, "checkpoint_every": 2, "schedule": "constant"}
    values: dict[str, Any] = {"data": str(folder / "data"), "out": folder / "run", "device": "cpu", "lora": LORA}
    trainer |= changes.pop("trainer", {})
    return TrainConfig.model_validate(values | {"recipe": "trajectory", "trainer": trainer} | changes)


@pytest.fixture(scope="module")
def workplace(pipelines: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    generate(prompted(folder, pipelines("sd3"), n=16))
    return folder


@pytest.fixture(scope="module")
def trained(workplace: Path) -> Path:
    return train(training(workplace))


def test_a_checkpoint_of_an_adapter_holds_what_was_trained_alone(trained: Path) -> None:
    for name in ("network.safetensors", "ema.safetensors"):
        names = load_file(trained / name).keys()
        assert names
        assert all(".lora_" in key or ".second." in key or key.endswith(".gate") for key in names)


def test_a_resumed_training_ends_in_the_same_weights(workplace: Path, trained: Path) -> None:
    apart = training(workplace, out=workplace / "apart")
    train(apart.model_copy(update={"trainer": apart.trainer.model_copy(update={"num_steps": 2})}))
    resumed = train(apart)
    for name in ("network.safetensors", "ema.safetensors"):
        assert (resumed / name).read_bytes() == (trained / name).read_bytes()


def test_a_trained_student_draws_latents_and_pixels(trained: Path) -> None:
    samples = load_student(trained, device="cpu").sample(2, steps=2)
    assert samples.arrays.shape == (2, 4, 8, 8)
    assert samples.images.shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"channels": 8}}, "leave 'network' and 'start' out"),
        ({"start": "scratch"}, "leave 'network' and 'start' out"),
        ({"trainer": {"compile": True}}, "is not compiled"),
        ({"recipe": "lagrangian", "trainer": {"gradient_checkpointing": True}}, "set gradient_checkpointing=false"),
        ({"lora": {"rank": 2, "targets": ["to_x"]}}, "no layer of SD3Transformer2DModel is called to_x"),
    ],
)
def test_what_a_pipelines_student_cannot_do_is_refused(changes: dict[str, Any], message: str, workplace: Path) -> None:
    with pytest.raises(BadInput, match=message):
        train(training(workplace, out=workplace / "refused", **changes))


def test_all_weights_can_be_trained_and_are_found_again(workplace: Path) -> None:
    config = training(workplace, out=workplace / "full", lora=None, trainer={"num_steps": 1, "precision": "bf16"})
    folder = train(config)
    assert checkpoint.read_info(folder).config.get("lora") is None
    assert load_student(folder, device="cpu").sample(1).arrays.shape == (1, 4, 8, 8)


@pytest.fixture(scope="module")
def classes(pipelines: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of DiT, whose labels are classes."""
    folder = tmp_path_factory.mktemp("classes")
    generate(prompted(folder, pipelines("dit"), prompts=None, n=8))
    train(training(folder, lora=None, trainer={"num_steps": 1}))
    return folder


def test_a_student_of_classes_is_scored_in_pixels_beside_its_teacher(classes: Path) -> None:
    values = {"checkpoint": str(classes / "run"), "out": classes / "report", "reference": "teacher"}
    report = evaluate(EvaluateConfig.model_validate(EVALUATION | {"batch_size": 8} | values))
    assert report is not None
    assert report.reference.shape == (3, 8, 8)
    assert report.prompts is None
    (row,) = report.rows_of("student")
    assert {"fd-pixels", "kd-pixels"} <= row.scores.keys()
    assert row.rmse is not None
    assert row.latent_rmse is not None
    assert (classes / "report" / "grid.png").is_file()


def test_prompts_for_a_student_without_any_are_refused(classes: Path, tmp_path: Path) -> None:
    path = write_prompts(tmp_path)
    flags = [classes / "run", "--out", tmp_path / "out", "--device", "cpu", "--prompts", path]
    assert_one_line(call(tmp_path, "evaluate", *flags, code=2), "takes no prompts: leave --prompts")
    sample = ["sample", classes / "run", "--device", "cpu", "--prompt", "a cat"]
    assert_one_line(call(tmp_path, *sample, code=2), "takes no prompts")


def whole_run(folder: Path, pipeline: Path, **evaluation: Any) -> Run:
    """A run of all stages on `pipeline`, which is checked before the first one works."""
    given = prompted(folder, pipeline).model_dump(mode="json", exclude={"out"})
    if pipeline.name == "dit":
        given["prompts"] = None
    sections = {"generate": given, "train": {"device": "cpu", "trainer": {"num_steps": 1, "batch_size": 4}}}
    (folder / "run.yaml").write_text(yaml.safe_dump(sections | {"evaluate": {"device": "cpu", **evaluation}}))
    return open_run(str(folder / "run.yaml"), str(folder / "run"), [], None)


@pytest.mark.parametrize(
    ("name", "evaluation", "said"),
    [
        ("dit", {}, "evaluate: 'reference' is missing"),
        ("dit", {"prompts": "seen.txt"}, "takes no prompts"),
        ("sd3", {}, "draws from prompts: give --prompts FILE"),
        ("sd3", {"prompts": "seen.txt"}, "1 of its 1 are among the training's"),
        ("sd3", {"prompts": "new.txt", "clip": "nowhere"}, "--clip nowhere: wanted a folder"),
        ("sd3", {"prompts": "new.txt", "features": "nothing"}, "no features 'nothing'"),
    ],
)
def test_a_run_says_what_its_evaluation_lacks_before_it_draws_anything(
    pipelines: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    evaluation: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path, PROMPTS[:1], "seen.txt")
    write_prompts(tmp_path, ["fog"], "new.txt")
    run = whole_run(tmp_path, pipelines(name), **evaluation)
    with pytest.raises(BadInput, match=re.escape(said)):
        check_stages(run, on_cluster=False, address=None)


def test_a_run_that_names_all_of_it_passes_the_check(
    pipelines: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path, ["fog"], "new.txt")
    check_stages(whole_run(tmp_path, pipelines("sd3"), prompts="new.txt"), on_cluster=False, address=None)
    check_stages(whole_run(tmp_path, pipelines("dit"), reference="teacher"), on_cluster=False, address=None)
