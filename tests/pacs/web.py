"""A DICOMweb service in this process that answers whatever a test wants."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Answer(NamedTuple):
    """What the server says."""

    status: int
    kind: str = "application/dicom+json"
    body: bytes = b""
    location: str = ""


class Server(ThreadingHTTPServer):
    """Answers by a function of method and path, and keeps what it was asked."""

    answer: Callable[[str, str], Answer]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        """Return the base of the service."""
        return f"http://127.0.0.1:{self.server_port}/dicom-web"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        answer = self.server.answer(self.command, self.path)
        if answer.status == 0:  # hang up
            self.connection.close()
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.location:
            self.send_header("Location", answer.location)
        self.end_headers()
        self.wfile.write(answer.body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server that answers as its `answer` says."""
    found = Server()
    found.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield found
    finally:
        found.shutdown()
        found.server_close()
        thread.join()


def listing(*uids: str, tag: str = "0020000D") -> Answer:
    """Return the answer to a search that found UIDs."""
    items = [{tag: {"vr": "UI", "Value": [uid]}} for uid in uids]
    return Answer(200, body=json.dumps(items).encode())


def stored(*kept: str, failed: tuple[str, ...] = (), status: int = 200) -> Answer:
    """Return what STOW-RS answers."""

    def sequence(uids: tuple[str, ...]) -> dict:
        return {
            "vr": "SQ",
            "Value": [{"00081155": {"Value": [uid]}, "00081197": {"Value": [42752]}} for uid in uids],
        }

    body = {"00081199": sequence(kept), "00081198": sequence(failed)}
    return Answer(status, body=json.dumps(body).encode())


def part(content: bytes, boundary: str = "b", quoted: bool = True) -> Answer:
    """Return what WADO-RS answers: one part."""
    name = f'"{boundary}"' if quoted else boundary
    kind = f'multipart/related; type="application/dicom"; boundary={name}'
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\nContent-Length: {len(content)}\r\n\r\n"
    return Answer(200, kind, head.encode() + content + f"\r\n--{boundary}--".encode())
