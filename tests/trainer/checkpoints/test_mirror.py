"""A run whose checkpoints are copied to a store: an S3 server on the loopback."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.storage.store import Folder, open_store
from tests.support.command import call
from tests.support.problems import make_data
from trainer.checkpoints import checkpoint, mirror
from trainer.config import TrainConfig
from trainer.log import read_log
from trainer.step import take_step
from trainer.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("mirror"))


def config(data: Path, out: Path, mirror: str | None, num_steps: int = 9) -> TrainConfig:
    trainer = {"num_steps": num_steps, "batch_size": 8, "checkpoint_every": 3, "log_every": 3}
    values: dict[str, Any] = {"data": data, "out": out, "device": "cpu", "trainer": trainer, "mirror": mirror}
    return TrainConfig.model_validate(values)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_machine_that_is_lost_takes_nothing_with_it(data: Path, tmp_path: Path, s3: str) -> None:
    undisturbed = train(config(data, tmp_path / "undisturbed", None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.train.take_step", lambda *args: _lose() if args[-1] == 5 else take_step(*args))
        with pytest.raises(WorkFailed, match="gone"):
            train(config(data, tmp_path / "run", f"{s3}/run"))
    shutil.rmtree(tmp_path / "run")  # with the machine
    found = train(config(data, tmp_path / "run", f"{s3}/run"))
    assert weights(found) == weights(undisturbed)
    steps = [line["step"] for line in read_log(tmp_path / "run" / "log.jsonl")]
    assert steps == [3, 6, 9]  # the log came along
    assert set(open_store(f"{s3}/run").sizes()) == {"checkpoints/", *mirror.RUN_FILES}
    assert set(open_store(f"{s3}/run/checkpoints").sizes()) == {
        f"{f.name}/" for f in checkpoint.find_all(found.parents[1])
    }


def test_an_average_is_made_from_the_url_of_a_run_whose_machines_are_lost(data: Path, tmp_path: Path, s3: str) -> None:
    undisturbed = train(with_averages(config(data, tmp_path / "undisturbed", None))).parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.train.take_step", lambda *args: _lose() if args[-1] == 7 else take_step(*args))
        with pytest.raises(WorkFailed, match="gone"):
            train(with_averages(config(data, tmp_path / "run", f"{s3}/whole/train")))
    shutil.rmtree(tmp_path / "run")  # with the machine
    train(with_averages(config(data, tmp_path / "run", f"{s3}/whole/train")))
    call(tmp_path, "average", undisturbed, "--sigma-rel", 0.07, "--out", "a.safetensors")
    for out in ("b.safetensors", "c.safetensors"):  # into an empty cache, and with the copy there
        call(tmp_path, "average", f"{s3}/whole", "--sigma-rel", 0.07, "--out", out)
        wanted, made = (load_file(tmp_path / name) for name in ("a.safetensors", out))
        assert all(torch.equal(made[name], tensor) for name, tensor in wanted.items())


def with_averages(config: TrainConfig) -> TrainConfig:
    values = config.model_dump()
    values["trainer"]["ema"] = [{"sigma_rel": 0.05}, {"name": "wide", "sigma_rel": 0.1}]
    return TrainConfig.model_validate(values)


def test_a_snapshot_is_uploaded_once_and_again_where_the_store_has_another(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    train(with_averages(config(data, tmp_path / "run", str(copy))))
    (copy / "snapshots" / "step-000003" / "snapshot.json").unlink()  # cut short
    (copy / "snapshots" / "step-000006" / "snapshot.json").write_text("{}")  # of another training
    written: list[str] = []
    write = Folder.write

    def watched(store: Folder, name: str, payload: bytes) -> None:
        written.append(f"{store.path.name}/{name}")
        write(store, name, payload)

    monkeypatch.setattr(Folder, "write", watched)
    mirror.push(tmp_path / "run", str(copy))
    snapshots = [
        f"step-00000{step}/{n}" for step in (3, 6) for n in ("ema.safetensors", "wide.safetensors", "snapshot.json")
    ]
    assert [name for name in written if "step" in name] == snapshots


def _fill_up() -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lose() -> NoReturn:
    raise WorkFailed("the machine is gone")


def test_a_checkpoint_that_was_cut_short_in_the_store_is_none(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    train(config(data, tmp_path / "run", str(copy)))
    (copy / "checkpoints" / "step-000009" / checkpoint.INFO).unlink()
    mirror.pull(str(copy), tmp_path / "other")
    assert [folder.name for folder in checkpoint.find_all(tmp_path / "other")] == ["step-000006"]


def test_a_store_that_fails_costs_no_training_but_is_said_at_the_end(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "write", lambda *_: _fill_up())
        with pytest.raises(WorkFailed, match=r"cannot be copied there \(No space left"):
            train(config(data, tmp_path / "run", str(tmp_path / "copy")))
    assert "warning" in capsys.readouterr().out
    assert checkpoint.find(tmp_path / "run").name == "step-000009"
    found = train(config(data, tmp_path / "run", str(tmp_path / "copy")))  # the same command, when the store is back
    assert weights(tmp_path / "copy" / "checkpoints" / found.name) == weights(found)


def test_a_run_of_another_configuration_in_the_mirror_is_refused(data: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "run", str(tmp_path / "copy")))
    with pytest.raises(BadInput, match="another run"):
        train(config(data, tmp_path / "other", str(tmp_path / "copy")).model_copy(update={"seed": 1}))
