import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.features import weights
from eval.features.weights import FILES, Unavailable, WeightsFile, require
from pipeline.common.errors import BadInput
from tests.support.serving import serve

PAYLOAD = b"weights of somebody else" * 100


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights; downloads are allowed, whatever this machine's own environment says."""
    monkeypatch.setenv(weights.FOLDER, str(tmp_path / "weights"))
    for name in weights.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "weights"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the folder `site`, which holds the file."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "net.pt").write_bytes(PAYLOAD)

    with serve(tmp_path / "site") as address:
        yield address


def publish(monkeypatch: pytest.MonkeyPatch, source: str, *elsewhere: Path, payload: bytes = PAYLOAD) -> None:
    """One file, "net", of which `payload` is the right content."""
    file = WeightsFile("net.pt", source, hashlib.sha256(payload).hexdigest(), lambda: elsewhere)
    monkeypatch.setitem(FILES, "net", file)


def test_a_missing_file_is_downloaded_once(folder: Path, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, f"{site}/net.pt")
    assert require("net") == folder / "net.pt"
    assert (folder / "net.pt").read_bytes() == PAYLOAD
    publish(monkeypatch, "http://127.0.0.1:9/never-asked")
    assert require("net").read_bytes() == PAYLOAD


def test_a_file_that_cannot_be_had_is_named_with_its_address_and_its_place(
    folder: Path, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, f"{site}/gone.pt")
    with pytest.raises(Unavailable) as caught:
        require("net")
    assert f"{site}/gone.pt" in str(caught.value)
    assert str(folder / "net.pt") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", weights.OFFLINE)
def test_offline_nothing_is_asked_for(folder: Path, site: str, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    publish(monkeypatch, f"{site}/net.pt")
    with pytest.raises(Unavailable) as caught:
        require("net")
    for part in (variable, f"{site}/net.pt", str(folder / "net.pt")):
        assert part in str(caught.value)
    assert not folder.exists()


def test_another_file_under_the_name_is_refused_with_both_hashes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "net.pt").write_bytes(b"something else")
    publish(monkeypatch, "http://127.0.0.1:9/net.pt")
    with pytest.raises(BadInput) as caught:
        require("net")
    for payload in (PAYLOAD, b"something else"):
        assert hashlib.sha256(payload).hexdigest() in str(caught.value)


def test_another_file_from_the_publisher_is_refused_too(
    folder: Path, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, f"{site}/net.pt", payload=b"what was published once")
    with pytest.raises(BadInput, match="wanted the file whose sha256"):
        require("net")


def test_what_another_program_has_put_elsewhere_is_copied_if_it_is_the_right_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAFLOW_OFFLINE", "1")
    right, wrong = tmp_path / "right.pt", tmp_path / "wrong.pt"
    right.write_bytes(PAYLOAD)
    wrong.write_bytes(PAYLOAD[:-1])
    publish(monkeypatch, "http://127.0.0.1:9/net.pt", wrong)
    with pytest.raises(Unavailable):
        require("net")
    publish(monkeypatch, "http://127.0.0.1:9/net.pt", wrong, right)
    assert require("net") == folder / "net.pt"
    assert (folder / "net.pt").read_bytes() == PAYLOAD


def test_a_file_that_is_not_pinned_is_used_where_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "model.safetensors"
    other.write_bytes(PAYLOAD)
    monkeypatch.setitem(FILES, "net", WeightsFile("net", "http://127.0.0.1:9/net", None, lambda: [other]))
    assert require("net") == other
    assert not folder.exists()


def test_the_folder_is_the_users_cache_unless_the_environment_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(weights.FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.folder() == tmp_path / "traflow-pipeline" / "weights"


def test_pinned_files_name_a_whole_hash_and_the_hub_s_convention_holds() -> None:
    assert all(file.sha256 is None or len(file.sha256) == 64 for file in FILES.values())
    torch_file = FILES["inception-torch"]
    assert torch_file.sha256 is not None
    assert torch_file.sha256.startswith(torch_file.name.rpartition("-")[2].removesuffix(".pth"))
