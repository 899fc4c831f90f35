"""A Hugging Face Hub on this machine: the requests that huggingface_hub makes, answered over HTTP from memory.

Written after what the library sends and reads (`hf_api.py`, `_commit_api.py`, `lfs.py`, `file_download.py`):
repositories of commits, files by commit with their SHA-256 as ETag, errors by X-Error-Code, LFS's "basic" uploads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Files = dict[str, bytes]
LARGE = 10_000  # bytes; larger files go by LFS


class LocalHub:
    """The Hub's memory: for each repository its commits in order, each with all of its files."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}
        self.objects: dict[str, bytes] = {}  # uploaded by LFS, by SHA-256
        self.requests: list[str] = []
        self.token: str | None = None  # the one that may write; None: everybody may
        self.cuts = 0  # downloads of files that are still to be cut off half way
        self.url = ""

    def commit(self, repository: str, files: Files) -> str:
        """Commit these files over those that are there; the commit's SHA-1."""
        history = self.commits.setdefault(repository, {})
        before = list(history.values())[-1] if history else {}
        whole = before | files
        text = json.dumps(
            [repository, len(history), {name: hashlib.sha256(c).hexdigest() for name, c in whole.items()}]
        )
        name = hashlib.sha1(text.encode()).hexdigest()
        history[name] = whole
        return name

    def resolve(self, repository: str, revision: str) -> str | None:
        history = self.commits[repository]
        return list(history)[-1] if revision == "main" else revision if revision in history else None


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A hub that listens while the block runs."""
    hub = LocalHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the server's names

    def _answer(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(f"{self.command} {path}")
        free = "validate-yaml" in path or path.startswith("/objects/")  # LFS gives addresses that need no token
        writes = self.command in ("POST", "PUT") and not free
        if writes and hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._send(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            text = json.loads(body)["content"]
            broken = [] if text.startswith("---\n") else [{"message": "no metadata"}]
            self._send(200, {"errors": broken, "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/([^/]+)/?", path):
            self._repository(*found.groups(), body)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        elif path.endswith(".git/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{hub.url}/objects/{one['oid']}"}} for one in asked]
            objects = [one | {"actions": action} for one, action in zip(asked, actions, strict=True)]
            self._send(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/objects/(\w+)", path):
            hub.objects[found[1]] = body
            self._send(200, {})
        else:
            self._send(404, {"error": f"no such thing: {path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        repository = f"{asked['organization']}/{asked['name']}"
        if repository in self.hub.commits:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repository}"})
            return
        self.hub.commit(repository, {".gitattributes": b"*.bin filter=lfs\n"})
        self._send(200, {"url": f"{self.hub.url}/{repository}"})

    def _repository(self, repository: str, what: str, revision: str, body: bytes) -> None:
        commit = self._resolve(repository, revision)
        if commit is None:
            return
        files = self.hub.commits[repository][commit]
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            self._send(200, {"id": repository, "sha": commit, "private": False, "tags": [], "siblings": siblings})
        elif what == "tree":
            self._send(200, [{"type": "file", "path": name} | _facts(content) for name, content in files.items()])
        elif what == "preupload":
            asked = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "lfs" if one["size"] > LARGE else "regular"} for one in asked]
            self._send(200, {"files": [one | {"shouldIgnore": False} for one in modes]})
        elif what == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            new = {one["path"]: base64.b64decode(one["content"]) for one in _values(lines, "file")}
            new |= {one["path"]: self.hub.objects[one["oid"]] for one in _values(lines, "lfsFile")}
            done = self.hub.commit(repository, new)
            self._send(200, {"commitUrl": f"{self.hub.url}/{repository}/commit/{done}", "commitOid": done})
        else:
            self._send(404, {"error": what})

    def _file(self, repository: str, revision: str, name: str) -> None:
        commit = self._resolve(repository, revision)
        if commit is None:
            return
        content = self.hub.commits[repository][commit].get(name)
        if content is None:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        begin = int(re.fullmatch(r"bytes=(\d+)-.*", self.headers["Range"])[1]) if self.headers.get("Range") else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cuts and len(content) > LARGE:
            self.hub.cuts -= 1
            self.wfile.write(content[begin : begin + (len(content) - begin) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[begin:])

    def _resolve(self, repository: str, revision: str) -> str | None:
        """The commit that is meant; where there is none, the answer that says so is sent."""
        if repository not in self.hub.commits:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        commit = self.hub.resolve(repository, revision)
        if commit is None:
            self._send(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _send(self, code: int, answer: object, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if code >= 400:
            self.send_header("X-Error-Message", str(answer["error"]) if isinstance(answer, dict) else "")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _facts(content: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {"size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if len(content) > LARGE:
        facts["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return facts


def _values(lines: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [line["value"] for line in lines if line["key"] == key]
