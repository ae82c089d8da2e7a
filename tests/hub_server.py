"""A loopback stand-in for the Hugging Face Hub: the routes that huggingface_hub uses here, with faults to switch on."""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
import yaml

LARGE = (".safetensors", ".bin")
FILE_URL = "/{repo_id}/resolve/{revision}/{filename}"


@dataclass
class Repository:
    """Files by path, for each revision; a commit's hash follows from its files."""

    revisions: dict[str, dict[str, bytes]]
    private: bool = False

    def commit(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Returns the hash and the files of a branch or a commit."""
        for name, files in self.revisions.items():
            digest = hashlib.sha1(
                "".join(name + etag(name, files[name]) for name in sorted(files)).encode()
            ).hexdigest()
            if revision in (name, digest):
                return digest, files
        return None


@dataclass
class HubServer:
    """The server and its switches.

    Attributes:
        token: the only one that is valid.
        gated: repositories whose files need that token.
        status: answer everything with this status (503).
        drop_after: file -> bytes after which its transfer is cut, once.
        reset: cut with a TCP reset, and not by closing the connection.
        requests: method, path and headers of each request, in order.
    """

    token: str = "hf_good"
    gated: set[str] = field(default_factory=set)
    status: int | None = None
    drop_after: dict[str, int] = field(default_factory=dict)
    reset: bool = False
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list, repr=False)

    def __enter__(self) -> "HubServer":
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Closes the port and what is connected to it: connections are refused from here on."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def serve(self, repo: str, folder: Path, revision: str = "main", /, **more: bytes | None) -> None:
        """Adds a repository with the files of a folder; `more` adds files or, with None, leaves them out."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        files = {name: content for name, content in (files | more).items() if content is not None}
        self.repositories.setdefault(repo, Repository({})).revisions[revision] = files

    @property
    def fetched(self) -> Counter[str]:
        """How often each file's content was asked for."""
        paths = (re.search(r"/resolve/[^/]+/(.*)", path) for method, path, _ in self.requests if method == "GET")
        return Counter(match[1] for match in paths if match)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[HubServer]:
    """The server in place of the Hub; the cache is empty, and there is no token."""
    with HubServer() as server:
        values = {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": server.url + FILE_URL, "HF_HUB_OFFLINE": False,
                  "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN_PATH": str(tmp_path / "token"),
                  "HF_HUB_DISABLE_XET": True}  # fmt: skip
        for name, value in values.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
        ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", "tree"),
        ("HEAD|GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "file"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/main", "preupload"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(\w+)", "put_large"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/main", "commit"),
    )

    def setup(self) -> None:
        """Lets the server know of the connection."""
        super().setup()
        self.hub.connections.append(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test output clean."""

    def answer(self) -> None:
        """Records the request and calls the route's method."""
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if self.hub.status:
            return self.reply(self.hub.status)
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {self.hub.token}") and not path.startswith("/lfs/"):
            return self.reply(401, message="Invalid credentials in Authorization header")
        if self.command in ("POST", "PUT") and given is None and not path.startswith("/lfs/"):
            return self.reply(401, message="Invalid username or password.")
        for methods, pattern, name in self.ROUTES:
            if re.fullmatch(methods, self.command) and (match := re.fullmatch(pattern, path)):
                return getattr(self, name)(*match.groups())
        return self.reply(404)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def reply(
        self, status: int, content: Any = None, code: str | None = None, message: str | None = None, **headers: str
    ) -> None:
        """Sends JSON."""
        body = json.dumps(content if content is not None else {"error": message}).encode()
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "X-Error-Message": message, **headers}.items():
            if value is not None:
                self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def found(self, repo: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """Returns a commit, or replies that there is none."""
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and not self.headers.get("Authorization")):
            self.reply(404, code="RepoNotFound", message="Repository not found")
            return None
        commit = repository.commit(revision or "main")
        if commit is None:
            self.reply(404, code="RevisionNotFound", message="Invalid rev id")
        return commit

    def info(self, repo: str, revision: str | None) -> None:
        """The repository and its files."""
        if found := self.found(repo, revision):
            siblings = [{"rfilename": name, **facts(name, content, "blobId")} for name, content in found[1].items()]
            private = self.hub.repositories[repo].private
            self.reply(200, {"id": repo, "sha": found[0], "private": private, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        """The files again, as `list_repo_tree` reads them."""
        if found := self.found(repo, revision):
            self.reply(200, [{"type": "file", "path": name, **facts(name, content, "oid")}
                             for name, content in found[1].items()])  # fmt: skip

    def file(self, repo: str, revision: str, name: str) -> None:
        """One file, or the rest of it."""
        found = self.found(repo, revision)
        if found is None:
            return None
        if repo in self.hub.gated and not self.headers.get("Authorization"):
            return self.reply(403, code="GatedRepo", message="Access to this model is restricted")
        if name not in found[1]:
            return self.reply(404, code="EntryNotFound", X_Repo_Commit=found[0])
        content = found[1][name]
        start = int((re.search(r"bytes=(\d+)-", self.headers.get("Range") or "") or [0, 0])[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag(name, content)}"')
        self.send_header("X-Repo-Commit", found[0])
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        limit = self.hub.drop_after.pop(name, None)
        self.wfile.write(content[start:] if limit is None else content[start : start + limit])
        return self.cut() if limit is not None else None

    def cut(self) -> None:
        """Ends the connection in the middle of a reply."""
        self.wfile.flush()
        if self.hub.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    def create(self) -> None:
        """Creates a repository, or says that it exists."""
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        if not repo.startswith("me/"):
            return self.reply(403, message="You don't have the rights to create a model under this namespace")
        status = 409 if repo in self.hub.repositories else 200
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self.hub.repositories.setdefault(repo, Repository({"main": {}}, private))
        return self.reply(status, {"url": f"{self.hub.url}/{repo}"})

    def validate(self) -> None:
        """Accepts a model card that has a front matter with a known licence."""
        fine = yaml.safe_load(json.loads(self.body)["content"].split("---\n")[1]).get("license")
        self.reply(200 if fine else 400, {"errors": [] if fine else [{"message": "no licence"}], "warnings": []})

    def preupload(self, repo: str) -> None:
        """Says which files are large."""
        names = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
        self.reply(200, {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})

    def batch(self, _: str) -> None:
        """Says where large files go."""
        objects = json.loads(self.body)["objects"]
        places = [item | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}} for item in objects]
        self.reply(200, {"transfer": "basic", "objects": places})

    def put_large(self, oid: str) -> None:
        """Takes one large file."""
        self.hub.large[oid] = self.body
        self.reply(200 if hashlib.sha256(self.body).hexdigest() == oid else 400)

    def commit(self, repo: str) -> None:
        """Puts the uploaded files into the main branch."""
        files = self.hub.repositories[repo].revisions["main"]
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        self.reply(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40})


@lru_cache
def etag(name: str, content: bytes) -> str:
    """The name of a file's content: SHA-256 of a large file, git's SHA-1 of a small one."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def facts(name: str, content: bytes, key: str) -> dict[str, Any]:
    """Size and content name of a file, as the API gives them."""
    oid = etag(name, content)
    large = {"lfs": {"sha256": oid, "oid": oid, "size": len(content), "pointerSize": 134}}
    return {"size": len(content), key: oid[:40]} | (large if name.endswith(LARGE) else {})
