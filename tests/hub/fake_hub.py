"""A Hugging Face Hub on the loopback interface: the routes that pushing and loading a repository need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """Repositories in memory: each commit is a dictionary of files. Requests of other routes are collected."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.unexpected: list[str] = []
        self.downloaded: list[str] = []

        class Handler(_Handler):
            hub = self

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes]) -> None:
        """A repository with one more commit."""
        commits = self.commits.setdefault(repo_id, [])
        commits.append({**(commits[-1] if commits else {}), **files})

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Files of the newest commit."""
        return self.commits[repo_id][-1]


def sha(repo_id: str, number: int) -> str:
    return hashlib.sha1(f"{repo_id} {number}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def answer(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def unknown(self) -> None:
        self.hub.unexpected.append(f"{self.command} {self.path}")
        self.answer({"error": "no such route"}, 404)

    def missing(self, code: str) -> None:
        self.answer({"error": "not found"}, 404, {"X-Error-Code": code, "X-Error-Message": "not found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if path == "/api/repos/create":
            about = json.loads(body)
            name = f"{about.get('organization') or 'tester'}/{about['name']}"
            self.hub.commits.setdefault(name, [])
            return self.answer({"url": f"{self.hub.address}/{name}", "id": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)/(preupload|commit)/main", path):
            repo_id, action = found.groups()
            if action == "preupload":
                wanted = json.loads(body)["files"]
                files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in wanted]
                return self.answer({"files": files})
            lines = [json.loads(line) for line in body.splitlines()]
            added = [line["value"] for line in lines if line["key"] == "file"]
            self.hub.add(repo_id, {one["path"]: base64.b64decode(one["content"]) for one in added})
            oid = sha(repo_id, len(self.hub.commits[repo_id]))
            url = f"{self.hub.address}/{repo_id}/commit/{oid}"
            return self.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})
        return self.unknown()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)(?:/(revision|tree)/(\w+))?", path):
            repo_id, kind, _ = found.groups()
            if not self.hub.commits.get(repo_id):
                return self.missing("RepoNotFound")
            files, newest = self.hub.files(repo_id), sha(repo_id, len(self.hub.commits[repo_id]))
            if kind == "tree":
                rows = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                return self.answer(rows)
            siblings = [{"rfilename": name} for name in files]
            return self.answer({"id": repo_id, "modelId": repo_id, "sha": newest, "siblings": siblings})
        if found := re.fullmatch(r"/(\w+/[\w.-]+)/resolve/(\w+)/(.+)", path):
            repo_id, _, name = found.groups()
            if not self.hub.commits.get(repo_id):
                return self.missing("RepoNotFound")
            files = self.hub.files(repo_id)
            if name not in files:
                return self.missing("EntryNotFound")
            data = files[name]
            if self.command == "GET":
                self.hub.downloaded.append(name)
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
            headers["X-Repo-Commit"] = sha(repo_id, len(self.hub.commits[repo_id]))
            return self.answer(data, headers=headers)
        return self.unknown()

    do_HEAD = do_GET
