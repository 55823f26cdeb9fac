"""An S3 server on this machine, behind a proxy that fails now and then as object stores do."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "results"
BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class Proxy:
    """Answers a share of requests with 503; of the bodies that are read a share is cut, by a broken
    connection or by an answer that says that this is all, and a share has a wrong bit.

    Attributes:
        port: of 127.0.0.1.
        counted: what happened to requests: "503", "cut", "garbled", "passed".
    """

    upstream: int
    busy_frac: float = 0.0
    cut_frac: float = 0.0
    garbled_frac: float = 0.0
    seed: int = 0
    counted: Counter[str] = field(default_factory=Counter)
    port: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def uri(self, folder: str) -> str:
        """For `--storage`; credentials are in the environment."""
        return f"s3://{BUCKET}/{folder}?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{self.port}"

    def fate(self, method: str) -> str:
        """What happens to a request."""
        luck = self.rng.random()
        if luck < self.busy_frac:
            return "503"
        luck -= self.busy_frac
        if method == "GET" and luck < self.cut_frac:
            return "cut"
        return "garbled" if method == "GET" and luck - self.cut_frac < self.garbled_frac else "passed"


@contextlib.contextmanager
def faulty_s3(**faults: float) -> Iterator[Proxy]:
    """A server with an empty bucket, and the proxy in front of it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Proxy(server.get_host_and_port()[1], **faults)
    front = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    front.daemon_threads, proxy.port = True, front.server_address[1]
    threading.Thread(target=front.serve_forever, daemon=True).start()
    try:
        _asked(proxy, "POST", "/moto-api/reset")  # it remembers what other servers of this process had
        _asked(proxy, "PUT", f"/{BUCKET}")
        yield proxy
    finally:
        front.shutdown()
        front.server_close()
        server.stop()


def open_uploads(proxy: Proxy) -> int:
    """Multipart uploads that were begun and neither completed nor aborted."""
    return _asked(proxy, "GET", f"/{BUCKET}?uploads")[2].count(b"<UploadId>")


def _asked(
    proxy: Proxy, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, list[tuple[str, str]], bytes]:
    """The S3 server's own answer: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.upstream, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.body()
            fate = proxy.fate(self.command)
            proxy.counted[fate] += 1
            if fate == "503":
                return self.send(503, [("Content-Type", "application/xml")], BUSY, BUSY)
            status, headers, content = _asked(proxy, self.command, self.path, body, dict(self.headers))
            sent = content
            if fate == "cut" and content:
                sent = content[: proxy.rng.randrange(len(content))]
                self.close_connection = proxy.rng.random() < 0.5
                if not self.close_connection:  # it says that this is all
                    content = sent
            elif fate == "garbled" and content:
                place = proxy.rng.randrange(len(content))
                sent = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            self.send(status, headers, content, sent)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            del self.headers["Transfer-Encoding"]
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass
            return b"".join(parts)

        def send(self, status: int, headers: list[tuple[str, str]], content: bytes, sent: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = {k.lower(): v for k, v in headers}.get("content-length")
            self.send_header(
                "Content-Length", length if self.command == "HEAD" and length else str(len(content))
            )
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(sent)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

    return Handler
