"""An export goes to the Hub: to a small server on the loopback that answers as its documentation says."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipeline import networks
from tests.support.command import assert_one_line, call
from tests.support.problems import tiny_network
from tests.support.serving import free_port
from trainer.export import hub

TOKEN = "hf_not_a_token_of_anybody"


class Hub(ThreadingHTTPServer):
    """Keeps what it is sent: files by their names, and whether the repository is private."""

    def __init__(self, refuses: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.repository: dict[str, Any] = {}
        self.tokens: set[str | None] = set()
        self.refuses = refuses

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuses:
            return self._say(403, {"error": f"no right to write with {TOKEN}"})
        if self.path == "/api/repos/create":
            self.server.repository = json.loads(body)
            return self._say(200, {"url": f"{self.server.address}/me/mine", "name": "me/mine"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self._say(200, {"files": files})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines() if line]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files = {file["path"]: base64.b64decode(file["content"]) for file in files}
            answer = {"commitOid": "0" * 40, "commitUrl": f"{self.server.address}/me/mine/commit/0", "success": True}
            return self._say(200, answer)
        return self._say(200, {"errors": [], "warnings": []})

    def _say(self, code: int, answer: dict[str, Any]) -> None:
        payload = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(getattr(request, "param", False)) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def command(tmp_path: Path) -> list[object]:
    networks.save(tmp_path / "student.safetensors", tiny_network(second_time=True))
    return ["export", tmp_path / "student.safetensors", "--out", tmp_path / "out", "--push", "me/mine"]


def test_an_export_is_uploaded_to_a_private_repository(server: Hub, command: list[object], tmp_path: Path) -> None:
    found = call(tmp_path, *command)
    assert f"{server.address}/me/mine: the repository" in found.stdout
    assert server.repository["visibility"] == "private"
    assert server.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert server.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in found.stdout + found.stderr


@pytest.mark.parametrize("server", [True], indirect=True)
def test_a_refusal_is_one_line_without_the_token_and_the_folder_stays(
    server: Hub, command: list[object], tmp_path: Path
) -> None:
    found = call(tmp_path, *command, code=1)
    assert_one_line(found, "out is written, but not uploaded to me/mine", "hf upload me/mine")
    assert TOKEN not in found.stdout + found.stderr
    assert (tmp_path / "out" / "README.md").exists()


def test_a_hub_that_cannot_be_reached_is_one_line(
    command: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert_one_line(call(tmp_path, *command, code=1), "is written, but not uploaded")
    assert (tmp_path / "out" / "README.md").exists()


def test_what_cannot_be_pushed_is_refused_before_the_export(
    command: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert_one_line(call(tmp_path, *command, code=2), "in HF_TOKEN; there is none")
    assert_one_line(call(tmp_path, *command[:-1], "mine", code=2), "wanted OWNER/NAME")
    assert not (tmp_path / "out").exists()


def test_names_of_the_hub() -> None:
    assert hub.NAME.fullmatch("me/my-model_2.1")
    assert not hub.NAME.fullmatch("me/my/model")
