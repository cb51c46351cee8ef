"""A server that answers as the Hugging Face hub does, for models in folders."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


def commit_of(folder: Path) -> str:
    """A made-up commit, as long as git's."""
    return hashlib.sha1(str(folder).encode()).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """Knows ``models``: name -> revision -> folder; the first revision is ``main``. Gated ones have no folder."""

    models: dict[str, dict[str, Path]] = {}
    requests: list[str] = []

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path.removeprefix("/")
        self.requests.append(f"{self.command} {path}")
        is_api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        name, kind, revision, file = "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])
        if name not in self.models:
            return self.refuse(401, "RepoNotFound")
        revisions = self.models[name]
        if not revisions:
            return self.refuse(403, "GatedRepo")
        folders = {**revisions, **{commit_of(folder): folder for folder in revisions.values()}}
        if revision not in folders:
            return self.refuse(404, "RevisionNotFound")
        folder = folders[revision]
        if is_api and kind == "revision":
            return self.send({"id": name, "sha": commit_of(folder), "siblings": []})
        if is_api:
            files = [path for path in sorted(folder.iterdir()) if path.is_file()]
            entries = [{"path": path.name, "size": path.stat().st_size, "oid": digest(path)} for path in files]
            return self.send([{"type": "file", **entry} for entry in entries])
        if not (folder / file).is_file():
            return self.refuse(404, "EntryNotFound")
        content = (folder / file).read_bytes()
        headers = {"X-Repo-Commit": commit_of(folder), "ETag": f'"{digest(folder / file)}"'}
        self.send(content, headers, with_body=with_body)

    def send(self, content: object, headers: dict[str, str] | None = None, *, with_body: bool = True) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serve(models: dict[str, dict[str, Path]]) -> Iterator[tuple[str, list[str]]]:
    """Serve models on this machine; gives the address and the list of requests."""
    handler = type("OwnHub", (Hub,), {"models": models, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
