"""Arrays of any shape go through all commands: points in the plane, vectors of a class, images that are not square."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from eval.results import read_report
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher
from tests.support.command import assert_one_line, call
from tests.support.problems import GaussianFlow, MixtureFlow

MIXTURE = MixtureFlow((-2.0, 2.0), std=0.3)  # in both coordinates: four clusters
GENERATE = ["--executor", "inline", "--solver", "rk4", "--steps", 4, "--states", 3]
GENERATE += ["--set", "shard_size=512", "--set", "batch_size=64", "--set", "block_size=64"]
TRAIN = ["--device", "cpu", "--batch-size", "64", "--lr", "3e-3"]
TRAIN += ["--set", "trainer.ema={half_life_images: 2000}"]
EVALUATE = ["--device", "cpu", "--set", "num_ranges=1", "--set", "steps=[1, 2]"]
EVALUATE += ["--set", "teacher_solver={name: rk4, num_steps: 8}", "--set", "num_trajectories=64"]
MLP = ["--set", "network={family: mlp, width: 32, num_blocks: 2, channels: 8}"]


def mixture(device: torch.device) -> Teacher:
    """A factory of the flow to four clusters of points, by its known velocity."""
    return Teacher("mixture", "0" * 64, MIXTURE.velocity, (2,), data_range=(-3.0, 3.0))


def wide(device: torch.device) -> Teacher:
    """A factory of a flow over images that are not square."""
    return Teacher("wide", "0" * 64, GaussianFlow().velocity, (3, 4, 8))


def frames(device: torch.device) -> Teacher:
    """A factory of a flow over frames of two classes."""

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        return GaussianFlow().velocity(x, t) + label[:, None, None]

    return Teacher("frames", "0" * 64, velocity, (1, 64), num_classes=2, data_range=(-2.0, 2.0))


def save_points(path: Path, count: int) -> Path:
    """Points of the mixture."""
    rng = np.random.default_rng(0)
    centres = rng.choice(MIXTURE.means, (count, 2))
    np.save(path, (centres + MIXTURE.std * rng.standard_normal((count, 2))).astype(np.float32))
    return path


def test_points_go_from_a_flow_of_known_velocity_through_all_commands(tmp_path: Path) -> None:
    teacher, points = "tests.test_shapes:mixture", save_points(tmp_path / "points.npy", 1000)
    checked = call(tmp_path, "teachers", "check", teacher, "--n", 64)
    assert "turns noise into data" in checked.stdout
    assert (tmp_path / "teacher.png").exists()
    call(tmp_path, "generate", "--teacher", teacher, "--n", 1024, "--out", "data", *GENERATE)
    call(tmp_path, "inspect", "data")
    call(tmp_path, "train", "--data", "data", "--out", "run", *TRAIN, *MLP, "--steps", "200")
    assert (tmp_path / "run" / "samples.png").exists()
    compared = ["--reference", points, "--n", 256]
    call(tmp_path, "evaluate", "run", "--out", "report", *compared, *EVALUATE)
    report = read_report(tmp_path / "report")
    assert {"w2-values", "energy-values", "fd-values"} < {metric.key for metric in report.metrics}
    assert report.headline.heading == "Wasserstein distance"
    exact, one_step = report.rows_of("solver")[0], report.rows_of("student")[0]
    assert exact.scores["w2-values"].mean < 0.9  # of 256 points the clusters hold uneven shares
    assert one_step.scores["w2-values"].mean < 1.2  # noise is 1.9 away
    assert (tmp_path / "report" / "strips.png").exists()
    call(tmp_path, "sample", "run", "--steps", 2, "--n", 10, "--out", "drawn.npy")
    assert np.load(tmp_path / "drawn.npy").shape == (10, 2)
    call(tmp_path, "sample", "run", "--out", "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 0
    assert_one_line(call(tmp_path, "sample", "run", "--out", "folder", code=2), "samples of shape [2]", ".npy")
    for kind, file in (
        ("safetensors", "student.safetensors"),
        ("onnx", "student.onnx"),
        ("torch-export", "student.pt2"),
    ):
        call(tmp_path, "export", "run", "--format", kind, "--out", kind)
        assert (tmp_path / kind / file).exists()
    assert "from noise to arrays" in (tmp_path / "onnx" / "README.md").read_text()


def test_a_teacher_of_points_is_trained_and_its_student_starts_as_it(tmp_path: Path) -> None:
    points = save_points(tmp_path / "points.npy", 500)
    matching = ["--images", points, "--recipe", "flow-matching", "--steps", "20"]
    call(tmp_path, "train", *matching, "--out", "teacher", *TRAIN, *MLP)
    teacher = load_teacher(str(tmp_path / "teacher"))
    assert teacher.shape == (2,)
    assert teacher.data_range == (float(np.load(points).min()), float(np.load(points).max()))
    call(tmp_path, "generate", "--teacher", "teacher", "--n", 64, "--out", "data", *GENERATE)
    found = call(tmp_path, "train", "--data", "data", "--out", "run", *TRAIN, "--steps", "1")
    assert "tensors as they are" in found.stdout
    assert "recipe anchored-states: " in found.stdout
    call(tmp_path, "export", "teacher", "--out", "exported")
    assert load_teacher(str(tmp_path / "exported")).data_range == teacher.data_range


def evaluate_run(folder: Path, *options: object) -> None:
    """Score the run beside its training data."""
    flags = ("run", "--out", "report", "--reference", "data", "--n", 64)
    call(folder, "evaluate", *flags, *options, *EVALUATE)


def test_frames_of_classes_train_a_network_of_their_shape(tmp_path: Path) -> None:
    call(tmp_path, "generate", "--teacher", "tests.test_shapes:frames", "--n", 64, "--out", "data", *GENERATE)
    call(tmp_path, "train", "--data", "data", "--out", "run", *TRAIN, *MLP, "--steps", "2")
    evaluate_run(tmp_path)
    assert "w2-values" in read_report(tmp_path / "report").rows_of("student")[0].scores
    call(tmp_path, "sample", "run", "--n", 3, "--class", 1, "--out", "drawn.npz")
    with np.load(tmp_path / "drawn.npz") as drawn:
        assert (drawn["arr_0"].shape, drawn["labels"].tolist()) == ((3, 1, 64), [1, 1, 1])


def test_images_that_are_not_square_go_through_all_commands(tmp_path: Path) -> None:
    network = "network={channels: 8, channel_mult: [1, 2], num_blocks: 1, attention_resolutions: [2]}"
    call(tmp_path, "generate", "--teacher", "tests.test_shapes:wide", "--n", 64, "--out", "data", *GENERATE)
    call(tmp_path, "train", "--data", "data", "--out", "run", *TRAIN, "--set", network, "--steps", "2")
    evaluate_run(tmp_path, "--features", "tests.support.spaces:pixels")
    call(tmp_path, "sample", "run", "--n", 4)
    call(tmp_path, "export", "run", "--out", "exported")


@pytest.mark.parametrize(
    ("teacher", "network", "complaint"),
    [
        ("mixture", "{family: song}", "a U-Net is for images [C, H, W]; give a network of family mlp"),
        (
            "mixture",
            "{family: song, resolution: 8, image_channels: 1}",
            "[1, 8, 8] and 0: a U-Net is for images [C, H, W]",
        ),
        ("mixture", "{family: mlp, shape: [3]}", "it is for [3] and 0: leave shape and num_classes out"),
        ("mixture", "null", "--set network='{family: mlp}'"),
        ("wide", "{channel_mult: [1, 2, 2, 2]}", "cannot be halved 3 times"),
        ("wide", "{family: mlp, shape: [3, 8, 4]}", "wanted a network for [3, 4, 8]"),
        ("mixture", "{family: mlp, widht: 8}", "widht"),
    ],
)
def test_a_network_that_cannot_have_the_shape_is_one_line(
    tmp_path: Path, teacher: str, network: str, complaint: str
) -> None:
    call(tmp_path, "generate", "--teacher", f"tests.test_shapes:{teacher}", "--n", 4, "--out", "data", *GENERATE)
    found = call(
        tmp_path, "train", "--data", "data", "--out", "run", *TRAIN, "--set", f"network={network}", "--set",
        "trainer.num_steps=1", code=2,
    )  # fmt: skip
    assert_one_line(found, complaint)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        (np.array([[0.0, np.nan]]), "wanted finite values"),
        (np.zeros((4, 2)), "or all are one"),
        (np.zeros(4), "floating-point arrays [N, ...]; they are float64 [4]"),
        (np.array([{}]), "wanted an .npy file of numbers"),
    ],
)
def test_arrays_that_train_nothing_are_one_line(tmp_path: Path, arrays: np.ndarray, complaint: str) -> None:
    np.save(tmp_path / "points.npy", arrays)
    matching = ["--images", "points.npy", "--recipe", "flow-matching", "--steps", "1"]
    assert_one_line(call(tmp_path, "train", *matching, "--out", "run", *TRAIN, *MLP, code=2), complaint)


def test_points_are_no_reference_for_features_of_images(tmp_path: Path) -> None:
    points = save_points(tmp_path / "points.npy", 20)
    found = call(tmp_path, "reference", points, "--features", "digits", "--out", "r.npz", code=2)
    assert_one_line(found, "wanted images of [1, 8, 8]")
    call(tmp_path, "reference", points, "--features", "values", "--out", "r.npz")
