import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pipeline import networks
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.flow.path import step_times
from pipeline.networks import FlowNetwork, FlowNetworkConfig
from pipeline.networks.convention import T_MAX
from tests.support.problems import FAMILIES, shaken, tiny_config, with_second_time
from trainer.checkpoints.checkpoint import EMA, CheckpointInfo
from trainer.distillation.student import Student, sample
from trainer.export.exporter import export
from trainer.export.formats import FORMATS, ExportedFlow, Format, Inputs

STUDENT = with_second_time(tiny_config(num_classes=3))
PLAIN = with_second_time(tiny_config())


def make_checkpoint(folder: Path, config: FlowNetworkConfig, **changes: Any) -> FlowNetwork:
    """A checkpoint as a training leaves it, of a network whose second time counts."""
    network = shaken(config)
    if config.second_time:
        network.gate_s.add_(1)
    known: dict[str, Any] = {
        "step": 800,
        "trains": "student" if config.second_time else "teacher",
        "recipe": "anchored",
        "config": {"recipe": "anchored", "trainer": {"num_steps": 800}},
    }
    origin = {"teacher": "digits", "teacher_sha256": "a" * 64, "data_sha256": "b" * 64} if config.second_time else {}
    folder.mkdir(parents=True)
    networks.save(folder / EMA, network)
    (folder / "checkpoint.json").write_text(CheckpointInfo(**{**known, **origin, **changes}).model_dump_json())
    return network


def run_example(out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the program in the card has defined in the end."""
    found = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert found is not None
    monkeypatch.chdir(out)
    names: dict[str, Any] = {}
    exec(compile(found[1], "the card's example", "exec"), names)
    return names


def algorithm_1(
    network: FlowNetwork, names: dict[str, Any], num_steps: int, t_start: float = 1.0, shift: float = 1.0
) -> Tensor:
    """The student's own samples of the noise and labels that the example drew."""
    label = torch.from_numpy(names["label"]) if "label" in names else None
    noise = torch.from_numpy(names["noise"])
    return sample(Student(network), noise, step_times(num_steps, t_start, shift=shift), label)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[FlowNetwork, Path]]:
    """A class-conditional student and its file, by format."""

    @cache
    def make(kind: str) -> tuple[FlowNetwork, Path]:
        folder = tmp_path_factory.mktemp(kind)
        network = make_checkpoint(folder / "checkpoint", STUDENT)
        return network, export(folder / "checkpoint", kind, folder / "out")

    return make


@pytest.mark.parametrize("kind", FORMATS)
def test_the_cards_example_draws_the_students_images(
    kind: str, exported: Callable[[str], tuple[FlowNetwork, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, file = exported(kind)
    names = run_example(file.parent, monkeypatch)
    for num_steps in (1, 2, 4):
        drawn, wanted = torch.from_numpy(names["draw"](num_steps)), algorithm_1(network, names, num_steps)
        assert wanted.std() > 0.1
        torch.testing.assert_close(drawn, wanted, atol=1e-4, rtol=0)
        assert Image.open(f"{num_steps}-steps.png").size == (16 * 4, 4)


# With the student above, every family and convention.
OTHERS: dict[str, tuple[FlowNetworkConfig, float]] = {
    "unconditional, rectified-flow": (PLAIN.model_copy(update={"convention": "rectified-flow"}), 1.0),
    "ncsn++, edm": (with_second_time(FAMILIES["ncsn++"].model_copy(update={"convention": "edm"})), T_MAX),
    "adm": (with_second_time(FAMILIES["adm"].model_copy(update={"convention": "adm", "time_scale": 1.0})), T_MAX),
}


@pytest.mark.parametrize(("config", "t_start"), OTHERS.values(), ids=OTHERS)
def test_onnxruntime_draws_the_images_of_students_of_every_kind_and_nothing_is_printed(
    config: FlowNetworkConfig,
    t_start: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    network = make_checkpoint(tmp_path / "checkpoint", config, t_start=t_start, step_shift=2.0)
    export(tmp_path / "checkpoint", "onnx", tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "student.onnx"]
    names = run_example(tmp_path / "out", monkeypatch)
    assert ("label" in names) == bool(config.num_classes)
    drawn, wanted = torch.from_numpy(names["draw"](4)), algorithm_1(network, names, 4, t_start, shift=2.0)
    assert (drawn - wanted).abs().max() < 1e-4 * wanted.abs().max().clamp(min=1)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_trained_teacher_is_exported_as_its_velocity(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_checkpoint(tmp_path / "checkpoint", tiny_config(image_channels=3))
    file = export(tmp_path / "checkpoint", kind, tmp_path / "out")
    assert file.stem == "teacher"
    names = run_example(file.parent, monkeypatch)
    assert Image.open("32-steps.png").mode == "RGB"
    for batch_size in (1, 3):
        x, t = names["noise"][:batch_size], np.array([0.2, 0.5, 0.9], dtype=np.float32)[:batch_size]
        wanted = network(torch.from_numpy(x), torch.from_numpy(t))
        torch.testing.assert_close(torch.from_numpy(names["v"](x_t=x, t=t)), wanted, atol=1e-5, rtol=1e-5)


def test_an_onnx_file_names_its_inputs_and_says_nothing_of_the_machine(
    exported: Callable[[str], tuple[FlowNetwork, Path]],
) -> None:
    import onnxruntime

    _, file = exported("onnx")
    session = onnxruntime.InferenceSession(file)
    shapes = {each.name: (each.type, each.shape) for each in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {
        "x_t": ("tensor(float)", ["batch", 1, 4, 4]),
        "t": ("tensor(float)", ["batch"]),
        "s": ("tensor(float)", ["batch"]),
        "label": ("tensor(int64)", ["batch"]),
        "x_s": ("tensor(float)", ["batch", 1, 4, 4]),
    }
    assert b"student.py" not in file.read_bytes()


def test_the_card_of_a_torch_export_warns_of_pickles_and_the_file_says_nothing_of_the_machine(
    exported: Callable[[str], tuple[FlowNetwork, Path]],
) -> None:
    _, file = exported("torch-export")
    assert "only from people you trust" in (file.parent / "README.md").read_text()
    assert b"student.py" not in file.read_bytes()


def test_a_run_is_exported_from_its_newest_checkpoint_and_safetensors_keep_every_weight(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "run" / "checkpoints" / "step-000100", PLAIN, step=100)
    make_checkpoint(tmp_path / "run" / "checkpoints" / "step-000800", STUDENT)
    file = export(tmp_path / "run", "safetensors", tmp_path / "out")
    assert file == tmp_path / "out" / "student.safetensors"
    trained = load_file(tmp_path / "run" / "checkpoints" / "step-000800" / EMA)
    assert all(torch.equal(trained[name], tensor) for name, tensor in load_file(file).items())
    assert networks.load(file).config == STUDENT


def front_matter(text: str) -> dict[str, Any]:
    _, front, _ = text.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(front)
    return found


def test_the_card_says_where_the_student_comes_from_and_what_it_takes(tmp_path: Path) -> None:
    network = make_checkpoint(tmp_path / "c", STUDENT, data_range=(0.0, 1.0), guidance_scale=2.0, t_end=0.001)
    export(tmp_path / "c", "safetensors", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    front = front_matter(text)
    assert front["license"] == "other"
    assert {"traflow", "safetensors", "arxiv:2502.16972"} <= set(front["tags"])
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    for said in (
        "`digits`, sha256 `" + "a" * 64,
        "guidance scale 2",
        "sha256 `" + "b" * 64,
        "anchored, 800 steps",
        f"{num_parameters:,}",
        "float32 [B, 1, 4, 4]",
        "from 1.0 down to 0.001",
        "data, in [0.0, 1.0]",
        "the class, 0 to 2 |",
        "num_steps: 800",
        "arXiv:2502.16972",
        "(digits: MIT) may bind the student",
    ):
        assert said in text
    assert "$" not in text


def test_the_card_promises_what_the_student_has_learnt_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"phases": [{"terms": [{"loss": "output"}]}]}
    config = with_second_time(tiny_config(num_classes=3, label_dropout=0.1))
    make_checkpoint(tmp_path / "c", config)
    info = json.loads((tmp_path / "c" / "checkpoint.json").read_text())
    (tmp_path / "c" / "checkpoint.json").write_text(json.dumps(info | {"config": {"recipe": recipe}}))
    export(tmp_path / "c", "safetensors", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "the class, 0 to 2; -1: none |" in text
    assert "draw in one step" in text
    run_example(tmp_path / "out", monkeypatch)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"1-steps.png"}


def test_the_card_of_an_unconditional_student_names_its_task_and_no_label(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "c", PLAIN, teacher="a.module:factory")
    export(tmp_path / "c", "safetensors", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(text)["pipeline_tag"] == "unconditional-image-generation"
    assert "label" not in text
    assert "the teacher's weights may bind the student" in text


def test_samples_that_are_no_pictures_are_saved_as_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "c", with_second_time(tiny_config(image_channels=4)))
    export(tmp_path / "c", "safetensors", tmp_path / "out")
    assert "Image" not in run_example(tmp_path / "out", monkeypatch)
    assert "pillow" not in (tmp_path / "out" / "README.md").read_text()
    assert np.load("4-steps.npy").shape == (16, 4, 4, 4)


def test_an_export_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "c", PLAIN)

    def off_by(amount: float) -> Callable[[Path], Callable[[Inputs], Tensor]]:
        return lambda path: lambda inputs: ExportedFlow(networks.load(path))(**inputs) + amount

    for amount in (1e-3, float("nan")):
        monkeypatch.setitem(FORMATS, "safetensors", replaced(load=off_by(amount)))
        with pytest.raises(WorkFailed, match="was not kept"):
            export(tmp_path / "c", "safetensors", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def replaced(**changes: Any) -> Format:
    return Format(**{**vars(FORMATS["safetensors"]), **changes})


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (RuntimeError("no such\noperator"), r"the exporter failed \(no such operator\); try"),
        (OSError(28, "No space left on device"), r"out: cannot be written \(No space left on device\)"),
    ],
)
def test_a_failed_export_leaves_nothing(
    problem: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path / "c", PLAIN)

    def fail(flow: ExportedFlow, example: Inputs, path: Path, info: CheckpointInfo) -> None:
        path.write_bytes(b"half")
        raise problem

    monkeypatch.setitem(FORMATS, "safetensors", replaced(write=fail))
    with pytest.raises(WorkFailed, match=message):
        export(tmp_path / "c", "safetensors", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_an_empty_folder_is_filled_and_one_with_files_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "c", PLAIN)
    out = tmp_path / "out"
    out.mkdir()
    export(tmp_path / "c", "safetensors", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(BadInput, match="out: wanted a new or an empty folder"):
        export(tmp_path / "c", "safetensors", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(BadInput, match=r"README\.md: wanted a folder to make"):
        export(tmp_path / "c", "safetensors", out / "README.md")


def test_what_cannot_be_exported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(BadInput, match="wanted a checkpoint, the folder or URL of a run"):
        export(tmp_path, "onnx", out)
    make_checkpoint(tmp_path / "c", PLAIN)
    with pytest.raises(BadInput, match=r"--format: wanted one of safetensors, onnx, torch-export; got 'tflite'"):
        export(tmp_path / "c", "tflite", out)
    info = json.loads((tmp_path / "c" / "checkpoint.json").read_text())
    (tmp_path / "c" / "checkpoint.json").write_text(json.dumps({**info, "trains": "teacher"}))
    with pytest.raises(BadInput, match="wanted the network of a teacher"):
        export(tmp_path / "c", "safetensors", out)
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadInput, match=r"pip install onnx onnxscript$"):
        export(tmp_path / "c", "onnx", out)
    assert not out.exists()
