"""A server on loopback that speaks the hub's protocol for model folders."""

import base64
import contextlib
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.loopback import running

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Serves `models`, OWNER/NAME -> folder; `corrupt` changes a byte of every file."""

    daemon_threads = True

    def __init__(self, models: dict[str, Path], uploads: Path | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = models
        self.uploads = uploads  # folder of what is uploaded
        self.visibility: dict[str, str] = {}
        self.corrupt = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def do_POST(self):
        """The upload of files as huggingface_hub does it, all of them inside the commit."""
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if self.headers.get("Authorization") is None:
            self._error(401, "RepoNotFound")
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.server.visibility[name] = wanted.get("visibility")
            self.server.models.setdefault(name, self.server.uploads / name.replace("/", "--")).mkdir(exist_ok=True)
            self._json({"url": f"{self.server.address}/{name}", "id": name})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path.partition("?")[0]):
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    path = self.server.models[match[1]] / item["value"]["path"]
                    path.write_bytes(base64.b64decode(item["value"]["content"]))
            self._json(
                {
                    "commitUrl": f"{self.server.address}/{match[1]}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                    "hookOutput": "",
                }
            )
        else:
            self._error(404, "EntryNotFound")

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            self._tree(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            folder = self.server.models.get(match[1])
            self._file(folder / match[3] if folder else None, body)
        else:
            self._error(404, "EntryNotFound")

    def _error(self, code: int, kind: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", kind)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _info(self, name: str, revision: str | None) -> None:
        folder = self.server.models.get(name)
        if folder is None:
            self._error(401, "RepoNotFound")  # as the hub answers without a token
        elif revision not in (None, "main", COMMIT):
            self._error(404, "RevisionNotFound")
        else:
            files = [{"rfilename": p.name} for p in sorted(folder.iterdir())]
            self._json(
                {
                    "_id": "1",
                    "id": name,
                    "modelId": name,
                    "sha": COMMIT,
                    "siblings": files,
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                }
            )

    def _tree(self, name: str) -> None:
        folder = self.server.models.get(name)
        if folder is None:
            self._error(401, "RepoNotFound")
            return
        self._json(
            [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                for p in sorted(folder.iterdir())
            ]
        )

    def _file(self, path: Path | None, body: bool) -> None:
        if path is None or not path.is_file():
            self._error(404, "EntryNotFound")
            return
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if self.server.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin = 0
        if match := re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range", "")):
            begin = int(match[1])
            if begin >= len(content):
                self._error(416, "Range")
                return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(content)))
        content = content[begin:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def serving(models: dict[str, Path], uploads: Path | None = None) -> contextlib.AbstractContextManager[Server]:
    """A running server."""
    return running(Server(models, uploads))
