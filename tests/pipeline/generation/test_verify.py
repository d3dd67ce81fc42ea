from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from pipeline.common.errors import BadInput, StoreFailed
from pipeline.dataset.commit import parse_marker
from pipeline.dataset.manifest import MANIFEST, read_dataset, write_dataset
from pipeline.flow.numerics import Numerics
from pipeline.generation.generate import generate
from pipeline.generation.verify import VerifyResult, recheck, repair, verify
from pipeline.storage.store import Folder, Store, aside_of, open_store
from pipeline.teachers.teacher import Teacher
from tests.support.plans import config
from tests.support.problems import SHAPE, GaussianFlow, save_tiny_teacher, shard_bytes

CPU = torch.device("cpu")
FLOW = GaussianFlow()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Twenty records in five shards."""
    place = request.getfixturevalue("s3") + "/data" if request.param == "s3" else tmp_path / "data"
    return generate(config(place)).store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generate(config(tmp_path / "data"))
    return tmp_path / "data"


def faults(store: Store) -> list[str]:
    return [str(fault) for fault in verify(store).faults]


def again(store: Store, teacher: Teacher, num_batches: int = 3) -> VerifyResult:
    result = verify(store)
    recheck(store, result, teacher, CPU, num_batches)
    return result


def pretend_made_elsewhere(folder: Path) -> None:
    for path in folder.glob("shard-*.json"):
        marker = parse_marker(path.read_bytes())
        assert marker is not None
        elsewhere = marker.model_copy(update={"numerics": Numerics(torch="1.0", device="abacus", threads=1)})
        path.write_text(elsewhere.model_dump_json())


def test_a_whole_set_has_no_faults(store: Store) -> None:
    result = again(store, FLOW.teacher())
    assert result.faults == []
    assert str(result).startswith("5 of 5 shards are whole")
    assert [(a.first_index, a.same_machine, a.rms) for a in result.rechecks] == [
        (0, True, 0),
        (8, True, 0),
        (18, True, 0),
    ]


def test_a_flipped_byte_a_cut_tar_a_missing_marker_and_an_alien_are_named_and_repaired(store: Store) -> None:
    before = {name: store.read(name) for name in store.sizes() if name.startswith("shard")}
    flipped = bytearray(store.read("shard-000000.tar"))
    flipped[700] ^= 1
    store.write("shard-000000.tar", bytes(flipped))
    store.write("shard-000001.tar", store.read("shard-000001.tar")[:-512])
    store.remove("shard-000002.json")
    store.write("letter.txt", b"dear")
    size = len(before["shard-000001.tar"])
    assert faults(store) == [
        "letter.txt: does not belong to this data set; move it away",
        "shard-000000.tar: its bytes are not those that were committed (sha256 differs)",
        f"shard-000001.tar: {size - 512} bytes, the marker says {size}",
        "shard-000002.json: missing: shard 000002 (records 8 to 11) was not committed",
    ]
    result = verify(store)
    repair(store, result)
    kept = {name for name in store.sizes() if name.startswith("shard")}
    assert kept == {f"shard-00000{i}.{end}" for i in (3, 4) for end in ("json", "tar")}
    assert "letter.txt" in store.sizes(), "what is not ours is not removed"
    store.remove("letter.txt")
    generate(config(store.location))
    assert faults(store) == []
    assert {name: store.read(name) for name in before if name.endswith("tar")} == {
        name: payload for name, payload in before.items() if name.endswith("tar")
    }


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: (data / "shard-000003.tar").unlink(), "shard-000003.tar: missing: shard 000003"),
        (lambda data: (data / "shard-000003.json").write_text("{"), "shard-000003.json: not a marker"),
        (lambda data: (data / MANIFEST).unlink(), "manifest.parquet: missing; run generate again"),
        (lambda data: (data / MANIFEST).write_bytes(b"PAR1"), "manifest.parquet: not a manifest this version reads"),
        (lambda data: (data / "shard-000009.tar").write_bytes(b""), "shard-000009.tar: does not belong"),
        (lambda data: (data / "sub").mkdir(), "sub/: does not belong"),
        (
            lambda data: (data / "shard-000003.json").write_bytes((data / "shard-000001.json").read_bytes()),
            "shard-000003.json: wanted shard 000003 (records 12 to 15), it speaks of shard 000001",
        ),
    ],
)
def test_each_damage_is_named(folder: Path, damage: object, problem: str) -> None:
    damage(folder)  # type: ignore[operator]
    (found,) = faults(Folder(folder))
    assert found.startswith(problem)


def test_a_marker_with_another_checksum_or_too_few_evaluations_is_named(folder: Path) -> None:
    path = folder / "shard-000001.json"
    marker = parse_marker(path.read_bytes())
    assert marker is not None
    wrong = marker.blocks[0]._replace(crc32=1), *marker.blocks[1:]
    path.write_text(marker.model_copy(update={"blocks": wrong}).model_dump_json())
    assert faults(Folder(folder)) == ["shard-000001.tar: records from 4: the marker has another checksum"]
    path.write_text(marker.model_copy(update={"nfe": ()}).model_dump_json())
    assert faults(Folder(folder)) == ["shard-000001.json: not the marker of a shard of this plan"]
    assert generate(config(folder)).num_records == 20
    assert faults(Folder(folder)) == []


def test_a_set_in_the_making_says_what_is_missing(folder: Path) -> None:
    dataset = read_dataset(Folder(folder))
    assert dataset is not None
    write_dataset(Folder(folder), dataset.model_copy(update={"num_records": 28}))
    assert verify(Folder(folder)).advice == "run traflow-pipeline generate again"
    assert faults(Folder(folder)) == [
        "shard-000005.tar to shard-000006.tar: missing: records 20 to 27 were not made yet",
        "manifest.parquet: does not list what is committed; run generate again",
    ]


def test_a_manifest_of_an_older_state_is_named_and_made_again(folder: Path) -> None:
    old = (folder / MANIFEST).read_bytes()
    generate(config(folder, n=24))
    (folder / MANIFEST).write_bytes(old)
    assert faults(Folder(folder)) == ["manifest.parquet: does not list what is committed; run generate again"]
    repair(Folder(folder), verify(Folder(folder)))
    assert faults(Folder(folder)) == []


def test_what_writers_left_aside_is_noted_and_swept(folder: Path) -> None:
    aside = aside_of(folder / "shard-000000.tar")
    aside.write_bytes(b"half")
    result = verify(Folder(folder))
    assert result.faults == []
    assert result.notes == [f"{aside.name}: left aside by a writer that was killed"]
    repair(Folder(folder), result)
    assert not aside.exists()


def test_shards_of_another_teacher_under_this_plan_are_found_by_integrating_again(folder: Path) -> None:
    other = Teacher("gaussian", "0" * 64, GaussianFlow(mean=-0.3).velocity, SHAPE)
    result = again(Folder(folder), other)
    assert len(result.faults) == 3
    assert "integrated again: other sample and states and velocities, RMS" in str(result.faults[0])
    assert [shard.number for shard in result.bad_shards] == [0, 2, 4]


def test_another_kind_of_machine_may_differ_in_the_last_bits_and_no_more(folder: Path) -> None:
    pretend_made_elsewhere(folder)
    near = Teacher("gaussian", "0" * 64, GaussianFlow(mean=0.3001).velocity, SHAPE)
    result = again(Folder(folder), near)
    assert result.faults == []
    assert all(0 < a.rms < 1e-3 and not a.same_machine for a in result.rechecks)
    far = Teacher("gaussian", "0" * 64, GaussianFlow(mean=-0.3).velocity, SHAPE)
    result = again(Folder(folder), far)
    assert "another kind of machine: RMS" in str(result.faults[0])
    assert result.bad_shards == [], "their bytes are what was committed"


@pytest.mark.parametrize(("noise", "num_faults"), [(5e-4, 0), (0.5, 3)])
def test_no_shard_is_blamed_for_a_teacher_whose_bits_vary(noise: float, num_faults: int, folder: Path) -> None:
    offset = 0.0

    def varying(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        nonlocal offset
        offset += noise * float(t[0] == 1)  # another one for each integration
        return FLOW.velocity(x, t) + offset

    result = again(Folder(folder), Teacher("gaussian", "0" * 64, varying, SHAPE))
    assert len(result.faults) == num_faults
    assert result.bad_shards == []
    assert "repair" not in result.advice
    assert not any(comparison.repeats for comparison in result.rechecks if comparison.rms)


def test_a_teacher_of_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    from pipeline.teachers.loading import load_teacher

    other = load_teacher(str(save_tiny_teacher(tmp_path / "other.safetensors")))
    with pytest.raises(BadInput, match="made by another teacher than other"):
        again(Folder(folder), other)


class Unwell(Folder):
    """A store that answers the first requests for a file with something else than its bytes."""

    is_local = False  # so that what comes is doubted

    def __init__(self, path: Path, name: str, answers: list[OSError | bytes]) -> None:
        super().__init__(path)
        self.name, self.answers = name, answers

    def read(self, name: str, at_once: int = 1) -> bytes:
        return self._answer(name, super().read(name, at_once))

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        return {name: self._answer(name, text) for name, text in super().read_all(names).items()}

    def _answer(self, name: str, payload: bytes) -> bytes:
        if name != self.name or not self.answers:
            return payload
        if isinstance(answer := self.answers.pop(0), OSError):
            raise answer
        return answer


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.store.PAUSE_SECONDS", 0.0)


TIMEOUT, RESET, DENIED = (
    OSError(number, text) for number, text in ((110, "timed out"), (104, "reset"), (13, "denied"))
)


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.json"])
@pytest.mark.parametrize("answers", [[TIMEOUT], [RESET, DENIED], [b"<Error>SlowDown</Error>"], [b"", TIMEOUT]])
def test_a_store_that_is_unwell_for_a_moment_is_asked_again(
    name: str, answers: list[OSError | bytes], folder: Path
) -> None:
    assert faults(Unwell(folder, name, list(answers))) == []


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("error", [TIMEOUT, RESET, DENIED])
@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.json"])
def test_what_a_store_does_not_give_is_reported_and_stays(error: OSError, name: str, folder: Path) -> None:
    (folder / "shard-000003.tar").write_bytes((folder / "shard-000003.tar").read_bytes()[::-1])
    store = Unwell(folder, name, [error] * 9)
    result = verify(store)
    assert [str(fault) for fault in result.faults if fault.name == name] == [
        f"{name}: cannot be read ({error.strerror}), tried 3 times: nothing is known of it, and it stays"
    ]
    assert str(result).startswith(f"{len(result.faults)} faults; 3 of 5 shards are whole")
    recheck(store, result, FLOW.teacher(), CPU, 9)
    assert len(result.rechecks) == 6, "nothing is integrated again of what could not be read"
    repair(store, result)
    assert {path.name for path in folder.glob("shard-*1.*")} == {"shard-000001.json", "shard-000001.tar"}
    assert not list(folder.glob("shard-000003.*")), "what its bytes condemn goes"
    generate(config(folder))
    assert faults(Folder(folder)) == []


@pytest.mark.usefixtures("_no_pauses")
def test_a_store_that_gives_nothing_ends_the_verification(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.generation.verify.MAX_UNREAD", 2)
    monkeypatch.setattr(Folder, "read_all", lambda *_: _raise(TIMEOUT))
    monkeypatch.setattr("pipeline.generation.verify._read_marker", lambda *_: _raise(TIMEOUT))
    with pytest.raises(StoreFailed, match=r"2 shards cannot be read, the last one as shard-000001\.json: .*timed out"):
        verify(Folder(folder))


def _raise(error: OSError) -> NoReturn:
    raise error


def test_a_few_records_that_end_elsewhere_on_another_kind_of_machine_are_a_note(tmp_path: Path) -> None:
    data = tmp_path / "data"
    generate(config(data, batch_size=4, block_size=4))
    pretend_made_elsewhere(data)

    def elsewhere(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        velocity = FLOW.velocity(x, t)
        velocity[0] += 0.5  # the first record of a batch falls into another basin
        return velocity

    result = again(Folder(data), Teacher("gaussian", "0" * 64, elsewhere, SHAPE))
    assert result.faults == []
    assert all(found.rms > 0.1 and found.median < 0.01 for found in result.rechecks)


def test_a_place_without_a_data_set_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"wanted a data set; there is no plan\.json"):
        verify(open_store(str(tmp_path)))


def test_verifying_changes_nothing(folder: Path) -> None:
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    again(Folder(folder), FLOW.teacher())
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_a_refilled_set_is_the_set_it_was(folder: Path) -> None:
    before = shard_bytes(generate(config(folder)))
    (folder / "shard-000001.tar").write_bytes(b"?")
    repair(Folder(folder), verify(Folder(folder)))
    assert shard_bytes(generate(config(folder))) == before
