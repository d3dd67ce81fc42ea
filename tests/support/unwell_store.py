"""An object store that is unwell now and then: a proxy in front of one that is not, and a listing of very many keys."""

import http.client
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, urlsplit

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
INTERNAL = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an error.</Message></Error>"
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "expect", "date", "server"}


@dataclass
class Faults:
    """Which request gets which fault: one in `every`, by turns; `done` counts them."""

    every: int = 5
    done: Counter[str] = field(default_factory=Counter)
    _requests: int = 0
    _lock: Lock = field(default_factory=Lock)

    def next(self, method: str, path: str) -> str | None:
        """The fault of the next request, if it gets one."""
        with self._lock:
            self._requests += 1
            if self._requests % self.every:
                return None
            is_object = method == "GET" and "list-type" not in path
            kinds = ["slow down", "an error in its body", "truncated"] if is_object else ["slow down"]
            kind = kinds[self._requests // self.every % len(kinds)]
            self.done[kind] += 1
            return kind


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        with suppress(ConnectionError):  # the client has heard enough
            self.wfile.write(body)


@contextmanager
def unwell(upstream: str, faults: Faults) -> Iterator[str]:
    """The address of a proxy in front of the server `upstream` whose answers have `faults`, while the block runs."""
    host = urlsplit(upstream).netloc

    class Proxy(_Handler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = faults.next(self.command, self.path)
            if fault == "slow down":
                self.answer(503, SLOW_DOWN, {"Content-Type": "application/xml"})
                return
            if fault == "an error in its body":
                self.answer(200, INTERNAL, {"Content-Type": "application/xml"})
                return
            connection = http.client.HTTPConnection(host, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            connection.request(self.command, self.path, body, headers)
            found = connection.getresponse()
            payload, length = found.read(), int(found.headers.get("Content-Length", 0))
            connection.close()
            if fault == "truncated":
                self.answer(found.status, payload[: len(payload) // 2], dict(found.headers), length)
                self.close_connection = True
            else:
                self.answer(found.status, payload, dict(found.headers), length)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward  # noqa: N815

    with _serving(Proxy) as address:
        yield address


@contextmanager
def listing(num_keys: int, page: int = 1000) -> Iterator[str]:
    """The address of an S3 server whose only answer is the listing of `num_keys` keys, while the block runs."""

    class Lister(_Handler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            start, prefix = int(query.get("continuation-token", ["0"])[0]), query["prefix"][0]
            end = min(start + page, num_keys)
            keys = "".join(
                f"<Contents><Key>{prefix}shard-{i:06d}.tar</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>&quot;{i:032x}&quot;</ETag><Size>{i}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                for i in range(start, end)
            )
            more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < num_keys else ""
            body = (
                "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
                f"<Name>bucket</Name><Prefix>{prefix}</Prefix><KeyCount>{end - start}</KeyCount>"
                f"<MaxKeys>{page}</MaxKeys><Delimiter>/</Delimiter><IsTruncated>{str(bool(more)).lower()}</IsTruncated>"
                f"{more}{keys}</ListBucketResult>"
            )
            self.answer(200, body.encode(), {"Content-Type": "application/xml"})

    with _serving(Lister) as address:
        yield address


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
