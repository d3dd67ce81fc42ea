"""Whatever a user names as a model: a run, its training, a checkpoint, a file, an export, an average, a URL."""

import shutil
from pathlib import Path

import pytest
import torch

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.storage.store import open_store
from pipeline.teachers.loading import load_teacher
from tests.support.problems import make_data, tiny_network
from trainer.checkpoints import checkpoint, posthoc_ema
from trainer.checkpoints.model import find_model
from trainer.config import TrainConfig
from trainer.export.exporter import export
from trainer.train import train


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose training is in its folder "train"."""
    root = tmp_path_factory.mktemp("model")
    trainer = {"num_steps": 2, "batch_size": 8, "checkpoint_every": 1, "ema": [{}, {"name": "a", "sigma_rel": 0.05}]}
    values = {"data": make_data(root), "out": root / "train", "device": "cpu", "trainer": trainer}
    train(TrainConfig.model_validate(values))
    return root


def test_every_name_of_a_model_finds_the_same_weights(whole_run: Path, tmp_path: Path) -> None:
    folder = checkpoint.find(whole_run)
    exported = export(whole_run, "safetensors", tmp_path / "exported")
    shutil.copy(exported, tmp_path / "bare.safetensors")
    wanted = find_model(folder).load().state_dict()
    for source in (
        *(whole_run, whole_run / "train", folder.parent, folder, folder / "ema.safetensors"),
        *(exported, exported.parent, tmp_path / "bare.safetensors"),
    ):
        model = find_model(str(source))
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.load().state_dict().items())
        assert model.info == checkpoint.read_info(folder)


def test_an_average_is_a_model_that_knows_its_training(whole_run: Path, tmp_path: Path) -> None:
    posthoc_ema.average(whole_run, 0.05, tmp_path / "average.safetensors")
    model = find_model(tmp_path / "average.safetensors")
    assert model.info.teacher_sha256 == checkpoint.read_info(checkpoint.find(whole_run)).teacher_sha256
    assert (model.info.trains, model.info.step) == ("student", 2)
    export(tmp_path / "average.safetensors", "safetensors", tmp_path / "exported")


def test_a_file_that_only_knows_its_network_is_taken(tmp_path: Path) -> None:
    networks.save(tmp_path / "bare.safetensors", tiny_network(second_time=True))
    model = find_model(tmp_path / "bare.safetensors")
    assert (model.info.trains, model.info.teacher, model.info.t_start) == ("student", None, 1.0)


def test_a_run_in_a_store_is_found_in_every_way(
    whole_run: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = checkpoint.find(whole_run)
    there = open_store(f"{s3}/run/train/checkpoints/{folder.name}")
    for path in folder.iterdir():
        there.write(path.name, path.read_bytes())
    for end in ("", "/train", f"/train/checkpoints/{folder.name}", f"/train/checkpoints/{folder.name}/ema.safetensors"):
        assert find_model(f"{s3}/run{end}").weights.read_bytes() == (folder / "ema.safetensors").read_bytes()


def test_flipped_bytes_are_read_by_nobody(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints" / "step-000002"
    shutil.copytree(checkpoint.find(whole_run), folder)
    payload = bytearray((folder / "ema.safetensors").read_bytes())
    payload[-5] ^= 1
    (folder / "ema.safetensors").write_bytes(payload)
    for source in (tmp_path / "run", folder, folder / "ema.safetensors"):
        with pytest.raises(BadInput, match="its bytes are not those that were written; name the checkpoint before it"):
            find_model(source).load()
        with pytest.raises(BadInput, match="its bytes are not those that were written"):
            load_teacher(str(source))


def test_what_is_no_model_is_said(whole_run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere: wanted a checkpoint, the folder or URL of a run, or a .safetensors"):
        find_model(tmp_path / "nowhere")
    (tmp_path / "letter.safetensors").write_bytes(b"hello")
    with pytest.raises(BadInput, match=r"letter.safetensors: wanted a .safetensors file of a network"):
        find_model(tmp_path / "letter.safetensors")
    with pytest.raises(BadInput, match=r"wanted the weights 'narrow' .*; it holds ema-a, ema, network"):
        find_model(whole_run, "narrow")
