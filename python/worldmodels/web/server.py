"""Server of one page on the loopback interface."""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "wasm": "application/wasm",
    "webp": "image/webp",
}


class PageServer(ThreadingHTTPServer):
    """HTTP server of files in memory, on a free port of the loopback interface. It reads nothing from disk.

    Args:
        files: Name -> contents; ``index.html`` is also served as ``/``.
        policy: Content-Security-Policy of every answer.
    """

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes], policy: str) -> None:
        super().__init__((HOST, 0), _Handler)
        self.files = {f"/{name}": content for name, content in files.items()}
        self.files["/"] = self.files["/index.html"]
        self.policy = policy

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the page's files."""

    server: PageServer
    server_version, sys_version = "worldmodels", ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with a file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer with the headers of a file."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        # A page of another name that resolves to the loopback address (DNS rebinding) has that name as its host.
        if self.headers.get("Host") not in (
            f"{HOST}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        path = self.path.partition("?")[0]
        content = self.server.files.get(path)
        if content is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        suffix = (path if path != "/" else "/index.html").rpartition(".")[2]
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _TYPES.get(suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def end_headers(self) -> None:
        """Add the headers of every answer, errors included."""
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def serve(files: Mapping[str, bytes], policy: str) -> None:
    """Serve a page and open the browser, until Ctrl-C."""
    with PageServer(files, policy) as server:
        print(f"page: {server.url} (Ctrl-C stops)", flush=True)
        webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
