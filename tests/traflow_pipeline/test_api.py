"""`import traflow_pipeline as tp`: the three stages, what they leave, and reading it, from Python."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import traflow_pipeline as tp
from tests.support.command import call
from tests.support.problems import make_data, save_tiny_teacher, tiny_config
from traflow_pipeline.installation import ROOT

GENERATE: dict[str, Any] = {
    "n": 20,
    "states": 2,
    "solver": {"name": "rk4", "num_steps": 3},
    "executor": "inline",
    "shard_size": 16,
    "batch_size": 8,
    "block_size": 4,
}


def make_student(root: Path, **changes: int) -> Path:
    """A run of two steps on a tiny teacher, of which `changes` change the network."""
    teacher = save_tiny_teacher(root / "tiny.safetensors", **changes)
    tp.generate(teacher=str(teacher), out=root / "data", **GENERATE)
    tp.train(data=root / "data", out=root / "run", device="cpu", trainer={"num_steps": 2, "batch_size": 8})
    return root / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("api"), num_classes=5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tp.TrajectoryDataset:
    return tp.open_dataset(make_data(tmp_path_factory.mktemp("data"), n=38))


# Sampling


def test_a_sample_depends_on_its_index_alone(run: Path) -> None:
    student = tp.load_student(run, device="cpu")
    whole = student.sample(6, steps=2, seed=3)
    assert whole.arrays.shape == (6, 1, 4, 4)
    assert whole.arrays.dtype == np.float32
    assert len(whole) == 6
    assert whole.labels is not None
    part = student.sample(2, steps=2, seed=3, first=4)
    np.testing.assert_allclose(part.arrays, whole.arrays[4:], atol=1e-6)
    assert part.labels is not None
    assert part.labels.tolist() == whole.labels.tolist()[4:]


def test_the_noise_is_that_of_the_command(run: Path, tmp_path: Path) -> None:
    tp.load_student(run, device="cpu").sample(9, steps=2, seed=7, first=1).save(tmp_path / "api.png")
    call(tmp_path, "sample", run, "--n", 9, "--first", 1, "--steps", 2, "--seed", 7, "--out", "command.png")
    assert (tmp_path / "api.png").read_bytes() == (tmp_path / "command.png").read_bytes()


def test_a_label_is_every_sample_s(run: Path) -> None:
    student = tp.load_student(run, device="cpu")
    free, third = student.sample(8), student.sample(8, label=3)
    assert free.labels is not None
    assert third.labels is not None
    assert third.labels.tolist() == [3] * 8
    same = free.labels == 3
    np.testing.assert_array_equal(third.arrays[same], free.arrays[same])
    assert not np.array_equal(third.arrays[~same], free.arrays[~same])


def test_times_can_be_given(run: Path) -> None:
    student = tp.load_student(run, device="cpu")
    given = student.sample(2, steps=[1.0, 2 / 3, 0.0])  # as the default recipe spaces two steps
    np.testing.assert_allclose(given.arrays, student.sample(2, steps=2).arrays, atol=1e-6)


def test_samples_are_images_where_their_shape_is_one(tmp_path: Path) -> None:
    arrays = np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 3, 4, 4)
    samples = tp.Samples(arrays, None, (-1.0, 1.0))
    assert samples.images.shape == (1, 4, 4, 3)
    assert (samples.images.min(), samples.images.max()) == (0, 255)
    samples.save(tmp_path / "a" / "grid.png")
    assert Image.open(tmp_path / "a" / "grid.png").size[0] > 30


def test_samples_of_any_shape_are_arrays(tmp_path: Path) -> None:
    samples = tp.Samples(np.zeros((2, 7), np.float32), None, (-1.0, 1.0))
    samples.save(tmp_path / "two.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "two.npy"), samples.arrays)
    with pytest.raises(tp.BadInput, match=r"shape \[7\]: wanted images"):
        samples.save(tmp_path / "two.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: wanted 1 or more, got 0"),
        ({"n": 1, "steps": 0}, "steps: wanted 1 or more, got 0"),
        ({"n": 1, "steps": [1.0, 0.5]}, "times that fall from 1 to 0"),
        ({"n": 1, "seed": -1}, "seed: wanted 0 to"),
        ({"n": 1, "label": 5}, "label: wanted 0 to 4, got 5"),
    ],
    ids=str,
)
def test_what_cannot_be_sampled_is_said(run: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(tp.BadInput, match=message):
        tp.load_student(run, device="cpu").sample(**arguments)


def test_a_label_needs_classes(tmp_path: Path) -> None:
    with pytest.raises(tp.BadInput, match="has no classes"):
        tp.load_student(make_student(tmp_path), device="cpu").sample(1, label=0)


def test_a_trained_teacher_is_no_student(tmp_path: Path) -> None:
    folder = tp.train(
        images="digits",
        out=tmp_path / "run",
        recipe="flow-matching",
        network=tiny_config(resolution=8).model_dump(),
        trainer={"num_steps": 1, "batch_size": 4},
        device="cpu",
    )
    with pytest.raises(tp.BadInput, match="use load_teacher"):
        tp.load_student(folder)
    assert tp.load_teacher(folder).shape == (1, 8, 8)


def test_teachers_are_loaded_by_name() -> None:
    assert tp.load_teacher("digits").shape == (1, 8, 8)
    with pytest.raises(tp.BadInput, match="no teacher '2fr'"):
        tp.load_teacher("2fr")


# The stages


def test_a_stage_takes_its_model_or_the_same_keys(tmp_path: Path) -> None:
    teacher = save_tiny_teacher(tmp_path / "tiny.safetensors")
    by_keys = tp.generate(teacher=str(teacher), out=tmp_path / "a", **GENERATE)
    by_model = tp.generate(tp.GenerateConfig(teacher=str(teacher), out=str(tmp_path / "b"), **GENERATE))
    assert by_keys.digest == by_model.digest
    assert len(by_keys) == 20


def test_keys_go_over_a_config(tmp_path: Path) -> None:
    dataset = tp.generate(config="quickstart", out=tmp_path / "data", n=64, executor="inline", seed=5)
    assert dataset.plan.teacher == "digits"
    assert str(dataset.plan.solver) == "rk4 9"
    assert dataset.plan.seed == 5


def test_evaluate_takes_keys_and_says_what_it_lacks(run: Path, tmp_path: Path) -> None:
    with pytest.raises(tp.BadInput, match="'reference' is missing"):
        tp.evaluate(checkpoint=run, out=tmp_path / "report", features=[], num_samples=64, device="cpu")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tp.generate(config="quickstart", statse=1),
            r"generate\(\): unknown key 'statse'; valid keys: teacher",
        ),
        (lambda: tp.generate(teacher="digits", n=4), r"generate\(\): 'out' is missing"),
        (lambda: tp.train(config="slowstart"), "no config 'slowstart'"),
        (lambda: tp.train(config="quickstart", trainer={"lrr": 1}), r"train\(\): unknown key 'trainer.lrr'"),
        (lambda: tp.evaluate({"out": "x"}), "wanted a EvaluateConfig or keywords, got dict"),  # type: ignore[arg-type]
        (lambda: tp.generate(tp.GenerateConfig(teacher="digits", n=1, out="x"), n=2), "got both"),
    ],
)
def test_bad_settings_are_one_line(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(tp.BadInput, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Reading


def test_records_are_read_by_index(dataset: tp.TrajectoryDataset) -> None:
    assert len(dataset) == 38
    assert dataset.plan.num_states == 3
    record = dataset[5]
    assert (record.index, record.label) == (5, -1)
    assert record.noise.shape == record.sample.shape == (1, 4, 4)
    assert record.states.shape == (3, 1, 4, 4)
    assert record.velocities is not None
    assert record.velocities.shape == (5, 1, 4, 4)
    assert (np.diff(record.times) < 0).all()
    assert dataset[-1].index == 37
    assert [record.index for record in dataset] == list(range(38))
    for index in (38, -39):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize(
    "part", [slice(0, 38), slice(3, 9), slice(30, None), slice(5, 5), slice(40, 50), slice(-2, None)]
)
def test_a_slice_is_the_records_of_a_range(dataset: tp.TrajectoryDataset, part: slice) -> None:
    assert dataset[part].index.tolist() == list(range(38))[part]


def test_a_slice_has_no_step(dataset: tp.TrajectoryDataset) -> None:
    with pytest.raises(ValueError, match="step 1, got 2"):
        dataset[::2]


@pytest.mark.parametrize("size", [1, 7, 38, 100])
def test_batches_cover_the_records_in_order(dataset: tp.TrajectoryDataset, size: int) -> None:
    batches = list(dataset.batches(size))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert [index for batch in batches for index in batch.index.tolist()] == list(range(38))


def test_a_dataset_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(tp.BadInput, match="wanted a data set"):
        tp.open_dataset(tmp_path)


# The package


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder`, whose packages come before this program's."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=folder)


def test_importing_the_package_imports_little() -> None:
    code = "import sys; before = set(sys.modules); import traflow_pipeline; print(*set(sys.modules) - before)"
    modules = set(python(ROOT, "-c", code).stdout.split())
    assert "traflow_pipeline" in modules
    assert not modules & {"torch", "pydantic", "numpy", "ray", "pipeline", "trainer", "eval"}
    assert len(modules) < 60


def test_every_public_name_is_there() -> None:
    assert all(getattr(tp, name) is not None for name in tp.__all__)
    assert set(tp.__all__) <= set(dir(tp))
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        getattr(tp, "distil")  # noqa: B009


@pytest.mark.parametrize("name", ["pipeline", "trainer", "eval"])
def test_another_package_of_a_generic_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    found = python(tmp_path, "-m", "traflow_pipeline", "teachers")
    assert found.returncode == 1
    assert found.stderr.startswith(f"error: package '{name}': wanted {ROOT / name}")
    assert str(tmp_path / name) in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_the_first_use_from_python_refuses_it_too(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").touch()
    found = python(tmp_path, "-c", "import traflow_pipeline as tp; tp.load_student('run')")
    assert found.stderr.splitlines()[-1].startswith(f"ImportError: package 'trainer': wanted {ROOT / 'trainer'}")
