"""A hub on this machine: the part of the Hugging Face protocol that reading a model uses, and faults to order.

Large files answer with a redirect to another origin (localhost instead of 127.0.0.1), as the real hub's do.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/models/([^/]+/[^/]+)/revision/(.+)")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_PIECE_BYTES = 64 << 10


@dataclass
class StubFile:
    """A file; `large` files are stored apart and known by SHA-256. `sent` replaces the content on the wire."""

    content: bytes
    large: bool = False
    sent: bytes | None = None
    stated_size: int | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def size(self) -> int:
        return len(self.content) if self.stated_size is None else self.stated_size


@dataclass
class StubRepository:
    """A model. `token`: only who sends it may read; `gated` says so with the hub's code for gated models.

    Faults: every answer has the status `fail_with`; the answer to "which files?" is `api_answer`.
    """

    files: dict[str, StubFile]
    commit: str = "1" * 40
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None
    gated: bool = False
    fail_with: int | None = None
    api_answer: bytes | None = None


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class StubHub:
    """Serve `repositories` until closed. Faults: drop the connection, ignore ranges, be slow."""

    repositories: dict[str, StubRepository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    break_after_bytes: list[int] = field(default_factory=list)
    ignore_ranges: bool = False
    seconds_per_piece: float = 0.0

    def __enter__(self) -> StubHub:
        hub = self

        class Handler(_Handler):
            stub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def gets(self, part: str = "/cdn/") -> list[Request]:
        """GET requests whose path holds `part`; the default: of large files' content."""
        return [request for request in self.requests if request.method == "GET" and part in request.path]


class _Handler(BaseHTTPRequestHandler):
    stub: StubHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep the test's output clean."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.stub.requests.append(
            Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if match := _API.fullmatch(path):
            self._model_info(*match.groups())
        elif path.startswith("/cdn/"):
            self._large_file(path.removeprefix("/cdn/"))
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(*match.groups())
        else:
            self._send(404, b"{}")

    def _repository(self, name: str, revision: str) -> StubRepository | None:
        repository = self.stub.repositories.get(name)
        if repository is None:
            # What the hub says to somebody without a token: it does not tell missing from private.
            self._send(401, b'{"error": "Invalid username or password."}', {"X-Error-Code": "RepoNotFound"})
            return None
        if repository.fail_with is not None:
            self._send(repository.fail_with, b"{}")
            return None
        if repository.token is not None and self.headers.get("Authorization") != f"Bearer {repository.token}":
            code = {"X-Error-Code": "GatedRepo"} if repository.gated else {}
            self._send(403, b'{"error": "no access"}', code)
            return None
        if revision not in (*repository.revisions, repository.commit):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository

    def _model_info(self, name: str, revision: str) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        siblings = []
        for file_name, file in repository.files.items():
            sibling: dict[str, object] = {"rfilename": file_name, "size": file.size, "blobId": file.blob_id}
            if file.large:
                sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
            siblings.append(sibling)
        answer = json.dumps({"id": name, "sha": repository.commit, "siblings": siblings}).encode()
        self._send(200, repository.api_answer or answer)

    def _resolve(self, name: str, revision: str, file_name: str) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        file = repository.files.get(file_name)
        if file is None:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.commit})
            return
        headers = {"X-Repo-Commit": repository.commit}
        if not file.large:
            self._send(200, file.content if file.sent is None else file.sent, headers | {"ETag": f'"{file.blob_id}"'})
            return
        headers |= {
            "X-Linked-Etag": f'"{file.sha256}"',
            "X-Linked-Size": str(file.size),
            "Location": f"http://localhost:{self.stub.port}/cdn/{name}/{file_name}",
        }
        self._send(302, b"", headers)

    def _large_file(self, path: str) -> None:
        organisation, name, file_name = path.split("/", 2)
        file = self.stub.repositories[f"{organisation}/{name}"].files[file_name]
        content, status, headers = file.content if file.sent is None else file.sent, 200, {}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and not self.stub.ignore_ranges:
            begin, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            content, status = content[begin : end + 1], 206
        self._send(status, content, headers, may_break=True)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, may_break: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.stub.break_after_bytes.pop(0) if may_break and self.stub.break_after_bytes else len(body)
        try:
            for start in range(0, min(limit, len(body)), _PIECE_BYTES):
                self.wfile.write(body[start : min(start + _PIECE_BYTES, limit)])
                time.sleep(self.stub.seconds_per_piece if may_break else 0)
        except ConnectionError:
            # The client has read as much as it wanted.
            self.close_connection = True
        if limit < len(body):
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
