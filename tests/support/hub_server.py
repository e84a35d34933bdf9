"""A Hub on this machine: enough of its protocol for the real client to publish and to load.

Repositories of models, branches, pull requests, regular and LFS files, downloads with ETag and
ranges; and faults on demand: an error status, a connection cut in mid-transfer, a flipped byte.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

OWNER, TOKEN = "me", "hf_of_me"
"""The one user, and the token that may write to that user's repositories."""


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    data: bytes
    lfs: bool

    @property
    def blob(self) -> str:
        """git's name of the content."""
        return sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def etag(self) -> str:
        """What the Hub names it by in downloads."""
        return sha256(self.data).hexdigest() if self.lfs else self.blob


@dataclass
class Repository:
    """Commits by their id, and the branches and pull requests that point to them."""

    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    titles: list[str] = field(default_factory=list)

    def find(self, revision: str) -> str | None:
        """The commit that a branch, pull request or commit id names."""
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What `revision` holds."""
        return {name: file.data for name, file in self.commits[self.branches[revision]].items()}


@dataclass
class Fault:
    """What goes wrong with a request, as often as `times`.

    Attributes:
        method, path: Of the requests it happens to; `path` is a regular expression.
        status: Answer so.
        cut: Close the connection within the body of the request, or half through the answer's.
        flip: Answer with one byte changed, at this place.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    cut: bool = False
    flip: int | None = None


class Hub(ThreadingHTTPServer):
    """The server, and what it holds.

    Attributes:
        repositories: By ``user/name``.
        objects: Large files that were uploaded, by SHA-256.
        log: Every request: ``METHOD path``.
        faults: Those to come.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[str] = []
        self.faults: list[Fault] = []

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, counted."""
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def requests(self, start: str) -> list[str]:
        """Entries of the log that begin like that."""
        return [line for line in self.log if line.startswith(start)]

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are what the tests are about."""


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub while the context lasts."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def connect(patch: pytest.MonkeyPatch, server: Hub, cache: Path) -> None:
    """Let the client in this process speak to `server`, with files under `cache`."""
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "ENDPOINT", server.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("HF_TOKEN", TOKEN)
    # The client waits between its own attempts, half a minute in all.
    patch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture(name="hub")
def hub_of_a_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub of a test's own, connected, with an empty cache."""
    with serve() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        yield server


class _Refusal(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: str = "", body: Any = None, commit: str = "") -> None:
        super().__init__(status)
        self.status, self.body = status, {"error": code or str(status)} if body is None else body
        self.headers = {"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": commit}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Not on stderr: `Hub.log` has it."""

    def do_GET(self) -> None:
        """Every method."""
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        path = unquote(parts.path)
        self.server.log.append(f"{self.command} {path}")
        self.fault = self.server.take_fault(self.command, path)
        try:
            self._answer(path, parts.path)
        except _Refusal as refusal:
            self._send_json(refusal.body, refusal.status, refusal.headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self, path: str, quoted: str) -> None:
        body = self._body()
        if self.fault is not None and self.fault.status is not None:
            raise _Refusal(self.fault.status)
        if found := re.fullmatch("/_objects/([0-9a-f]{64})", path):
            return self._store(found[1], body)
        if path == "/api/validate-yaml":
            wrong = [{"message": '"license" must be one of [mit]'}] * (b"license: nonsense" in body)
            return self._send_json({"errors": wrong, "warnings": []}, status=400 if wrong else 200)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if found := re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", quoted):
            return self._resolve(found[1], unquote(found[2]), unquote(found[3]))
        if found := re.fullmatch(
            "/api/models/([^/]+/[^/]+)(?:/([^/]+)/([^/]+)(?:/(.*))?)?", quoted
        ):
            name, action, revision, rest = found.groups()
            return self._model(name, action, unquote(revision or "main"), rest or "", body)
        raise _Refusal(404)

    def _body(self) -> bytes:
        """The request's body; not to its end where the fault cuts it."""
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        length = int(self.headers.get("Content-Length", 0))
        if self.fault is not None and self.fault.cut and (chunked or length):
            self.rfile.read1(100)
            self._hang_up()
        return b"".join(self._chunks()) if chunked else self.rfile.read(length)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _hang_up(self) -> None:
        self.close_connection = True
        raise ConnectionAbortedError

    # Writing

    def _check_writer(self, name: str) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refusal(401)
        if name.split("/")[0] != OWNER:
            raise _Refusal(403, "Forbidden")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        self._check_writer(name)
        answer = {"url": f"{self.server.url}/{name}", "name": name}
        if name in self.server.repositories:
            raise _Refusal(409, "Conflict", answer)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repositories[name] = Repository(private=bool(private))
        self._send_json(answer)

    def _batch(self, asked: dict[str, Any]) -> None:
        """Git LFS: where to put the large files that are not there yet."""
        objects = []
        for entry in asked["objects"]:
            found = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.server.objects:
                href = f"{self.server.url}/_objects/{entry['oid']}"
                found["actions"] = {"upload": {"href": href}}
            objects.append(found)
        self._send_json({"transfer": "basic", "objects": objects})

    def _store(self, name: str, body: bytes) -> None:
        if sha256(body).hexdigest() != name:
            raise _Refusal(400, "BadDigest")
        self.server.objects[name] = body
        self._send(b"")

    def _commit(self, repository: Repository, revision: str, body: bytes) -> dict[str, Any]:
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(repository.commits[repository.branches[revision]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = File(self.server.objects[value["oid"]], lfs=True)
            elif line["key"] == "header":
                repository.titles.append(value["summary"])
        commit = sha1(f"{len(repository.commits)}{sorted(files)}".encode()).hexdigest()
        repository.commits[commit] = files
        answer = {
            "success": True,
            "commitOid": commit,
            "commitUrl": f"{self.server.url}/c/{commit}",
        }
        if "create_pr" in self.query:
            number = sum(name.startswith("refs/pr/") for name in repository.branches) + 1
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.server.url}/discussions/{number}"
        repository.branches[revision] = commit
        return answer

    # Reading

    def _repository(self, name: str) -> Repository:
        repository = self.server.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            raise _Refusal(404, "RepoNotFound")
        return repository

    def _model(self, name: str, action: str | None, revision: str, rest: str, body: bytes) -> None:
        repository = self._repository(name)
        if action == "branch":
            self._check_writer(name)
            if revision in repository.branches:
                raise _Refusal(409, "Conflict")
            repository.branches[revision] = repository.branches["main"]
            return self._send_json({})
        commit = repository.find(revision)
        if commit is None:
            raise _Refusal(404, "RevisionNotFound")
        files = repository.commits[commit]
        if action == "preupload":
            self._check_writer(name)
            return self._send_json({"files": [_mode(f, files) for f in json.loads(body)["files"]]})
        if action == "commit":
            self._check_writer(name)
            return self._send_json(self._commit(repository, revision, body))
        if action == "tree":
            found = {path: file for path, file in files.items() if path.startswith(rest)}
            if not found:
                raise _Refusal(404, "EntryNotFound", commit=commit)
            return self._send_json([_entry(path, file) for path, file in sorted(found.items())])
        if action in (None, "revision"):
            return self._send_json(_info(name, commit, repository, files))
        raise _Refusal(404)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        commit = repository.find(revision)
        if commit is None:
            raise _Refusal(404, "RevisionNotFound")
        file = repository.commits[commit].get(path)
        if file is None:
            raise _Refusal(404, "EntryNotFound", commit=commit)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(file.data, 200, headers)
        first, last = int(asked[1]), int(asked[2] or len(file.data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(file.data)}"
        self._send(file.data[first : last + 1], 206, headers)

    # Answers

    def _send_json(
        self, value: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        kind = {"Content-Type": "application/json"}
        self._send(json.dumps(value).encode(), status, {**kind, **(headers or {})})

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        fault = self.fault
        if fault is not None and fault.flip is not None:
            changed = bytearray(data)
            changed[fault.flip] ^= 1
            data = bytes(changed)
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.cut:
            self.wfile.write(data[: len(data) // 2])
            self._hang_up()
        self.wfile.write(data)


def _mode(asked: dict[str, Any], files: dict[str, File]) -> dict[str, Any]:
    """How a file is to be uploaded, and what is there already."""
    path = asked["path"]
    large = path.endswith((".safetensors", ".png"))
    there = files[path].etag if path in files else None
    mode = "lfs" if large else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": there}


def _entry(path: str, file: File) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(file.data), "oid": file.blob}
    if file.lfs:
        entry["lfs"] = {"oid": file.etag, "size": len(file.data), "pointerSize": 130}
    return entry


def _info(name: str, commit: str, repository: Repository, files: dict[str, File]) -> dict[str, Any]:
    """What the Hub says of a model: the head of its card, above all."""
    text = files["README.md"].data.decode() if "README.md" in files else ""
    card = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    return {
        "_id": name,
        "id": name,
        "modelId": name,
        "sha": commit,
        "private": repository.private,
        "tags": card.get("tags", []),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card,
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": path} for path in files],
    }
