"""Download a teacher's file from the web, the Hugging Face Hub or Google Drive, resuming a broken download."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import BadInput, WorkFailed, one_line, reason
from pipeline.common.progress import Advance, bar, format_bytes
from pipeline.storage.store import sync

if TYPE_CHECKING:
    from requests import Response

TIMEOUTS = (10.0, 60.0)  # seconds to connect, and from one piece to the next
CHUNK_BYTES = 2**16  # the most that a broken download loses
REASON_CHARACTERS = 150

Show = Callable[[int, int | None], None]  # bytes done, bytes in total if known


class _Refused(Exception):
    """The server did not send what was requested."""


def fetch(source: str, path: Path) -> None:
    """Download `source` to `path`, resuming an earlier download.

    `source` is a web address, `hf://OWNER/REPO/FILE` or `gdrive://ID`. `path` is only ever a whole file.

    Raises:
        BadInput: `source` is none of these.
        WorkFailed: the download failed, or was a web page; the received part is kept for the next try.
    """
    address = page(source)
    by_hand = f"where there is no network, put the file from {address} at {path} by hand"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = _download(source, path)
        wrong = "nothing" if aside.stat().st_size == 0 else "a web page" if is_html(aside) else ""
        if wrong:
            aside.unlink()
            hint = "a login page, or Google Drive's quota"
            raise WorkFailed(f"{source} answered with {wrong} instead of the file ({hint}?); {by_hand}")
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except WorkFailed:
        raise
    except Exception as error:
        # The exceptions of requests and of the Hub are OSErrors too, but have no number.
        if isinstance(error, OSError) and error.errno:
            remedy = "make room or choose another folder, and run again"
            raise WorkFailed(f"{path} could not be written: {reason(error)}; {remedy}") from error
        raise WorkFailed(f"{source} could not be had from {_host(source)}: {_why(error)}; {by_hand}") from error


def page(source: str) -> str:
    """The address that a person opens in a browser for `source`.

    Raises:
        BadInput: no such kind of source.
    """
    scheme, _, rest = source.partition("://")
    names = rest.split("/")
    if scheme in ("http", "https") and _authority(source):
        if "@" in _authority(source):
            raise BadInput(f"{scheme}://...@...: credentials belong in ~/.netrc, not in the source")
        return source
    if scheme == "hf" and len(names) > 2 and all(names):
        return f"https://huggingface.co/{names[0]}/{names[1]}/blob/main/{'/'.join(names[2:])}"
    if scheme == "gdrive" and re.fullmatch(r"[\w-]+", rest):
        return f"https://drive.google.com/file/d/{rest}"
    raise BadInput(f"{source}: wanted https://..., hf://OWNER/REPO/FILE or gdrive://ID")


def is_html(path: Path) -> bool:
    """Whether the file begins as a web page does."""
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html"))


def _download(source: str, path: Path) -> Path:
    """Download next to `path`, and return the path of the whole file there."""
    scheme, _, rest = source.partition("://")
    if scheme == "gdrive":
        return _from_drive(rest, path)
    url, headers = _at_hub(rest) if scheme == "hf" else (source, {})
    return _from_web(url, headers, path)


def _at_hub(name: str) -> tuple[str, dict[str, str]]:
    """The URL of a file of the Hub as it is now, and the user's token for it."""
    # Not hf_hub_download: since 1.18 it restarts from zero after an interruption.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    owner, repository, file = name.split("/", 2)
    endpoint = _hub_endpoint() or None
    latest = hf_hub_url(f"{owner}/{repository}", file, endpoint=endpoint)
    commit = get_hf_file_metadata(latest, timeout=TIMEOUTS[0], endpoint=endpoint).commit_hash
    return hf_hub_url(f"{owner}/{repository}", file, revision=commit, endpoint=endpoint), build_hf_headers()


def _hub_endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/")


def _from_drive(file_id: str, path: Path) -> Path:
    import gdown

    aside = path.with_name(f".{path.name}.{file_id}")
    with _progress(path.name) as show:

        def download() -> None:
            gdown.download(id=file_id, output=str(aside), quiet=True, resume=True, timeout=TIMEOUTS, progress=show)

        before = _drive_parts(aside)
        try:
            download()
        except gdown.DownloadError as error:
            if isinstance(error, gdown.FileURLRetrievalError) or _drive_parts(aside) != before:
                raise
            # Gdown cannot resume from a whole part or from several, and would fail on them for ever.
            for part in before:
                part.unlink()
            download()
    return aside


def _drive_parts(aside: Path) -> dict[Path, int]:
    """The partial files of gdown beside `aside`, and their sizes."""
    parts = (p for p in aside.parent.iterdir() if p.name.startswith(aside.name) and p.suffix == ".part")
    return {part: part.stat().st_size for part in parts}


def _from_web(url: str, headers: dict[str, str], path: Path) -> Path:
    from requests import RequestException

    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.etag")
    answer, done = _ask(url, headers, part, note)
    with answer, _progress(path.name) as show:
        total = _total(answer, done)
        if not done:
            _begin(part, note, url, answer)
        with part.open("ab") as file:
            try:
                for chunk in answer.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    done += len(chunk)
                    show(done, total)
            except RequestException as error:
                raise _Refused(f"broke off after {_of(done, total)}; run again") from error
    if total is not None and done != total:
        if done > total:
            part.unlink()
        raise _Refused(f"sent {_of(done, total)}; run again")
    note.unlink(missing_ok=True)
    return part


def _ask(url: str, headers: dict[str, str], part: Path, note: Path) -> tuple["Response", int]:
    """The server's answer, and the byte of the file that it begins with."""
    import requests

    done, version = _left(part, note, url)
    # With compression, lengths and ranges would be those of the compressed bytes.
    headers = {**headers, "Accept-Encoding": "identity"}
    wanted = {"Range": f"bytes={done}-", "If-Range": version} if done else {}
    answer = requests.get(url, headers=headers | wanted, stream=True, timeout=TIMEOUTS)
    if done and _is_rest(answer, done, version):
        return answer, done
    if done and answer.status_code in (206, 416):  # another range, or one of another file
        answer.close()
        part.unlink()
        return _ask(url, headers, part, note)
    if answer.status_code != 200:
        answer.close()
        raise _Refused(f"{answer.status_code} {answer.reason}")
    return answer, 0


def _left(part: Path, note: Path, url: str) -> tuple[int, str]:
    """The number of bytes of `url` that an earlier download left, and their version; 0 if it cannot be resumed."""
    try:
        known, _, version = note.read_text().partition("\n")
        return (part.stat().st_size, version) if known == url and version else (0, "")
    except FileNotFoundError:
        return 0, ""


def _begin(part: Path, note: Path, url: str, answer: "Response") -> None:
    """Create an empty part. Its note is written last, so that it never describes other bytes."""
    note.unlink(missing_ok=True)
    part.open("wb").close()
    note.write_text(f"{url}\n{_version(answer)}")


def _is_rest(answer: "Response", done: int, version: str) -> bool:
    """Whether the answer is the rest of the same file."""
    content_range = re.fullmatch(r"bytes (\d+)-\d+/\d+", answer.headers.get("Content-Range", ""))
    is_rest = answer.status_code == 206 and content_range is not None and int(content_range[1]) == done
    return is_rest and _version(answer) in (version, "")


def _version(answer: "Response") -> str:
    """A validator for If-Range, which changes with the file; empty if the server sends none."""
    if "Content-Encoding" in answer.headers:
        return ""
    etag = answer.headers.get("ETag", "W/")
    return answer.headers.get("Last-Modified", "") if etag.startswith("W/") else etag


def _total(answer: "Response", done: int) -> int | None:
    """The size of the whole file; None if the transfer encoding marks its end."""
    headers = answer.headers
    if done:
        return int(headers["Content-Range"].rpartition("/")[2])
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        return None
    if "Content-Length" not in headers:
        raise _Refused("told no length, so that half a file would look like a whole one")
    return None if "Content-Encoding" in headers else int(headers["Content-Length"])


@contextmanager
def _progress(name: str) -> Iterator[Show]:
    """A bar in megabytes, opened when the first bytes arrive."""
    with ExitStack() as stack:
        advance: Advance | None = None
        shown = 0

        def show(done: int, total: int | None) -> None:
            nonlocal advance, shown
            if advance is None:
                shown = _megabytes(done)
                advance = stack.enter_context(bar(f"download {name} (MB)", _megabytes(total or 0), shown))
            advance(_megabytes(done) - shown)
            shown = _megabytes(done)

        yield show


def _megabytes(count: int) -> int:
    return -(-count // 10**6)


def _of(done: int, total: int | None) -> str:
    return format_bytes(done) + (f" of {format_bytes(total)}" if total is not None else "")


def _host(source: str) -> str:
    return _authority((_hub_endpoint() if source.startswith("hf://") else "") or page(source))


def _authority(url: str) -> str:
    return re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]


def _why(error: BaseException) -> str:
    """The reason of an error in a few words: the system's own message where a library wrapped it."""
    cause: BaseException | None = error
    while cause and not isinstance(error, _Refused):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        cause = cause.__cause__ or cause.__context__
    return one_line(error)[:REASON_CHARACTERS]
