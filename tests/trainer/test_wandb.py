"""What Weights & Biases itself would send of a run that was logged offline."""

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.support.problems import make_data
from trainer.config import TrainConfig
from trainer.train import train

wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install '.[wandb]'")
FILE_HEADER, BLOCK, HEADER = 7, 2**15, 7  # bytes; the file is a LevelDB log
FULL, LAST = 1, 4  # types of a chunk that ends a record


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file."""
    messages: Any = import_module("wandb.proto.wandb_internal_pb2")  # its classes are made when it is imported
    content, at, record = path.read_bytes(), FILE_HEADER, b""
    while at < len(content):
        if BLOCK - at % BLOCK < HEADER:  # too little is left of the block
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += HEADER + length
        record += content[at - length : at]
        if kind in (FULL, LAST):
            yield messages.Record.FromString(record)
            record = b""


def test_a_run_that_is_logged_offline_has_every_value_at_its_step_and_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key-" * 4)
    trainer = {"num_steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 2}
    values = {"data": make_data(tmp_path, n=8), "out": tmp_path / "run", "device": "cpu", "wandb": "our-project"}
    training = TrainConfig.model_validate(values | {"trainer": trainer})
    train(training)
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    found = list(records(file))
    (run,) = (record.run for record in found if record.WhichOneof("record_type") == "run")
    assert (run.project, run.run_id) == ("our-project", "run")
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    losses = {row["_step"]: row["grad_norm"] for row in rows if "grad_norm" in row}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses == {line["step"]: pytest.approx(line["grad_norm"]) for line in lines}
    assert any("samples" in key for row in rows for key in row)
    assert all(b"not-a-key" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
