import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline import networks
from pipeline.common.config import load_section, validate
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.generation.generate import GenerateConfig, generate
from pipeline.storage.output import Output, hold_output
from pipeline.teachers.loading import load_teacher
from tests.support.problems import make_data, tiny_config
from trainer.checkpoints import checkpoint
from trainer.config import TrainConfig, TrainerConfig
from trainer.distillation.queries import Loss
from trainer.distillation.recipes import Recipe, load_recipe, recipe_names
from trainer.distillation.terms import VelocityTerm
from trainer.dry_run import dry_run
from trainer.log import read_log
from trainer.step import learning_rate
from trainer.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("loop"))


def config(folder: Path, out: Path, **changes: Any) -> TrainConfig:
    trainer = {"num_steps": 6, "batch_size": 8, "lr": 1e-3, "warmup_steps": 2, "log_every": 2, "checkpoint_every": 3}
    trainer |= changes.pop("trainer", {})
    values = {"data": folder, "out": out, "device": "cpu", "trainer": trainer}
    return TrainConfig.model_validate({**values, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    names: tuple[str, ...] = ("network", "ema", "optimizer")
    names += ("owned",) if (folder / checkpoint.OWNED).exists() else ()
    # Copies: what is loaded is the file itself, mapped.
    return {f"{n}.{k}": v.clone() for n in names for k, v in load_file(folder / f"{n}.safetensors").items()}


def images_config(out: Path, images: Path | str, **network: Any) -> TrainConfig:
    values = {
        "recipe": "flow-matching",
        "images": str(images),
        "network": tiny_config(**network).model_dump(),
        "out": out,
        "device": "cpu",
        "trainer": {"num_steps": 4, "batch_size": 4},
    }
    return TrainConfig.model_validate(values)


def recipe(name: str) -> Recipe:
    return Recipe.model_validate(load_recipe(name))


def on_trajectories() -> list[str]:
    return [name for name in recipe_names() if recipe(name).reads == "trajectories"]


@pytest.mark.parametrize("name", on_trajectories())
def test_every_recipe_trains(data: Path, tmp_path: Path, name: str) -> None:
    folder = train(config(data, tmp_path / "run", recipe=name))
    assert folder.name == "step-000006"
    info = checkpoint.read_info(folder)
    assert (info.trains, info.step, info.recipe) == (recipe(name).trains, 6, name)
    if info.trains == "student":
        assert load_file(folder / "network.safetensors")["gate_s"].abs().max() > 0
    assert Image.open(tmp_path / "run" / "samples.png").size[0] > 100
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {2, 3, 4, 6} <= {line["step"] for line in log}  # and where a phase ends
    assert set(recipe(name).phase(5, 6).titles) <= set(log[-1])


def test_the_log_has_the_time_the_images_seen_the_sum_that_is_minimised_and_the_memory(
    data: Path, tmp_path: Path
) -> None:
    before = time.time()
    train(config(data, tmp_path / "run", recipe="anchored"))
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    parts = (last["output"], last["velocity"], last["soft-consistency"])
    assert last["loss"] == pytest.approx(parts[0] + 0.1 * parts[1] + 0.1 * parts[2])
    assert last["images_seen"] == 6 * 8
    assert before - 1 <= last["time"] <= time.time() + 1
    assert last["memory_bytes"] > 2**20


def test_a_checkpoint_says_on_what_it_was_made(data: Path, tmp_path: Path) -> None:
    folder = train(config(data, tmp_path / "run"))
    info = checkpoint.read_info(folder)
    assert info.ranks == 1
    assert info.environment is not None
    assert info.environment.python == platform.python_version()
    stored = json.loads((folder / "checkpoint.json").read_text())
    del stored["environment"], stored["ranks"]  # as in older ones
    (folder / "checkpoint.json").write_text(json.dumps(stored))
    assert checkpoint.read_info(folder).environment is None


RESUMED = ["anchored", "anchored-adversarial", "continuous-consistency", "dmd2", "progressive"]


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_bit_for_bit_as_an_undisturbed_one(data: Path, tmp_path: Path, name: str) -> None:
    whole = train(config(data, tmp_path / "whole", recipe=name))
    broken = tmp_path / "broken"
    train(config(data, broken, recipe=name))
    shutil.rmtree(broken / "checkpoints" / "step-000006")  # as if it had been killed after step 3
    resumed = train(config(data, broken, recipe=name))
    ours, theirs = weights(resumed), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    logs = [(run / "log.jsonl").read_text().splitlines() for run in (tmp_path / "whole", broken)]
    measured = {"time", "images_per_second", "stall", "memory_bytes"}
    losses = [[{k: v for k, v in json.loads(line).items() if k not in measured} for line in log] for log in logs]
    assert losses[0] == losses[1]


def test_how_a_recipe_spaces_steps_decides_no_weights(data: Path, tmp_path: Path) -> None:
    terms = {"phases": [{"terms": [{"loss": "output"}]}]}
    done = train(config(data, tmp_path / "run", recipe=terms))
    assert train(config(data, tmp_path / "run", recipe=terms | {"step_shift": 2.0})) == done


def test_a_discriminator_may_take_its_real_samples_from_images(data: Path, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (10, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "pictures.npz", images=pictures)
    term = {"loss": "adversarial", "images": str(tmp_path / "pictures.npz")}
    log = train(config(data, tmp_path / "run", recipe={"phases": [{"terms": [term]}]})).parents[1] / "log.jsonl"
    assert "adversarial, its network" in read_log(log)[-1]
    np.savez(tmp_path / "pictures.npz", images=pictures[:, :3])
    with pytest.raises(BadInput, match=r"adversarial: wanted images of \[1, 4, 4\] as the student's; those of"):
        train(config(data, tmp_path / "other", recipe={"phases": [{"terms": [term]}]}))


def test_a_finished_run_is_left_alone(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(config(data, tmp_path / "run"))
    before = (first / "ema.safetensors").stat().st_mtime_ns
    assert train(config(data, tmp_path / "run")) == first
    assert (first / "ema.safetensors").stat().st_mtime_ns == before
    assert "nothing to do" in capsys.readouterr().out


def test_a_run_of_another_configuration_is_refused(data: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "run"))
    with pytest.raises(BadInput, match=r"holds another run \(trainer\.lr: 0\.001 there, 0\.002 asked\)"):
        train(config(data, tmp_path / "run", trainer={"lr": 2e-3}))


def test_a_run_whose_data_grew_is_told_how_many_records_it_knew(tmp_path: Path) -> None:
    data = make_data(tmp_path, n=64)
    train(config(data, tmp_path / "run"))
    make_data(tmp_path, n=96)
    grown = (
        r"run: it was trained on the first 64 of the 96 records that \S+ has grown to: choose another --out, there with"
    )
    with pytest.raises(BadInput, match=grown):
        train(config(data, tmp_path / "run"))
    (tmp_path / "other").mkdir()
    other = make_data(tmp_path / "other", n=32, seed=1)
    with pytest.raises(BadInput, match="it was trained on other data, or on fewer, than the 32 records that"):
        train(config(other, tmp_path / "run"))


def test_a_network_of_its_own_is_what_the_configuration_says(data: Path, tmp_path: Path) -> None:
    wide = {"network": tiny_config(channels=16).model_dump(), "start": "scratch"}
    folder = train(config(data, tmp_path / "run", **wide))
    assert networks.load(folder / "ema.safetensors").config == tiny_config(channels=16, second_time=True)


def test_a_wider_network_starts_from_the_teachers_and_resumes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = tiny_config(channels=16).model_dump()
    folder = train(config(data, tmp_path / "run", network=wide, trainer={"num_steps": 2}))
    assert "145 widened" in capsys.readouterr().out
    assert networks.load(folder / "ema.safetensors").config == tiny_config(
        channels=16, second_time=True, time_channels=8, max_groups=64
    )
    train(config(data, tmp_path / "run", network=wide))
    assert "resuming from" in capsys.readouterr().out


def test_a_network_that_does_not_fit_the_data_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"wanted a network for \[1, 4, 4\] and 0 classes as the data"):
        train(config(data, tmp_path / "other", network=tiny_config(num_classes=3).model_dump()))


def test_pictures_that_a_killed_run_did_not_draw_are_drawn_later(data: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "run"))
    (tmp_path / "run" / "samples.png").unlink()
    train(config(data, tmp_path / "run"))
    assert (tmp_path / "run" / "samples.png").exists()


def test_step_a_million_comes_after_step_999999(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    assert checkpoint.find_all(tmp_path)[-1].name == "step-1000000"


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, *args: Any) -> None:
        if "step-000006" in str(path):
            raise OSError(28, "No space left on device")
        save_tensors(path, *args)

    save_tensors = networks.save_tensors
    monkeypatch.setattr(networks, "save_tensors", full)
    with pytest.raises(WorkFailed, match=r"step-000006: cannot be written.*No space left"):
        train(config(data, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]


def test_only_the_newest_checkpoints_are_kept(data: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "run", trainer={"checkpoint_every": 1, "keep_checkpoints": 2}))
    assert [path.name for path in checkpoint.find_all(tmp_path / "run")] == ["step-000005", "step-000006"]


@pytest.fixture
def broken_at_step_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """A velocity loss whose fifth value is no number."""
    compute, calls = VelocityTerm.compute, iter(range(1000))

    def broken(*args: Any) -> Loss:
        values = yield from compute(*args)
        return values * (torch.nan if next(calls) == 4 else 1.0)

    monkeypatch.setattr(VelocityTerm, "compute", broken)


@pytest.mark.usefixtures("broken_at_step_4")
def test_a_loss_that_is_not_finite_stops_with_its_batch_saved(data: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match=r"step 4: velocity is not finite; its batch is in .*; try .*--skip-nonfinite"):
        train(config(data, tmp_path / "run"))
    batch = load_file(tmp_path / "run" / "nonfinite-step-000004.safetensors")
    assert batch["x"].shape == (8, 5, 1, 4, 4)
    assert checkpoint.find(tmp_path / "run").name == "step-000003"


@pytest.mark.usefixtures("broken_at_step_4")
def test_a_step_whose_gradient_is_not_finite_can_be_skipped_and_is_counted(data: Path, tmp_path: Path) -> None:
    folder = train(config(data, tmp_path / "run", trainer={"skip_nonfinite": True}))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in log] == [0, 0, 0, 1]
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


def test_a_teacher_trained_on_images_is_a_teacher(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.arange(8) % 2)
    train(images_config(tmp_path / "run", tmp_path / "set.npz", num_classes=2))
    teacher = load_teacher(str(tmp_path / "run"))
    assert (teacher.name, teacher.num_classes, teacher.shape) == ("run", 2, (1, 4, 4))


def test_flow_matching_finds_the_velocity_of_a_single_image() -> None:
    """With one image c the flow is known: v(x, t) = (x - c) / t."""
    from pipeline.flow.path import interpolate
    from trainer.distillation.losses import flow_matching_loss
    from trainer.distillation.models import Models
    from trainer.distillation.queries import evaluate

    torch.manual_seed(0)
    network = networks.build(tiny_config())
    data = torch.full((64, 1, 4, 4), 0.5)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(300):
        t, noise = 0.2 + 0.8 * torch.rand(64), torch.randn(64, 1, 4, 4)
        optimizer.zero_grad()
        (values,) = evaluate([flow_matching_loss(data, noise, t, None)], Models(network).answer)
        values.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    t, noise = torch.linspace(0.3, 1, 64), torch.randn(64, 1, 4, 4)
    x = interpolate(data, noise, t)
    with torch.no_grad():
        error = (network(x, t) - (x - data) / t[:, None, None, None]).square().mean().sqrt()
    assert error < 0.3  # against 1.1 for a network that says nothing


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": None}, "it takes 'data'"),
        ({"teacher": "digits"}, "was made by another teacher"),
        ({"recipe": "flow-matching"}, "it takes 'images' and 'network'"),
        ({"trainer": {"batch_size": 9}}, "multiple of the recipe's strides"),
        ({"recipe": "lagrangian", "trainer": {"compile": True}}, "differentiates forward, which torch.compile"),
        ({"device": "abacus"}, "device 'abacus': wanted auto or one that torch has here"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        train(config(data, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_images_that_do_not_fit_the_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"wanted samples of \[1, 4, 4\] as the network; they are \[1, 8, 8\]"):
        train(images_config(tmp_path / "run", "digits"))
    with pytest.raises(BadInput, match="wanted labels from 0 to 4"):
        train(images_config(tmp_path / "run", "digits", resolution=8, num_classes=5))


def test_a_data_set_without_velocities_is_refused_by_a_recipe_that_needs_them(data: Path, tmp_path: Path) -> None:
    values = load_section(str(data / "config.yaml"), "generate")
    values |= {"out": tmp_path / "data", "velocities": False, "n": 8}
    generate(validate(GenerateConfig, values, "generate"))
    with pytest.raises(BadInput, match="needs velocities, and there are none: generate with --velocities"):
        train(config(tmp_path / "data", tmp_path / "run", recipe="half-steps"))
    train(config(tmp_path / "data", tmp_path / "run", recipe="traflow"))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = weights(train(config(data, tmp_path / "run")))
    path = tmp_path / "run" / "checkpoints" / "step-000006" / "ema.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1  # one bit, which no format would notice
    path.write_bytes(damaged)
    (tmp_path / "run" / "samples.png").unlink()
    again = weights(train(config(data, tmp_path / "run")))
    assert "warning" in (said := capsys.readouterr().out)
    assert "its bytes are not those that were written; trying the one before" in said
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_run_without_a_readable_checkpoint_says_so(data: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "run", trainer={"keep_checkpoints": 1}))
    (tmp_path / "run" / "checkpoints" / "step-000006" / "checkpoint.json").write_text("{")
    with pytest.raises(BadInput, match=r"none of its checkpoints can be read .* remove them to start again"):
        train(config(data, tmp_path / "run"))


def test_parts_of_a_batch_add_up_to_the_whole(data: Path, tmp_path: Path) -> None:
    whole = weights(train(config(data, tmp_path / "whole")))
    parts = weights(train(config(data, tmp_path / "parts", trainer={"accumulate": 2})))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_keeps_full_precision_weights(data: Path, tmp_path: Path, precision: str) -> None:
    folder = train(config(data, tmp_path / "run", trainer={"precision": precision}))
    found = weights(folder)
    assert {tensor.dtype for name, tensor in found.items() if name.startswith("network")} == {torch.float32}
    assert ("optimizer.scale" in found) == (precision == "fp16")
    exact = weights(train(config(data, tmp_path / "exact")))
    assert max(float((found[n] - exact[n]).abs().max()) for n in exact if n.startswith("network")) < 0.02


def test_a_compiled_network_trains_to_nearly_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self, backend="eager"))
    exact = weights(train(config(data, tmp_path / "exact")))
    found = weights(train(config(data, tmp_path / "run", trainer={"compile": True})))
    for name in exact:
        torch.testing.assert_close(found[name], exact[name], rtol=1e-3, atol=1e-4)


def test_what_the_machine_lacks_is_said_before_anything_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.flow.numerics.has_precision", lambda precision, device: precision == "fp32")
    with pytest.raises(BadInput, match="precision bf16: wanted a GPU that has it, got a CPU: take a GPU, or precision"):
        train(config(data, tmp_path / "run", trainer={"precision": "bf16"}))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match=r"trainer\.compile: wanted a C\+\+ compiler; there is none here"):
        train(config(data, tmp_path / "run", trainer={"compile": True}))
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_fit_names_the_parts_that_may(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")

    monkeypatch.setattr("trainer.train.take_step", full)
    monkeypatch.setattr("trainer.dry_run.take_step", full)
    line = r"batch_size 8 in parts of 8 does not fit into memory: --set trainer\.accumulate=2 takes parts of 4"
    for work in (train, dry_run):
        with pytest.raises(BadInput, match=line):
            work(config(data, tmp_path / "run"))
    told, measured = capsys.readouterr().out.split("measuring ")
    assert "network: 49,361 parameters, from tiny: " in told
    assert measured.startswith("4 steps of 8 images with 49,361 parameters on cpu")


def test_several_averages_are_kept_side_by_side_and_resumed(data: Path, tmp_path: Path) -> None:
    ema = [{"decay": 0.9}, {"name": "narrow", "sigma_rel": 0.05}]
    settings = {"ema": ema, "checkpoint_every": 3}
    whole = train(config(data, tmp_path / "whole", trainer=settings))
    broken = tmp_path / "broken"
    shutil.rmtree(train(config(data, broken, trainer=settings)))
    resumed = train(config(data, broken, trainer=settings))
    one, other = (load_file(folder / "ema-narrow.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], tensor) for name, tensor in load_file(whole / "ema.safetensors").items())


def test_reflow_makes_the_next_flow_from_the_one_before(data: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "run", recipe="reflow"))
    teacher = load_teacher(str(tmp_path / "run"))
    assert (teacher.shape, teacher.t_start) == ((1, 4, 4), 1.0)
    assert teacher.network is not None
    assert not teacher.network.config.second_time


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    settings = TrainerConfig(num_steps=100, lr=1.0, warmup_steps=10)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(0.91)
    assert rates[-1] == pytest.approx(0.01)


def test_the_papers_recipe_has_its_two_phases_in_order() -> None:
    found = [[term.title for term in recipe("traflow").phase(step, 10).terms] for step in (0, 4, 5, 9)]
    assert found == [["consistency"]] * 2 + [["output", "velocity"]] * 2


# Training on


def test_more_steps_of_a_constant_rate_end_bit_for_bit_as_if_asked_at_first(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = {"schedule": "constant"}
    whole = weights(train(config(data, tmp_path / "whole", trainer=constant)))
    train(config(data, tmp_path / "run", trainer={**constant, "num_steps": 3}))
    found = weights(train(config(data, tmp_path / "run", trainer=constant)))
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert "6 steps instead of 3, as if so many had been asked at first" in capsys.readouterr().out


def test_more_steps_of_a_decaying_rate_say_what_that_does(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(data, tmp_path / "run", trainer={"num_steps": 3}))
    assert train(config(data, tmp_path / "run")).name == "step-000006"
    said = " ".join(capsys.readouterr().out.split())
    assert "6 steps instead of 3: the schedule and the phases are those of 6 steps from here on" in said
    with pytest.raises(BadInput, match="has 6 steps; wanted 3: ask for more"):
        train(config(data, tmp_path / "run", trainer={"num_steps": 3}))


def test_a_run_starts_from_the_weights_of_another(data: Path, tmp_path: Path) -> None:
    first = train(config(data, tmp_path / "first"))
    changes: dict[str, Any] = {"start": str(tmp_path / "first"), "trainer": {"num_steps": 1, "lr": 1e-12}}
    folder = train(config(data, tmp_path / "next", **changes))
    before, after = load_file(first / "ema.safetensors"), load_file(folder / "network.safetensors")
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    assert checkpoint.read_info(folder).start_sha256 == checkpoint.read_info(first).files["ema.safetensors"]
    shutil.move(tmp_path / "first", tmp_path / "moved")
    train(config(data, tmp_path / "next", **{**changes, "start": str(tmp_path / "moved")}))  # the same weights
    with pytest.raises(BadInput, match="start_sha256"):
        train(config(data, tmp_path / "next", **{**changes, "start": str(folder)}))
    with pytest.raises(BadInput, match=r"start: .* has another network \(channels"):
        train(config(data, tmp_path / "x", **changes | {"start": str(folder), "network": tiny_config(channels=16)}))


def test_a_run_resumes_when_the_one_that_it_started_from_was_trained_on_or_removed(data: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "first", trainer={"num_steps": 1}))
    changes: dict[str, Any] = {"start": str(tmp_path / "first"), "trainer": {"num_steps": 1, "schedule": "constant"}}
    train(config(data, tmp_path / "next", **changes))
    train(config(data, tmp_path / "first", trainer={"num_steps": 2}))
    changes["trainer"] = {"num_steps": 2, "schedule": "constant"}
    assert train(config(data, tmp_path / "next", **changes)).name == "step-000002"
    shutil.rmtree(tmp_path / "first")
    changes["trainer"] = {"num_steps": 3, "schedule": "constant"}
    assert train(config(data, tmp_path / "next", **changes)).name == "step-000003"


def test_a_teacher_is_trained_on_as_well_and_never_from_a_student(data: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=pixels)
    train(images_config(tmp_path / "first", tmp_path / "set.npz"))
    settings = images_config(tmp_path / "next", tmp_path / "set.npz").model_copy(
        update={"start": str(tmp_path / "first"), "network": None}
    )
    assert checkpoint.read_info(train(settings)).start_sha256 is not None
    with pytest.raises(BadInput, match="start: wanted a student's weights, as recipe anchored trains"):
        train(config(data, tmp_path / "x", start=str(tmp_path / "first")))


def test_a_teacher_that_moved_is_the_same_by_its_weights(tmp_path: Path) -> None:
    folder = make_data(tmp_path)
    shutil.rmtree(train(config(folder, tmp_path / "run")))
    (tmp_path / "tiny.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(BadInput, match=r"tiny\.safetensors', which is not there: --set teacher=PATH says where"):
        train(config(folder, tmp_path / "run"))
    folder = train(config(folder, tmp_path / "run", teacher=str(tmp_path / "moved.safetensors")))
    assert folder.name == "step-000006"


# The folder of a run


def test_two_trainings_never_share_a_folder(data: Path, tmp_path: Path) -> None:
    with (
        hold_output(Output.TRAINING, str(tmp_path / "run")),
        pytest.raises(BadInput, match="another driver is at work there"),
    ):
        train(config(data, tmp_path / "run"))


def test_a_folder_of_other_things_is_left_alone(data: Path, tmp_path: Path) -> None:
    before = (data / "config.yaml").read_bytes()
    with pytest.raises(BadInput, match="wanted a new or empty folder, or a training run; it holds a data set"):
        train(config(data, data))
    assert (data / "config.yaml").read_bytes() == before
    assert not (data / "log.jsonl").exists()


def test_a_checkpoint_is_also_made_by_the_clock(data: Path, tmp_path: Path) -> None:
    settings = {"checkpoint_every": 10**6, "checkpoint_minutes": 1e-9, "log_every": 10**6, "keep_checkpoints": 9}
    train(config(data, tmp_path / "run", trainer=settings))
    assert [path.name for path in checkpoint.find_all(tmp_path / "run")] == [
        f"step-00000{step}" for step in range(1, 7)
    ]


def test_a_bad_byte_in_the_log_stops_no_resume(data: Path, tmp_path: Path) -> None:
    shutil.rmtree(train(config(data, tmp_path / "run")))
    log = tmp_path / "run" / "log.jsonl"
    log.write_bytes(log.read_bytes().replace(b"step", b"st\xffp", 1))
    train(config(data, tmp_path / "run"))
    assert [line["step"] for line in read_log(log)] == [3, 4, 6]
