"""One contract for a folder and for object stores; S3 is a real server on the loopback."""

import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.common.errors import BadInput, WorkFailed, one_line
from pipeline.storage import store as stores
from pipeline.storage.store import Folder, Store, absolute, aside_of, open_store, write_file, write_folder


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    places: dict[str, Callable[[], str]] = {
        "folder": lambda: str(tmp_path / "a" / "b"),
        "file": lambda: f"file://{tmp_path}/a",
        "memory": lambda: f"memory://{uuid.uuid4().hex}/a",
        "s3": lambda: f"{request.getfixturevalue('s3')}/some/prefix/",
    }
    return open_store(places[request.param]())


def test_an_empty_store_has_no_files(store: Store) -> None:
    assert store.sizes() == {}
    assert store.read_all(["a.json"]) == {}
    with pytest.raises(FileNotFoundError):
        store.read("a.json")


def test_what_was_written_is_read_back_whole_and_in_parts(store: Store) -> None:
    store.write("a.tar", b"0123456789")
    store.write("a.tar", b"abcdefghij")
    store.write("b.json", b"{}")
    assert store.sizes() == {"a.tar": 10, "b.json": 2}
    assert store.read("a.tar") == b"abcdefghij"
    assert bytes(store.read_range("a.tar", 2, 5)) == b"cde"
    assert store.read_all(["b.json", "a.tar", "c"]) == {"b.json": b"{}", "a.tar": b"abcdefghij"}
    assert store.read_all(["b.json"]) == {"b.json": b"{}"}


def test_a_file_is_created_once(store: Store) -> None:
    assert store.create("marker", b"first")
    assert not store.create("marker", b"second")
    assert store.read("marker") == b"first"
    assert store.sizes() == {"marker": 5}


def test_a_file_is_removed_and_then_again(store: Store) -> None:
    store.write("a", b"1")
    store.remove("a")
    store.remove("a")
    assert store.sizes() == {}


def test_two_handles_see_the_same_files_at_once(store: Store) -> None:
    other = open_store(store.location)
    assert other.sizes() == {}
    store.write("a", b"1")
    assert other.sizes() == {"a": 1}
    assert bytes(store.read_range("a", 0, 9)) == b"1"
    other.write("a", b"22")
    assert store.sizes() == {"a": 2}
    assert store.read("a") == bytes(store.read_range("a", 0, 9)) == b"22"


def test_folders_inside_are_listed_as_folders(tmp_path: Path, s3: str) -> None:
    for place in (str(tmp_path), s3):
        open_store(f"{place}/inner").write("a", b"1")
        assert open_store(place).sizes() == {"inner/": 0}


def test_a_listing_beside_a_writer_and_with_a_dangling_link_is_whole(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"shard-{i}").write_bytes(b"1")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            Folder(tmp_path).write("plan.json", b"1")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        listings = [Folder(tmp_path).sizes() for _ in range(300)]
    finally:
        done.set()
        writer.join()
    assert {sum(name.startswith("shard") for name in found) for found in listings} == {20}
    assert all("dangling" in found for found in listings)


def test_patterns_in_a_prefix_are_names(s3: str) -> None:
    for prefix in ("run[1]", "run*", "a b", "x#y%20z"):
        store = open_store(f"{s3}/{prefix}")
        store.write("a", prefix.encode())
        assert store.read_all(["a"]) == {"a": prefix.encode()}
        assert store.sizes() == {"a": len(prefix)}


def test_a_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/data").location == str(tmp_path / "data")


def test_a_large_object_is_one_put_of_its_own(s3: str) -> None:
    """Above 100 MB s3fs would send parts, and a killed writer leave them behind."""
    import boto3

    payload = bytes(110 * 2**20)
    open_store(s3).write("a.tar", payload)
    found = boto3.client("s3").head_object(Bucket=s3.removeprefix("s3://"), Key="a.tar")
    assert found["ContentLength"] == len(payload)
    assert "-" not in found["ETag"], "an ETag with a dash is one of parts"


@pytest.mark.parametrize("at_once", [1, 64])
def test_a_whole_read_has_the_longer_the_larger_the_file_and_the_more_are_read(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"memory://{uuid.uuid4().hex}/a")
    store.write("a.tar", b"0123456789")
    monkeypatch.setattr(stores, "SLOWEST_BYTES_PER_SECOND", 0.1)
    kind, given = type(store._filesystem), []  # type: ignore[attr-defined]

    def cat_file(self: object, path: str, timeout: float) -> bytes:
        given.append(timeout)
        return bytes(10)

    monkeypatch.setattr(kind, "async_impl", True)
    monkeypatch.setattr(kind, "info", lambda self, path, timeout: {"size": 10})
    monkeypatch.setattr(kind, "cat_file", cat_file)
    store.read("a.tar", at_once)
    assert given == [60 + 100 * at_once]


def test_a_whole_read_that_comes_cut_short_comes_again_or_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"memory://{uuid.uuid4().hex}/a")
    store.write("a.tar", b"0123456789")
    kind = type(store._filesystem)  # type: ignore[attr-defined]
    answers = [b"01234", b"<Error/>", b"0123456789"]
    monkeypatch.setattr(kind, "cat_file", lambda self, path: answers.pop(0))
    assert store.read("a.tar") == b"0123456789"
    monkeypatch.setattr(kind, "cat_file", lambda self, path: b"01234")
    with pytest.raises(OSError, match="5 bytes came of 10"):
        store.read("a.tar")


def test_a_file_system_without_hard_links_still_creates_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    store = Folder(tmp_path)
    assert store.create("marker", b"first")
    assert not store.create("marker", b"second")
    assert store.read("marker") == b"first"
    assert list(tmp_path.iterdir()) == [tmp_path / "marker"]


def test_what_killed_writers_left_aside_is_swept(tmp_path: Path) -> None:
    aside_of(tmp_path / "a.tar").write_bytes(b"half")
    aside_of(tmp_path / "step-1").mkdir()
    (tmp_path / ".hidden").touch()
    Folder(tmp_path).sweep()
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("nothing://bucket/a", "Protocol not known: nothing"),
        ("s3://key:secret@bucket/a", "credentials belong in the environment"),
        ("s3://key:sec/secret@bucket/a", "credentials belong in the environment"),
        ("file://data", "wanted file:///and/an/absolute/path"),
    ],
)
def test_a_location_that_cannot_be_is_refused_without_its_secrets(location: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        open_store(location)
    assert "secret" not in str(caught.value)


def test_errors_of_a_store_are_one_line_without_signatures(s3_server: str) -> None:
    with pytest.raises(OSError, match="bucket does not exist") as caught:
        open_store("s3://no-such-bucket/a").write("b", b"1")
    assert "\n" not in str(caught.value)
    signed = ValueError("GET https://host/a?X-Amz-Credential=AKIA123&X-Amz-Signature=abc123\nfailed; secret_key=s3cr3t")
    assert one_line(signed) == "GET https://host/a?X-Amz-Credential=...&X-Amz-Signature=... failed; secret_key=..."


def test_of_an_answer_of_azure_only_what_it_says_is_told() -> None:
    answer = "Server failed to authenticate.\nRequestId:1\nErrorCode:X\nContent: <Error>string to sign: GET</Error>"
    assert stores._as_os_error(ValueError(answer)).strerror == "Server failed to authenticate."


def test_an_absolute_location_is_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("data") == str(tmp_path / "data")
    assert absolute(f"file://{tmp_path}/data") == str(tmp_path / "data")
    assert absolute("s3://bucket/data") == "s3://bucket/data"


@pytest.mark.parametrize("method", ["write", "create"])
def test_a_write_whose_temporary_file_is_swept_away_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """By a driver that begins beside a part."""
    write_aside, num_swept = stores._write_aside, [0]

    def swept(path: Path, payload: bytes) -> Path:
        aside = write_aside(path, payload)
        if num_swept[0] < 2:
            num_swept[0] += 1
            stores.sweep(tmp_path)
        return aside

    monkeypatch.setattr(stores, "_write_aside", swept)
    getattr(Folder(tmp_path), method)("file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert num_swept == [2]


def test_a_folder_is_written_whole_and_replaced_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with write_folder(tmp_path / "run" / "step-1", replace=True) as folder:
            (folder / text).write_text(text)
            (folder / "inner").mkdir()
            (folder / "inner" / "file").write_text(text)
    assert sorted(path.name for path in (tmp_path / "run" / "step-1").iterdir()) == ["inner", "new"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-1"]


def test_a_folder_that_holds_files_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(OSError, match="not empty"), write_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BadInput("no"), KeyboardInterrupt()])
def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    with write_folder(tmp_path / "step-1") as folder:
        (folder / "file").write_text("old")
    with pytest.raises(type(error)), write_folder(tmp_path / "step-1", replace=True) as folder:
        _write_and_raise(folder / "file", error)
    assert (tmp_path / "step-1" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def _write_and_raise(path: Path, error: BaseException) -> None:
    path.write_text("new")
    raise error


def test_every_file_of_a_folder_is_synced_before_the_folder_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(stores, "sync", lambda path: synced.append((path.name, (tmp_path / "step-1").exists())))
    with write_folder(tmp_path / "step-1") as folder:
        (folder / "a").write_text("a")
    assert synced == [("a", False), (folder.name, False), (tmp_path.name, True)]


def test_a_file_is_written_into_a_new_folder_or_the_error_is_one_line(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "a.txt", b"a")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"a"
    with pytest.raises(WorkFailed, match=r"a\.txt/b: cannot be written \(.+\); make room and run again"):
        write_file(tmp_path / "new" / "a.txt" / "b", b"b")
