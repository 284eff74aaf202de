"""Serve folders as datasets of the Hugging Face Hub, on this machine."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = ".commit"
"""The file of a dataset's folder with the only commit that it has; it is not served."""

GATED = ".gated"
"""A dataset with this file needs a token."""

_API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.*)")


@contextmanager
def served(root: Path) -> Iterator[str]:
    """Serve the folders ``root/OWNER/NAME``; yield the address for ``HF_ENDPOINT``."""
    handler = type("Handler", (_Handler,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path)
        found = _API.fullmatch(path) or _FILE.fullmatch(path)
        folder = self.root / found[1] if found else None
        if found is None or folder is None or not folder.is_dir():
            return self._fails(404, "RepoNotFound")
        commit = (folder / COMMIT).read_text()
        if found[found.re.groups - 1 if found.re is _FILE else 3] not in (None, "main", commit):
            return self._fails(404, "RevisionNotFound")
        if found.re is _FILE:
            if (folder / GATED).exists() and "Authorization" not in self.headers:
                return self._fails(401, "GatedRepo")
            return self._file(folder / found[3], commit)
        match found[2]:
            case "tree":
                recursive = parse_qs(url.query).get("recursive") == ["true"]
                self._tree(folder, folder / (found[4] or ""), recursive)
            case "paths-info":
                paths = json.loads(self.sent)["paths"]
                self._say([_entry(folder, folder / p) for p in paths if (folder / p).exists()])
            case _:
                names = [{"rfilename": entry["path"]} for entry in _entries(folder, folder)]
                self._say({"_id": "0", "id": found[1], "sha": commit, "siblings": names})
        return None

    def _tree(self, folder: Path, below: Path, recursive: bool) -> None:
        if not below.is_dir():
            return self._fails(404, "EntryNotFound")
        found = below.rglob("*") if recursive else below.iterdir()
        return self._say([_entry(folder, path) for path in sorted(found) if path.name[0] != "."])

    def _file(self, path: Path, commit: str) -> None:
        if not path.is_file():
            return self._fails(404, "EntryNotFound")
        data = path.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_digest(path)}"'}
        status, part = 200, data
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            status, part = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._say(part, status, headers)

    def _fails(self, status: int, code: str) -> None:
        self._say({"error": code}, status, {"X-Error-Code": code})

    def _say(self, content: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "octet-stream" if isinstance(content, bytes) else "json"
        self.send_response(status)
        about = {"Content-Type": f"application/{kind}", "Content-Length": str(len(data))}
        for name, value in (about | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entries(folder: Path, below: Path) -> list[dict[str, object]]:
    return [
        _entry(folder, path)
        for path in sorted(below.rglob("*"))
        if path.is_file() and path.name[0] != "."
    ]


def _entry(folder: Path, path: Path) -> dict[str, object]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": _digest(path), "size": path.stat().st_size}


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
