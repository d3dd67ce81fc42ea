"""Real servers on the loopback; only Google's is never asked, nor the Hub's."""

import gzip
import random
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gdown
import pytest
import requests
from huggingface_hub import constants

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.common.progress import Advance
from pipeline.teachers import download as module
from pipeline.teachers.download import fetch, is_html, page

PAYLOAD = bytes(range(256)) * 4000
HALF = 500_000
COMMIT = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Site:
    """A server with one file, and the habits that a test gives it."""

    url: str = ""
    payload: bytes = PAYLOAD
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    cut: int | None = None  # the connection ends after so many bytes of an answer
    status: int = 200
    knows_ranges: bool = True
    tells_length: bool = True
    stalls: bool = False  # where an answer is cut, the connection stays
    most: int | None = None  # bytes of one range
    shift: int = 0  # a range begins so much before what was asked for
    redirect: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def file(self) -> str:
        return f"{self.url}/a/model.bin"


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_HEAD(self) -> None:
        self.answer(self.site.payload)

    def do_GET(self) -> None:
        site = self.site
        site.requests.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        if site.redirect and not self.path.startswith("/cdn"):
            self.send_response(302)
            self.send_header("Location", f"{site.redirect}/cdn")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self.start()
        if start and start >= len(site.payload):
            self.send_error(416)
        elif start:
            start -= site.shift
            self.answer(site.payload[start:][: site.most], start)
        else:
            self.answer(site.payload)

    def start(self) -> int:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        known = self.headers.get("If-Range") in (None, *self.site.headers.values())
        return int(wanted[1]) if wanted and known and self.site.knows_ranges else 0

    def answer(self, body: bytes, start: int = 0) -> None:
        site = self.site
        self.send_response(206 if start and site.status == 200 else site.status)
        for name, value in site.headers.items():
            self.send_header(name, value)
        if site.tells_length:
            self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(site.payload)}")
        self.end_headers()
        if self.command == "GET":
            site.sent.append(len(body[: site.cut]))
            with suppress(ConnectionError):  # who asked may have gone
                self.wfile.write(body[: site.cut])
            if site.stalls:
                site.is_over.wait()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "*")
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield site
    site.is_over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "teachers" / "model.bin"


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def failure(source: str, path: Path) -> str:
    """The one line of a download that fails; nothing stands under its path."""
    with pytest.raises(WorkFailed) as caught:
        fetch(source, path)
    message = str(caught.value)
    assert "\n" not in message
    assert not path.exists()
    return message


def by_hand(address: str, path: Path) -> str:
    return f"where there is no network, put the file from {address} at {path} by hand"


def test_a_file_is_downloaded_whole_and_alone(site: Site, path: Path) -> None:
    fetch(site.file, path)
    assert path.read_bytes() == PAYLOAD
    assert names(path) == {"model.bin"}


def test_a_file_that_was_there_is_replaced(site: Site, path: Path) -> None:
    fetch(site.file, path)
    site.payload = b"another"
    fetch(site.file, path)
    assert path.read_bytes() == b"another"


def test_a_redirection_is_followed(site: Site, path: Path) -> None:
    site.redirect = site.url
    fetch(site.file, path)
    assert path.read_bytes() == PAYLOAD


@pytest.mark.parametrize(
    "headers", [{"ETag": '"one"'}, {"ETag": 'W/"one"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}]
)
def test_a_download_that_broke_off_goes_on_where_it_stopped(site: Site, path: Path, headers: dict[str, str]) -> None:
    site.headers, site.cut = headers, HALF
    message = failure(site.file, path)
    assert "broke off after 4" in message
    assert by_hand(site.file, path) in message
    assert names(path) == {"model.bin.part", "model.bin.part.etag"}
    kept = (path.parent / "model.bin.part").stat().st_size
    assert HALF - module.CHUNK_BYTES <= kept <= HALF

    site.cut = None
    fetch(site.file, path)
    assert site.requests[-1]["range"] == f"bytes={kept}-"
    assert site.requests[-1]["if-range"] == list(headers.values())[-1]
    assert site.sent == [HALF, len(PAYLOAD) - kept]
    assert path.read_bytes() == PAYLOAD
    assert names(path) == {"model.bin"}


def test_a_download_that_breaks_off_again_and_again_arrives(site: Site, path: Path) -> None:
    site.cut = 300_000
    for _ in range(3):
        failure(site.file, path)
    fetch(site.file, path)
    assert path.read_bytes() == PAYLOAD
    assert len(site.sent) == 4


def test_a_server_that_knows_no_ranges_is_asked_from_the_start(site: Site, path: Path) -> None:
    site.knows_ranges, site.cut = False, HALF
    failure(site.file, path)
    site.cut = None
    fetch(site.file, path)
    assert "range" in site.requests[-1]
    assert site.sent == [HALF, len(PAYLOAD)]
    assert path.read_bytes() == PAYLOAD


def test_a_file_that_changed_is_downloaded_anew(site: Site, path: Path) -> None:
    site.cut = HALF
    failure(site.file, path)
    site.cut, site.payload, site.headers = None, PAYLOAD[::-1], {"ETag": '"two"'}
    fetch(site.file, path)
    assert path.read_bytes() == PAYLOAD[::-1]


def test_the_rest_of_another_file_is_not_appended(site: Site, path: Path) -> None:
    """A server that does not look at If-Range sends the rest of whatever it has."""
    site.cut = HALF
    failure(site.file, path)
    site.cut, site.payload, site.headers = None, PAYLOAD[::-1], {"ETag": '"two"', "X-Also": '"one"'}
    fetch(site.file, path)
    assert len(site.requests) == 3
    assert path.read_bytes() == PAYLOAD[::-1]


@pytest.mark.parametrize("habit", [{"shift": 1}, {"shift": 1000, "most": 1000}])
def test_another_range_than_was_asked_for_is_not_appended(site: Site, path: Path, habit: dict[str, int]) -> None:
    site.cut = HALF
    failure(site.file, path)
    site.cut, site.shift, site.most = None, habit["shift"], habit.get("most")
    fetch(site.file, path)
    assert "range" not in site.requests[-1]
    assert path.read_bytes() == PAYLOAD


def test_a_rest_that_is_not_all_of_it_is_gone_on_with(site: Site, path: Path) -> None:
    site.cut = HALF
    failure(site.file, path)
    site.cut, site.most = None, 1000
    message = failure(site.file, path)
    assert "of 1.02 MB; run again" in message
    site.most = None
    fetch(site.file, path)
    assert len(site.requests) == 3
    assert path.read_bytes() == PAYLOAD


def test_a_body_that_was_packed_all_the_same_is_unpacked_and_never_gone_on_with(site: Site, path: Path) -> None:
    site.payload, site.headers["Content-Encoding"] = gzip.compress(random.Random(0).randbytes(10**6)), "gzip"
    site.cut = HALF
    failure(site.file, path)
    site.cut = None
    fetch(site.file, path)
    assert [request["accept-encoding"] for request in site.requests] == ["identity", "identity"]
    assert "range" not in site.requests[-1]
    assert path.read_bytes() == gzip.decompress(site.payload)


def test_a_file_that_shrank_is_downloaded_anew(site: Site, path: Path) -> None:
    site.cut = HALF
    failure(site.file, path)
    site.cut, site.payload = None, b"short"
    fetch(site.file, path)
    assert path.read_bytes() == b"short"


def test_what_is_left_of_another_source_is_not_gone_on_with(site: Site, path: Path) -> None:
    site.cut = HALF
    failure(site.file, path)
    site.cut = None
    fetch(f"{site.url}/b/model.bin", path)
    assert "range" not in site.requests[-1]
    assert path.read_bytes() == PAYLOAD


def test_without_a_version_nothing_can_be_gone_on_with(site: Site, path: Path) -> None:
    site.headers, site.cut = {}, HALF
    failure(site.file, path)
    site.cut = None
    fetch(site.file, path)
    assert "range" not in site.requests[-1]
    assert path.read_bytes() == PAYLOAD


def test_a_body_without_a_length_is_refused_since_it_may_be_half_a_file(site: Site, path: Path) -> None:
    site.tells_length = False
    assert "told no length" in failure(site.file, path)


@pytest.mark.parametrize(("status", "said"), [(404, "404 Not Found"), (403, "403 Forbidden"), (503, "503 Service")])
def test_a_refusal_names_the_host_the_status_and_the_way_by_hand(
    site: Site, path: Path, status: int, said: str
) -> None:
    site.status = status
    message = failure(site.file, path)
    assert f"could not be had from {site.url.removeprefix('http://')}: {said}" in message
    assert by_hand(site.file, path) in message
    assert names(path) == set()


def test_a_refusal_keeps_what_an_earlier_download_left(site: Site, path: Path) -> None:
    site.cut = HALF
    failure(site.file, path)
    site.cut, site.status = None, 503
    failure(site.file, path)
    site.status = 200
    fetch(site.file, path)
    assert site.requests[-1]["range"]
    assert path.read_bytes() == PAYLOAD


def test_where_nobody_listens_the_reason_is_short(site: Site, path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
    source = f"http://{host}/model.bin"
    assert f"could not be had from {host}: Connection refused; {by_hand(source, path)}" in failure(source, path)


def test_a_host_that_no_name_server_knows_is_a_failure_of_one_line(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    message = failure("http://no-such-host.invalid/model.bin", path)
    assert "could not be had from no-such-host.invalid: Name or service not known; " in message


def test_a_server_that_never_answers_is_waited_for_only_so_long(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUTS", (0.1, 0.1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = f"http://127.0.0.1:{silent.getsockname()[1]}/model.bin"
        assert "no answer in time" in failure(source, path)


def test_a_server_that_falls_silent_in_the_middle_is_gone_on_with(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.cut, site.stalls = HALF, True
    with monkeypatch.context() as hasty:
        hasty.setattr(module, "TIMEOUTS", (5.0, 1.0))
        assert "broke off after" in failure(site.file, path)
    site.cut, site.stalls = None, False
    fetch(site.file, path)
    assert site.requests[-1]["range"]
    assert path.read_bytes() == PAYLOAD


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><p>Quota exceeded", b"\xef\xbb\xbf\r\n  <HTML lang=en>", b"<html>"])
def test_a_web_page_instead_of_the_file_is_not_kept(site: Site, path: Path, body: bytes) -> None:
    site.payload = body
    message = failure(site.file, path)
    assert f"{site.file} answered with a web page instead of the file" in message
    assert by_hand(site.file, path) in message
    assert names(path) == set()


def test_an_empty_answer_is_not_kept(site: Site, path: Path) -> None:
    site.payload = b""
    assert "answered with nothing instead of the file" in failure(site.file, path)
    assert names(path) == set()


def test_a_file_that_only_mentions_a_web_page_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x00<html>")
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "c").write_bytes(b" \n<!doctype HTML>")
    assert [is_html(tmp_path / name) for name in "abc"] == [False, False, True]


@pytest.mark.parametrize(
    "source",
    ["ftp://host/a", "model.bin", "", "https://", "hf://owner/repo", "hf://owner//a", "gdrive://", "gdrive://a/b"],
)
def test_a_source_of_no_known_kind_is_refused(source: str, path: Path) -> None:
    with pytest.raises(BadInput, match=r"wanted https://\.\.\., hf://OWNER/REPO/FILE or gdrive://ID"):
        fetch(source, path)
    assert not path.parent.exists()


def test_credentials_in_a_source_are_refused_and_not_repeated(path: Path) -> None:
    with pytest.raises(BadInput, match=r"credentials belong in ~/\.netrc") as caught:
        fetch("https://me:secret@host/a", path)
    assert "secret" not in str(caught.value)


def test_a_person_is_sent_to_a_page() -> None:
    assert page("https://host/a/b?c=d@e") == "https://host/a/b?c=d@e"
    assert page("hf://owner/repo/folder/a.bin") == "https://huggingface.co/owner/repo/blob/main/folder/a.bin"
    assert page("gdrive://1aB_-c") == "https://drive.google.com/file/d/1aB_-c"


def test_a_download_that_is_interrupted_goes_on_later(site: Site, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def interrupted(*_: object) -> Iterator[Advance]:
        def advance(amount: float, status: str = "", *, skipped: bool = False) -> None:
            raise KeyboardInterrupt

        yield advance

    with monkeypatch.context() as pressed:
        pressed.setattr(module, "bar", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(site.file, path)
    assert names(path) == {"model.bin.part", "model.bin.part.etag"}
    fetch(site.file, path)
    assert site.requests[-1]["range"] == f"bytes={module.CHUNK_BYTES}-"
    assert path.read_bytes() == PAYLOAD


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_failure_of_one_line(site: Site, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("model.bin.part").symlink_to("/dev/full")
    assert f"{path} could not be written: No space left on device" in failure(site.file, path)


def test_a_folder_that_cannot_be_made_is_a_failure_of_one_line(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkFailed, match="could not be written: "):
        fetch(site.file, tmp_path / "file" / "inner" / "model.bin")


# The Hub: what it tells of a file is asked by its library, and the bytes come as from any server.

HUB_FILE = "hf://owner/repo/folder/model.bin"
HUB_PAGE = "https://huggingface.co/owner/repo/blob/main/folder/model.bin"


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # else it asks the real Hub who is asking
    monkeypatch.setenv("HF_ENDPOINT", f"{site.url}/mirror/")
    monkeypatch.setenv("HF_TOKEN", "not-a-token")
    site.headers["X-Repo-Commit"] = COMMIT
    return site


def test_a_file_of_the_hub_is_downloaded_at_one_commit_with_the_token_and_without_a_copy(hub: Site, path: Path) -> None:
    fetch(HUB_FILE, path)
    assert path.read_bytes() == PAYLOAD
    assert names(path) == {"model.bin"}
    assert [request["path"] for request in hub.requests] == [f"/mirror/owner/repo/resolve/{COMMIT}/folder/model.bin"]
    assert hub.requests[0]["authorization"] == "Bearer not-a-token"


def test_a_file_of_the_hub_goes_on_where_it_stopped(hub: Site, path: Path) -> None:
    hub.cut = HALF
    message = failure(HUB_FILE, path)
    assert f"from {hub.url.removeprefix('http://')}: broke off" in message
    assert by_hand(HUB_PAGE, path) in message
    hub.cut = None
    fetch(HUB_FILE, path)
    assert hub.requests[-1]["range"]
    assert sum(hub.sent) < len(PAYLOAD) + module.CHUNK_BYTES
    assert path.read_bytes() == PAYLOAD


def test_the_token_does_not_follow_a_redirection_to_another_host(hub: Site, path: Path) -> None:
    hub.redirect = hub.url.replace("127.0.0.1", "localhost")
    hub.cut = HALF
    failure(HUB_FILE, path)
    hub.cut = None
    fetch(HUB_FILE, path)
    assert path.read_bytes() == PAYLOAD
    there = [request for request in hub.requests if request["path"] == "/cdn"]
    assert ["range" in request for request in there] == [False, True]
    assert not any("authorization" in request for request in there)


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (404, {"X-Error-Code": "EntryNotFound"}, "404 Client Error"),
        (403, {"X-Error-Code": "GatedRepo"}, "403 Client Error. Cannot access gated repo"),
        (500, {}, "500"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line(
    hub: Site, path: Path, status: int, headers: dict[str, str], said: str
) -> None:
    hub.status = status
    hub.headers |= headers
    message = failure(HUB_FILE, path)
    assert said in message
    assert by_hand(HUB_PAGE, path) in message
    assert names(path) == set()


def test_a_hub_that_nobody_reaches_is_a_failure_of_one_line(
    hub: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    message = failure(HUB_FILE, path)
    assert "Connection refused" in message
    assert by_hand(HUB_PAGE, path) in message


# Google Drive, whose server is Google's alone: gdown is replaced, or led to the server here.

DRIVE_PAGE = "https://drive.google.com/file/d/1aB_-c"


def replace_gdown(monkeypatch: pytest.MonkeyPatch, download: Callable[..., object]) -> None:
    monkeypatch.setattr(gdown, "download", download)


def test_gdown_is_asked_to_go_on_aside_and_in_time_without_asking_google(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(**arguments: Any) -> None:
        asked.update(arguments)
        arguments["progress"](len(PAYLOAD), None)
        Path(arguments["output"]).write_bytes(PAYLOAD)

    replace_gdown(monkeypatch, download)
    fetch("gdrive://1aB_-c", path)
    assert path.read_bytes() == PAYLOAD
    assert names(path) == {"model.bin"}
    assert asked["id"] == "1aB_-c"
    assert asked["output"] == str(path.parent / ".model.bin.1aB_-c")
    assert (asked["resume"], asked["quiet"], asked["timeout"]) == (True, True, module.TIMEOUTS)


@pytest.mark.parametrize(
    "error",
    [
        gdown.FileURLRetrievalError("Failed to retrieve file url:\n\n\tToo many users have viewed\n" + "or so " * 99),
        requests.ConnectionError("no route"),
        RuntimeError("anything"),
        KeyError("Content-Type"),
    ],
)
def test_whatever_gdown_raises_is_one_short_line_without_asking_google(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def download(**_: object) -> None:
        raise error

    replace_gdown(monkeypatch, download)
    message = failure("gdrive://1aB_-c", path)
    assert "could not be had from drive.google.com: " in message
    assert by_hand(DRIVE_PAGE, path) in message
    assert len(message) < 300 + 2 * len(str(path))


def test_a_page_of_the_drive_is_not_kept_without_asking_google(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_gdown(monkeypatch, lambda **arguments: Path(arguments["output"]).write_bytes(b"<html>Sign in"))
    assert "answered with a web page instead of the file" in failure("gdrive://1aB_-c", path)
    assert names(path) == set()


@pytest.fixture
def drive(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site in Google's place, for gdown itself."""
    ask = requests.Session.get

    def get(session: requests.Session, url: str, **options: Any) -> requests.Response:
        assert url == "https://drive.google.com/uc?id=1aB_-c"
        return ask(session, site.file, **options)

    monkeypatch.setattr(requests.Session, "get", get)
    monkeypatch.setattr(sys.modules["gdown.download"], "DEFAULT_COOKIES_FILE", str(tmp_path / "cookies.txt"))
    site.headers |= {"Content-Disposition": 'attachment; filename="x.bin"', "Content-Type": "application/octet-stream"}
    return site


def test_gdown_goes_on_where_it_stopped_without_asking_google(drive: Site, path: Path) -> None:
    drive.cut = 700_000  # gdown writes half a megabyte at a time
    assert by_hand(DRIVE_PAGE, path) in failure("gdrive://1aB_-c", path)
    drive.cut = None
    fetch("gdrive://1aB_-c", path)
    assert drive.requests[-1]["range"] == f"bytes={2**19}-"
    assert path.read_bytes() == PAYLOAD
    assert names(path) == {"model.bin"}


@pytest.mark.parametrize("left", [[PAYLOAD], [PAYLOAD[:HALF], PAYLOAD[:9]]], ids=["whole", "twice"])
def test_what_gdown_cannot_go_on_from_is_downloaded_anew_without_asking_google(
    drive: Site, path: Path, left: list[bytes]
) -> None:
    """Killed between its last byte and its rename, gdown would fail for ever."""
    path.parent.mkdir()
    for i, part in enumerate(left):
        path.with_name(f".model.bin.1aB_-c1234567{i}.part").write_bytes(part)
    fetch("gdrive://1aB_-c", path)
    assert path.read_bytes() == PAYLOAD
    assert names(path) == {"model.bin"}


@pytest.mark.parametrize(
    ("error", "more"), [(gdown.FileURLRetrievalError("quota"), b""), (gdown.DownloadError("incomplete"), b"more")]
)
def test_a_failure_on_the_way_keeps_what_gdown_left_without_asking_google(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, more: bytes
) -> None:
    path.parent.mkdir()
    part = path.with_name(".model.bin.1aB_-c12345678.part")
    part.write_bytes(b"half")

    def download(**_: object) -> None:
        with part.open("ab") as file:
            file.write(more)
        raise error

    replace_gdown(monkeypatch, download)
    failure("gdrive://1aB_-c", path)
    assert part.read_bytes() == b"half" + more
