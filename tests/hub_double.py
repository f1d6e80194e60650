"""A Hugging Face Hub on loopback: the few routes that a download asks for, as the Hub answers them.

`HF_ENDPOINT` points huggingface_hub at it. Routes: api/models/OWNER/REPO with /revision/REV or /tree/REV behind it,
OWNER/REPO/resolve/REV/FILE, and `plain/FILE`, which serves files without any Hub around them.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it holds: repository -> file -> bytes. A gated repository answers 403 as the Hub does."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    plain: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    hides_length: bool = False
    asked: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        if path in self.hub.redirects:
            self._send(302, b"", body, {"Location": self.hub.redirects[path]})
        elif path.startswith("plain/"):
            self._send_plain(path.removeprefix("plain/"), body)
        elif path.startswith("api/models/"):
            parts = path.removeprefix("api/models/").split("/")
            if parts[2:3] == ["tree"]:
                self._send_tree("/".join(parts[:2]), parts[3], body)
                return
            self._send_info("/".join(parts[:2]), "/".join(parts[3:]) or "main", body)
        elif "/resolve/" in path:
            owner, repo, _, revision, *file = path.split("/")
            self._send_file(f"{owner}/{repo}", revision, "/".join(file), body)
        else:
            self._send(404, b"", body)

    def _send_plain(self, name: str, body: bool) -> None:
        if name not in self.hub.plain:
            self._send(404, b"", body)
        elif name.endswith(".html"):
            self._send(200, self.hub.plain[name], body, {"Content-Type": "text/html; charset=utf-8"})
        elif name == "download":
            disposition = {"Content-Disposition": 'attachment; filename="From Civitai.safetensors"'}
            self._send(200, self.hub.plain[name], body, disposition)
        else:
            self._send(401 if name.startswith("private") else 200, self.hub.plain[name], body)

    def _send_info(self, repo: str, revision: str, body: bool) -> None:
        if not self._knows(repo, revision, body):
            return
        files = self.hub.repos[repo].items()
        siblings = [{"rfilename": name, "size": len(content), "blobId": "0"} for name, content in files]
        info = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0,
                "private": False, "gated": False, "disabled": False}  # fmt: skip
        self._send(200, json.dumps(info).encode(), body, {"Content-Type": "application/json"})

    def _send_tree(self, repo: str, revision: str, body: bool) -> None:
        if self._knows(repo, revision, body):
            files = self.hub.repos[repo].items()
            tree = [{"type": "file", "path": name, "size": len(content), "oid": "b" * 40} for name, content in files]
            self._send(200, json.dumps(tree).encode(), body, {"Content-Type": "application/json"})

    def _send_file(self, repo: str, revision: str, name: str, body: bool) -> None:
        if not self._knows(repo, revision, body):
            return
        content = self.hub.repos[repo].get(name)
        if content is None:
            self._send(404, b"", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        etag = hashlib.sha256(content).hexdigest()
        self._send(200, content, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    def _knows(self, repo: str, revision: str, body: bool) -> bool:
        if repo in self.hub.gated:
            self._send(403, b"", body, {"X-Error-Code": "GatedRepo"})
        elif repo not in self.hub.repos:
            self._send(401, b"", body, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self._send(404, b"", body, {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not (self.hub.hides_length and body):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
