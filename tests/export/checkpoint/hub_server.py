"""A model hub on loopback that hands out the files of a folder, and keeps count of what it was asked for."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What a stand-in does and has done.

    Args:
        root: the repository.
        refuses: the error code that the real one sends with a status, such as `GatedRepo`.
        breaks_after: bytes after which a download of weights ends early, once.
        got: paths of files that were sent, in part or whole, with the byte at which each began.
    """

    root: Path
    url: str = ""
    refuses: str | None = None
    breaks_after: int | None = None
    got: list[tuple[str, int]] = field(default_factory=list)

    @property
    def files(self) -> set[str]:
        """Paths of what was sent."""
        return {path for path, _ in self.got}


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """A hub with one repository, `owner/model`."""
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            if hub.refuses is not None or "owner/model" not in path:
                code = hub.refuses or "RepoNotFound"
                self._send(403 if code == "GatedRepo" else 404, b"", {"X-Error-Code": code}, body=body)
            elif path.startswith("/api/models/owner/model/tree/"):
                self._send(200, json.dumps([{"type": "file", **self._described(file)} for file in files()]).encode())
            elif path.startswith("/api/models/owner/model"):
                siblings = [{"rfilename": file} for file in files()]
                document = {"id": "owner/model", "sha": COMMIT, "siblings": siblings}
                self._send(200, json.dumps(document).encode())
            else:
                self._file(path.split("/", 5)[-1], body=body)

        def _described(self, file: str) -> dict[str, object]:
            data = (root / file).read_bytes()
            return {"path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

        def _file(self, name: str, *, body: bool) -> None:
            if not (root / name).is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body=body)
                return
            data = (root / name).read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            if body:
                hub.got.append((name, begin))
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self._send(206 if begin else 200, data[begin:], headers, body=body, cut=name.endswith(".safetensors"))

        def _send(
            self,
            status: int,
            data: bytes,
            headers: dict[str, str] | None = None,
            *,
            body: bool = True,
            cut: bool = False,
        ) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if body and cut and hub.breaks_after is not None and len(data) > hub.breaks_after:
                self.wfile.write(data[: hub.breaks_after])
                hub.breaks_after = None
                self.close_connection = True
            elif body:
                self.wfile.write(data)

    def files() -> list[str]:
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
