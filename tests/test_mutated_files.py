"""Whatever stands in a file that a command reads, the outcome is a right answer or one line."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eval.report.page import render_comparison
from eval.results import METRICS, read_report
from pipeline.common.config import CONFIGS, load_sections, validate
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.dataset.commit import parse_marker, read_markers
from pipeline.dataset.manifest import MANIFEST, PLAN, DataSet, derive, read_dataset, read_manifest, write_manifest
from pipeline.dataset.reader import BlockReader
from pipeline.dataset.shards import MEMBERS, Trajectories, sha256
from pipeline.dataset.summary import summarise
from pipeline.generation.generate import generate
from pipeline.generation.verify import verify
from pipeline.storage.store import Folder
from pipeline.teachers.catalogue import read_entry
from tests.support.plans import config
from tests.support.reports import digits_report
from traflow_pipeline.folder_status import folder_status
from traflow_pipeline.run import read_run
from traflow_pipeline.run_settings import CONFIG
from trainer.checkpoints.checkpoint import INFO, CheckpointInfo, read_info
from trainer.config import TrainConfig
from trainer.distillation.recipes import FOLDER

SHARD, MARKER = "shard-000001.tar", "shard-000001.json"
SECONDS, BYTES = 2.0, 500e6
Draw = Callable[[st.SearchStrategy[Any]], Any]
HOSTILE = (
    *("-1", "0", "7", "1e999", "9" * 20, "9" * 5000, "1e308", "NaN", "null", "true", "[]", "{}", "[[[[1]]]]", '""'),
    *('"../../x"', '"/dev/zero"', '"a b"', '"\\u001b[31m"', '"\\ud800"', '"' + "x" * 5000 + '"', "!!int x", "*a", "&a"),
)
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.e+-]*|[A-Za-z_]\w*')
settings.register_profile("mutations", deadline=None, database=None, suppress_health_check=list(HealthCheck))
few = settings(settings.get_profile("mutations"), max_examples=25, derandomize=True, phases=[Phase.generate])
many = settings(settings.get_profile("mutations"), max_examples=2000)


Change = Callable[[bytearray, int, int, st.DrawFn], None]


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` after one to three changes."""
    payload = bytearray(original)
    changes: list[Change] = [_flip, _cut, _swap, _double, _garble, _replace_token, _replace_token]
    for _ in range(draw(st.integers(1, 3))):
        at, other = (draw(st.integers(0, max(len(payload) - 1, 0))) for _ in range(2))
        draw(st.sampled_from(changes))(payload, at, other, draw)
    return bytes(payload)


def _flip(payload: bytearray, at: int, _: int, draw: st.DrawFn) -> None:
    payload[at : at + 1] = bytes(byte ^ draw(st.integers(1, 255)) for byte in payload[at : at + 1])


def _cut(payload: bytearray, start: int, end: int, draw: st.DrawFn) -> None:
    del payload[start : end if draw(st.booleans()) else None]


def _swap(payload: bytearray, one: int, other: int, draw: st.DrawFn) -> None:
    size = draw(st.integers(1, 64))
    if abs(one - other) >= size:
        first, second = bytes(payload[one : one + size]), bytes(payload[other : other + size])
        payload[one : one + size], payload[other : other + size] = second.ljust(size), first.ljust(size)


def _double(payload: bytearray, start: int, end: int, draw: st.DrawFn) -> None:
    payload[start:start] = payload[start : max(start, end)]


def _garble(payload: bytearray, at: int, _: int, draw: st.DrawFn) -> None:
    garbage = draw(st.binary(min_size=1, max_size=16))
    payload[at : at + len(garbage)] = garbage


def _replace_token(payload: bytearray, number: int, _: int, draw: st.DrawFn) -> None:
    if tokens := list(TOKEN.finditer(payload)):
        start, end = tokens[number % len(tokens)].span()
        payload[start:end] = draw(st.sampled_from(HOSTILE)).encode()


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Fails if this process grows by more than `BYTES` at any moment; where the system does not tell, it does not."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        yield
        return
    reset.write_text("5")  # the peak begins anew
    before = _kilobytes(status, "VmRSS")
    yield
    assert (_kilobytes(status, "VmHWM") - before) * 1024 < BYTES


def _kilobytes(status: Path, field: str) -> int:
    return int(re.findall(rf"{field}:\s+(\d+)", status.read_text())[0])


def answer(work: Callable[[], Any]) -> Any:
    """The answer of `work`, or None where one line says why there is none; in time and within memory."""
    with bounded_memory():
        return _answer(work)


def _answer(work: Callable[[], Any]) -> Any:
    started = time.process_time()
    try:
        found = work()
    except (BadInput, WorkFailed) as error:
        found, message = None, str(error)
    else:
        message = "an answer"
    assert message
    assert "\n" not in message
    assert time.process_time() - started < SECONDS
    return found


@dataclass(frozen=True)
class Original:
    """A data set of two shards, whole."""

    folder: Path
    sha256: str
    records: Trajectories

    def copy(self, name: str, payload: bytes) -> Path:
        """A copy of it whose file `name` is `payload`."""
        folder = self.folder.with_name("copy")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        (folder / name).write_bytes(payload)
        return folder

    def remake(self, folder: Path) -> Any:
        return generate(asked(folder))


def asked(folder: Path) -> Any:
    return config(folder, n=8, solver={"name": "euler", "num_steps": 3})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    folder = tmp_path_factory.mktemp("mutated") / "data"
    manifest = generate(asked(folder))
    return Original(folder, manifest.sha256, read_records(folder))


def read_records(folder: Path) -> Trajectories:
    manifest = read_manifest(Folder(folder))
    reader = BlockReader(manifest)
    return Trajectories.concatenate([reader.read(block) for block in range(manifest.blocks.num_rows)])


def check_commands(original: Original, folder: Path, resigned: bool = False) -> None:
    """What reads a data set gives the original's records and digest, or says in one line why not.

    With `resigned`, whoever changed a shard has also changed what vouches for it: other records are right then.
    """
    store = Folder(folder)
    records = answer(lambda: read_records(folder))
    if records is not None and not resigned:
        assert all(np.array_equal(getattr(records, name), getattr(original.records, name)) for name in MEMBERS)
    if (summary := answer(lambda: summarise(store))) is not None:
        assert summary.table().row_count
    if (found := answer(lambda: verify(store))) is not None:
        assert str(found)
        assert "\n" not in "".join(map(str, found.faults))
        assert resigned or found.faults or found.digest == original.sha256
    if (remade := answer(lambda: original.remake(folder))) is not None:
        assert resigned or remade.sha256 == original.sha256


def _file_of_a_data_set(name: str, original: Original, draw: Draw) -> None:
    payload = draw(mutated((original.folder / name).read_bytes()))
    check_commands(original, original.copy(name, payload))


def _plan_signed_again(original: Original, draw: Draw) -> None:
    text = draw(mutated((original.folder / PLAN).read_bytes()))
    folder = original.copy(PLAN, text)
    if (dataset := answer(lambda: read_dataset(Folder(folder)))) is not None:
        for path in folder.glob("shard-*.json"):
            fields = json.loads(path.read_bytes())
            path.write_text(json.dumps({**fields, "plan_sha256": dataset.plan.sha256}))
        _sign_manifest(folder, dataset)
        check_commands(original, folder, resigned=True)


def _shard_signed_again(original: Original, draw: Draw) -> None:
    payload = (original.folder / SHARD).read_bytes()
    header = draw(st.sampled_from([m.start() for m in re.finditer(rb"\d{9}\.|\x93NUMPY", payload)]))
    size = draw(st.sampled_from([16, 128, 512]))
    changed = draw(mutated(payload[header : header + size])).ljust(size)[:size]
    payload = payload[:header] + changed + payload[header + size :]
    folder = original.copy(SHARD, payload)
    _sign_marker(folder / MARKER, payload)
    dataset = read_dataset(Folder(folder))
    assert dataset is not None
    _sign_manifest(folder, dataset)
    check_commands(original, folder, resigned=True)


def _sign_marker(path: Path, payload: bytes) -> None:
    marker = parse_marker(path.read_bytes())
    assert marker is not None
    blocks = [b._replace(crc32=crc32(payload[b.offset : b.offset + b.num_bytes])) for b in marker.blocks]
    changes = {"sha256": sha256(payload), "num_bytes": len(payload), "blocks": tuple(blocks)}
    path.write_text(marker.model_copy(update=changes).model_dump_json())


def _sign_manifest(folder: Path, dataset: DataSet) -> None:
    store = Folder(folder)
    write_manifest(derive(store, dataset, list(read_markers(store, dataset.plan, dataset.num_records))))


def _report(original: Original, draw: Draw) -> None:
    folder = original.folder.with_name("report")
    folder.mkdir(exist_ok=True)
    whole = digits_report()
    (folder / METRICS).write_bytes(draw(mutated(whole.model_dump_json(indent=1).encode())))
    if (report := answer(lambda: read_report(folder))) is not None:
        assert answer(lambda: render_comparison([("whole", whole, None), ("mutated", report, None)]))


def _checkpoint(original: Original, draw: Draw) -> None:
    folder = original.folder.with_name("checkpoint")
    folder.mkdir(exist_ok=True)
    config = {"trainer": {"num_steps": 3}}
    info = CheckpointInfo(
        step=3, trains="student", recipe="traflow", config=config, files={"ema.safetensors": "0" * 64}
    )
    (folder / INFO).write_bytes(draw(mutated(info.model_dump_json(indent=1).encode())))
    if (found := answer(lambda: read_info(folder))) is not None:
        assert all("/" not in name for name in found.files)


def _run(original: Original, draw: Draw) -> None:
    folder = original.folder.with_name("run")
    folder.mkdir(exist_ok=True)
    sections = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    (folder / CONFIG).write_bytes(draw(mutated(yaml.safe_dump(sections).encode())))
    answer(lambda: read_run(str(folder)))
    answer(lambda: load_sections(str(folder / CONFIG)))


def _recipe(original: Original, draw: Draw) -> None:
    path = original.folder.with_name("recipe.yaml")
    recipe = draw(st.sampled_from(sorted(FOLDER.glob("*.yaml"))))
    path.write_bytes(draw(mutated(recipe.read_bytes())))
    values = {"out": "x", "data": "y", "recipe": str(path)}
    answer(lambda: validate(TrainConfig, values, "train"))


def _entry(original: Original, draw: Draw) -> None:
    path = original.folder.with_name("entry.yaml")
    network = {"resolution": 8, "image_channels": 3}
    fields = {"format": "score-sde", "file": "x.pt", "source": "https://example.org/x.pt", "network": network}
    path.write_bytes(draw(mutated(yaml.safe_dump(fields).encode())))
    answer(lambda: read_entry(path, "entry"))


def _training(original: Original, draw: Draw) -> None:
    folder = original.folder.with_name("training")
    folder.mkdir(exist_ok=True)
    log = b"".join(b'{"step": %d, "images_per_second": 32.5}\n' % step for step in (10, 20, 30))
    (folder / "log.jsonl").write_bytes(draw(mutated(log)))
    (folder / "config.yaml").write_bytes(draw(mutated(b"train: {trainer: {num_steps: 40, batch_size: 8}}")))
    assert "training" in answer(lambda: folder_status(str(folder)))


KINDS: dict[str, Callable[[Original, Draw], None]] = {
    **{name: partial(_file_of_a_data_set, name) for name in (PLAN, MARKER, MANIFEST, SHARD)},
    "plan signed again": _plan_signed_again,
    "shard signed again": _shard_signed_again,
    METRICS: _report,
    INFO: _checkpoint,
    CONFIG: _run,
    "recipe": _recipe,
    "entry": _entry,
    "training": _training,
}


@pytest.mark.parametrize("kind", KINDS)
@few
@given(data=st.data())
def test_a_mutated_file_gives_a_right_answer_or_one_line(original: Original, kind: str, data: st.DataObject) -> None:
    KINDS[kind](original, data.draw)


@pytest.mark.proof
@pytest.mark.parametrize("kind", KINDS)
@many
@given(data=st.data())
def test_thousands_of_mutated_files(original: Original, kind: str, data: st.DataObject) -> None:
    KINDS[kind](original, data.draw)
