"""A model hub on loopback: real HTTP, the part of the Hugging Face hub's protocol a download needs.

Small files are served in place with git's blob hash as their ETag. Large ones are redirected, as
the hub does, to storage on another host (`localhost`, where the hub itself is `127.0.0.1`), with
size and SHA-256 in headers of the redirect.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 4_000_000


@dataclass
class Request:
    """One request: `start` is that of its Range header, `sent` counts bytes of the body."""

    method: str
    path: str
    start: int | None
    token: str | None
    sent: int = 0


@dataclass
class Hub:
    """What is served, and what goes wrong; `files` are contents by (repository, name).

    `breaks_at` and `stalls_at` hold positions in a large file. At the first of `breaks_at` in
    what it sends, the server drops the connection, once; at `stalls_at` it sends no more until
    `go_on` is set. `refuses` maps repositories, or `storage`, to a status and the hub's error
    code. `sends_instead` is what the storage sends whatever was asked for; with `ignores_ranges`
    it sends all of it every time. `lies` are headers of the answers for small files. Without
    `is_hub` a login page answers everything.
    """

    files: dict[tuple[str, str], bytes]
    breaks_at: list[int] = field(default_factory=list)
    stalls_at: int | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    sends_instead: bytes | None = None
    ignores_ranges: bool = False
    lies: dict[str, str] = field(default_factory=dict)
    is_hub: bool = True
    requests: list[Request] = field(default_factory=list)
    address: str = ""

    def __enter__(self) -> Hub:
        class Handler(_Handler):
            hub = self

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_error) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def bodies(self) -> list[Request]:
        """The requests that large files were sent for."""
        return [r for r in self.requests if r.method == "GET" and r.path.startswith("/storage/")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            return self._answer_api()
        self._answer()

    def do_POST(self) -> None:
        """Uploads: of a repository, of the way of each file, and of a commit of all of them."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.requests.append(Request("POST", self.path, None, None))
        lines = [json.loads(line) for line in body.splitlines()]
        repository = self.path.removeprefix("/api/models/").rpartition("/preupload/")[0]
        if self.path == "/api/repos/create":
            name = f"{lines[0]['organization']}/{lines[0]['name']}"
            return self._send_json({"url": f"{self.hub.address}/{name}"})
        if self.path == "/api/validate-yaml":
            header = yaml.safe_load(lines[0]["content"].split("---\n")[1])
            errors = [] if "library_name" in header else [{"message": "no library_name"}]
            return self._send_json({"warnings": [], "errors": errors})
        if repository:
            files = [{"path": f["path"], "uploadMode": "regular"} for f in lines[0]["files"]]
            return self._send_json({"files": [f | {"shouldIgnore": False} for f in files]})
        repository = self.path.removeprefix("/api/models/").rpartition("/commit/")[0]
        for line in lines:
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.hub.files[repository, line["value"]["path"]] = content
        url = f"{self.hub.address}/{repository}/commit/{COMMIT}"
        self._send_json({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})

    def _answer_api(self) -> None:
        """What a repository has, as a list of files with or without their sizes."""
        path = unquote(self.path).partition("?")[0].removeprefix("/api/models/")
        self.hub.requests.append(Request("GET", path, None, None))
        repository, _, revision = path.replace("/tree/", "/revision/").partition("/revision/")
        files = {n: content for (r, n), content in self.hub.files.items() if r == repository}
        if not files or revision.partition("/")[0] not in ("", "main", COMMIT):
            error = "RevisionNotFound" if files else "RepoNotFound"
            return self._send(404, b"", {"X-Error-Code": error})
        if "/tree/" in path:
            rows = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
            return self._send_json(rows)
        siblings = [{"rfilename": name} for name in files]
        self._send_json({"id": repository, "sha": COMMIT, "siblings": siblings, "tags": []})

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def log_message(self, *_arguments) -> None:
        pass

    def _answer(self) -> None:
        path, range_ = unquote(self.path), self.headers.get("Range")
        start = int(range_.removeprefix("bytes=").removesuffix("-")) if range_ else None
        self.request_ = Request(self.command, path, start, self.headers.get("Authorization"))
        self.hub.requests.append(self.request_)
        if not self.hub.is_hub:
            return self._send(200, b"<html>please log in</html>")
        if path.startswith("/storage/"):
            if "storage" in self.hub.refuses:
                return self._send(self.hub.refuses["storage"][0], b"busy")
            digest = path.removeprefix("/storage/")
            by_digest = {hashlib.sha256(c).hexdigest(): c for c in self.hub.files.values()}
            return self._send_part(by_digest[digest], start or 0)
        repository, found, name = path.removeprefix("/").partition("/resolve/")
        revision, _, name = name.partition("/")
        if not found or revision not in ("main", COMMIT):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if repository in self.hub.refuses:
            status, code = self.hub.refuses[repository]
            return self._send(status, b"", {"X-Error-Code": code} if code else {})
        if repository not in {r for r, _ in self.hub.files}:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        content = self.hub.files.get((repository, name))
        commit = {"X-Repo-Commit": COMMIT}
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"} | commit)
        if len(content) < LARGE:
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self._send(200, content, {"ETag": f'"{digest}"'} | commit | self.hub.lies)
        digest = hashlib.sha256(content).hexdigest()
        links = {
            "Location": f"http://localhost:{self.hub.port}/storage/{digest}",
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
        }
        return self._send(302, b"", links | commit)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_part(self, content: bytes, start: int) -> None:
        hub = self.hub
        content = hub.sends_instead or content
        if hub.ignores_ranges:
            start = 0
        self.send_response(206 if start else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        stops = [stop for stop in hub.breaks_at if stop >= start]
        end = stops[0] if stops else len(content)
        if hub.stalls_at is not None and start < hub.stalls_at:
            self._write(content[start : hub.stalls_at])
            hub.go_on.wait()
            start = hub.stalls_at
        self._write(content[start:end])
        if stops:
            hub.breaks_at.remove(end)
            self.close_connection = True

    def _write(self, body: bytes) -> None:
        try:
            self.wfile.write(body)
            self.wfile.flush()
            self.request_.sent += len(body)
        except ConnectionError:  # the client left
            self.close_connection = True
