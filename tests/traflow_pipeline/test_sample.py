"""`traflow-pipeline sample`: what is drawn, of what, and into which files."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import traflow_pipeline as tp
from eval.sampling.samplers import Sampler
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.common.point_cloud import SIDE
from tests.support.command import assert_one_line, call
from tests.support.problems import save_tiny_teacher
from traflow_pipeline.sample_folder import save_folder
from traflow_pipeline.sample_source import SampleSource
from traflow_pipeline.samples import names_folder, save

TWICE = Sampler("student", "twice", lambda noise, label: (0.5 * noise, 1))


def source(**changes: Any) -> SampleSource:
    """Half the noise, of 3 classes."""
    given: dict[str, Any] = {"shape": (1, 4, 4), "num_classes": 3, "sampler": TWICE, "data_range": (-1.0, 1.0)}
    return SampleSource(name="half", identity="half", device=torch.device("cpu"), **given | changes)


def silent(amount: float, status: str = "", *, skipped: bool = False) -> None:
    """No bar."""


def drawn(out: Path, source: SampleSource, n: int = 300, **settings: Any) -> Path:
    save(out, source.batches(range(n), 0, **settings), n, source.shape)
    return out


def test_an_archive_holds_images_and_labels_as_adm_s_evaluator_reads_them(tmp_path: Path) -> None:
    arrays = np.load(drawn(tmp_path / "a" / "x.npz", source(shape=(3, 4, 4))))
    assert set(arrays) == {"arr_0", "labels"}
    assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((300, 4, 4, 3), np.uint8)
    assert set(arrays["labels"].tolist()) == {0, 1, 2}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.npz"]


@pytest.mark.parametrize("shape", [(4, 8, 8), (3,), (5, 5)], ids=str)
def test_what_is_no_image_is_saved_as_floats(tmp_path: Path, shape: tuple[int, ...]) -> None:
    halves = source(shape=shape, num_classes=0)
    array, archive = np.load(drawn(tmp_path / "x.npy", halves)), np.load(drawn(tmp_path / "x.npz", halves))
    assert list(archive) == ["arr_0"]
    np.testing.assert_array_equal(archive["arr_0"], array)
    assert (array.shape, array.dtype) == ((300, *shape), np.float32)
    for name in ("x.png", "x.jpg"):
        with pytest.raises(BadInput, match=r"wanted images .* of 1 or 3 channels .* \.npy, \.safetensors or \.npz"):
            drawn(tmp_path / name, halves)
    with pytest.raises(BadInput, match=r"\.npy, \.safetensors or \.npz"):
        save_folder(tmp_path / "folder", halves, range(4), 0, None, silent)
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "x.npz"}


def test_points_in_the_plane_are_one_picture(tmp_path: Path) -> None:
    points = source(shape=(2,), num_classes=0)
    drawn(tmp_path / "x.png", points)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (SIDE, SIDE)
        assert np.asarray(picture).min() < 128


def test_a_name_of_no_kind_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"x\.txt: wanted a picture such as samples\.png"):
        drawn(tmp_path / "x.txt", source())


def test_samples_that_are_not_finite_are_no_result(tmp_path: Path) -> None:
    broken = source(sampler=Sampler("student", "broken", lambda noise, label: (noise / 0, 1)))
    with pytest.raises(WorkFailed, match="half: student, broken: a sample is not finite"):
        drawn(tmp_path / "x.npz", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_a_picture_for_each_index_and_its_class(tmp_path: Path) -> None:
    save_folder(tmp_path / "set", source(), range(3, 8), 0, None, silent)
    whole = np.load(drawn(tmp_path / "x.npz", source()))
    names = [f"{index:06d}.png" for index in range(3, 8)]
    assert sorted(path.name for path in (tmp_path / "set").glob("*.png")) == names
    for index, name in enumerate(names, start=3):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "set" / name)), whole["arr_0"][index, ..., 0])
    labels = dict(json.loads((tmp_path / "set" / "dataset.json").read_text())["labels"])
    assert labels == {name: whole["labels"][index] for index, name in enumerate(names, start=3)}


def test_an_interrupted_folder_draws_only_what_is_missing(tmp_path: Path) -> None:
    save_folder(tmp_path, source(), range(520), 0, None, silent)
    first, last = tmp_path / "000000.png", tmp_path / "000519.png"
    before, payload = first.stat().st_mtime_ns, last.read_bytes()
    last.unlink()
    (tmp_path / ".000519.png.aside-1").write_bytes(b"half")
    asked: list[int] = []

    def count(noise: torch.Tensor, label: torch.Tensor | None) -> tuple[torch.Tensor, int]:
        asked.append(len(noise))
        return 0.5 * noise, 1

    save_folder(tmp_path, source(sampler=Sampler("student", "twice", count)), range(520), 0, None, silent)
    assert asked == [8]
    assert (first.stat().st_mtime_ns, last.read_bytes()) == (before, payload)
    assert not list(tmp_path.glob(".*"))
    save_folder(tmp_path, source(), range(520, 522), 0, None, silent)  # a set grows
    assert len(json.loads((tmp_path / "dataset.json").read_text())["labels"]) == 522
    with pytest.raises(BadInput, match=r"holds other samples \(seed: 0 there, 1 asked\)"):
        save_folder(tmp_path, source(), range(520), 1, None, silent)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BadInput, match="is not empty and holds no samples"):
        save_folder(tmp_path, source(), range(4), 0, None, silent)


def test_the_command_draws_a_teacher_by_its_solver_or_by_steps(tmp_path: Path) -> None:
    flags = ("sample", "--teacher", "digits", "--n", 4)
    assert "4 samples of teacher digits, dopri5 1e-5" in call(tmp_path, *flags, "--out", "a.npz").stdout
    assert "euler 2" in call(tmp_path, *flags, "--steps", 2, "--out", "b.npz").stdout
    assert "heun2 2" in call(tmp_path, *flags, "--steps", 2, "--solver", "heun2", "--out", "set").stdout
    near, far = (np.load(tmp_path / name)["arr_0"] for name in ("a.npz", "b.npz"))
    assert near.shape == (4, 8, 8, 1)
    assert not np.array_equal(near, far)
    assert len(list((tmp_path / "set").glob("*.png"))) == 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained class-conditional teacher."""
    folder = tmp_path_factory.mktemp("run")
    network = {"resolution": 8, "image_channels": 1, "channels": 8, "channel_mult": [1], "num_classes": 10}
    tp.train(
        recipe="flow-matching",
        images="digits",
        out=folder / "teacher",
        network=network,
        device="cpu",
        trainer={"num_steps": 1, "batch_size": 8},
    )
    return folder / "teacher"


def test_the_command_draws_one_class(run: Path, tmp_path: Path) -> None:
    call(tmp_path, "sample", run, "--n", 5, "--class", 3, "--steps", 2, "--out", "x.npz")
    assert np.load(tmp_path / "x.npz")["labels"].tolist() == [3] * 5


@pytest.mark.parametrize(
    ("name", "is_folder"), [("pics", True), ("pics_0.5", True), ("v1.", True), ("pics.png", False), ("pics.txt", False)]
)
def test_a_number_after_a_dot_is_no_suffix(name: str, is_folder: bool, tmp_path: Path) -> None:
    assert names_folder(tmp_path / name) == is_folder


def test_the_command_takes_other_weights(run: Path, tmp_path: Path) -> None:
    for name in ("ema", "network"):
        call(tmp_path, "sample", run, "--n", 2, "--weights", name, "--steps", 2, "--out", f"{name}.npy")
    found = call(tmp_path, "sample", run, "--weights", "emma", code=2)
    assert_one_line(found, "wanted the weights 'emma'", "ema, network: name one of these with --weights")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--class", "10"], ["--class: wanted 0 to 9, got 10"]),
        (["--teacher", "digits"], ["one of them only"]),
        (["--solver", "rk45"], ["solver", "rk45", "dopri5"]),
        (["--out", "x.txt"], ["x.txt: wanted a picture"]),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_one_line(run: Path, tmp_path: Path, flags: list[str], parts: list[str]) -> None:
    assert_one_line(call(tmp_path, "sample", run, *flags, code=2), *parts)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_a_file_or_a_teacher_does_not_have_are_refused(tmp_path: Path) -> None:
    file = save_tiny_teacher(tmp_path / "tiny.safetensors")
    for source in ([file], ["--teacher", file]):
        assert_one_line(call(tmp_path, "sample", *source, "--weights", "wide", code=2), "wide")


def test_what_pillow_cannot_write_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"x\.psd: wanted a picture such as samples\.png"):
        drawn(tmp_path / "x.psd", source())
    for command in (["teachers", "check", "digits"], ["inspect", "nowhere"]):
        found = call(tmp_path, *command, "--out", "x.psd", code=2)
        assert found.stderr == "error: x.psd: wanted the path of a picture such as samples.png\n"


@pytest.mark.parametrize("text", ["[1]", "[" * 5000, "{", '{"labels": 3}', '{"labels": [1, ["a"]]}'], ids=len)
def test_damaged_descriptions_of_a_folder_of_samples_are_one_line(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "samples"
    save_folder(folder, source(), range(2), 0, None, silent)
    for name in ("dataset.json", "sample.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_text(text)
        with suppress(BadInput):
            save_folder(folder, source(), range(2), 0, None, silent)
            assert "000000.png" in (folder / "dataset.json").read_text()
        (folder / name).write_bytes(whole)


def test_a_tilde_that_the_shell_left_alone_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    call(tmp_path, "sample", "--teacher", "digits", "--steps", "1", "--n", "2", "--out=~/deep/x.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert (tmp_path / "home" / "deep" / "x.npy").is_file()
    assert_one_line(call(tmp_path, "status", "~no-such-user/x", code=2), "wanted a path")
