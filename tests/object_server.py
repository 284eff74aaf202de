"""A real S3 server (moto's), a web server and a small Hub, which can be made to fail."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any
from urllib.parse import parse_qs

import boto3
from botocore.config import Config
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_INSIDE = "the-server-itself"
"""Marks requests that never fail."""

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class Fault:
    """What goes wrong with some requests.

    Attributes:
        what: ``503``, ``403``, ``slow``, ``cut`` (the connection ends within the content),
            ``short`` (fewer bytes, as if the object ended there), or ``nameless`` (a web server
            that says no version).
        path: part of the path of the requests.
        method: their method.
        times: how many of them fail; -1: all.
    """

    what: str
    path: str
    method: str = "GET"
    times: int = -1
    seen: int = field(default=0, init=False)

    def applies(self, method: str, path: str) -> bool:
        if method != self.method or self.path not in path:
            return False
        self.seen += 1
        return self.times < 0 or self.seen <= self.times


class ObjectServer:
    """Objects at ``s3://``, at ``http://…/web/BUCKET/KEY`` and at ``hf://datasets/o/BUCKET/KEY``."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.requests: Counter[tuple[str, str]] = Counter()
        """(method, path) -> number of requests."""
        self._moto: Application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = KEYS | {
            "AWS_ENDPOINT_URL": self.address,
            "HF_ENDPOINT": f"{self.address}/hub",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._s3 = boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
            config=Config(user_agent_extra=_INSIDE),
        )

    def close(self) -> None:
        self._server.shutdown()

    def bucket(self, name: str) -> None:
        self._s3.create_bucket(Bucket=name)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self._s3.put_object(Bucket=bucket, Key=key, Body=content)

    def get(self, bucket: str, key: str) -> bytes:
        content: bytes = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def remove(self, bucket: str, key: str) -> None:
        self._s3.delete_object(Bucket=bucket, Key=key)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(each["Key"] for page in pages for each in page.get("Contents", ()))

    # ------------------------------------------------------------------------ answers

    def _answer(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if _INSIDE in environ.get("HTTP_USER_AGENT", ""):
            return self._moto(environ, respond)
        self.requests[method, path] += 1
        fault = next((f for f in self.faults if f.applies(method, path)), None)
        what = fault.what if fault else None
        if what in ("503", "403"):
            respond(f"{what} Refused", [("Content-Type", "text/plain"), ("Content-Length", "0")])
            return [b""]
        if what == "slow":
            time.sleep(3)
        if path.startswith("/hub/"):
            return self._hub(environ, respond)
        if path.startswith("/web/"):
            name = path.removeprefix("/web/")
            return self._file(name, environ, respond, named=what != "nameless")
        if what not in ("cut", "short"):
            return self._moto(environ, respond)
        told: list[Any] = []
        whole = b"".join(self._moto(environ, lambda *args: told.append(args)))
        status, headers = told[0][0], dict(told[0][1])
        half = whole[: len(whole) // 2]
        if what == "short":
            headers["Content-Length"] = str(len(half))
        respond(status, list(headers.items()))
        return [half]

    def _file(
        self,
        name: str,
        environ: dict[str, Any],
        respond: Callable[..., Any],
        *,
        named: bool = True,
    ) -> Iterable[bytes]:
        bucket, _, key = name.partition("/")
        if key not in self.keys(bucket, key):
            respond("404 Not Found", [("Content-Length", "0")])
            return [b""]
        content = self.get(bucket, key)
        version = [("ETag", f'"{sha1(content).hexdigest()}"')] if named else []
        headers = [("Accept-Ranges", "bytes"), *version]
        status, part = "200 OK", content
        if asked := environ.get("HTTP_RANGE"):
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            last = min(int(end or len(content)), len(content) - 1)
            part = content[int(begin) : last + 1]
            status = "206 Partial Content"
            headers.append(("Content-Range", f"bytes {begin}-{last}/{len(content)}"))
        respond(status, [*headers, ("Content-Length", str(len(part)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else part]

    def _hub(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"].removeprefix("/hub/")
        if path.startswith("datasets/o/"):  # datasets/o/BUCKET/resolve/main/KEY
            _, _, bucket, _, _, key = path.split("/", 5)
            return self._file(f"{bucket}/{key}", environ, respond)
        _, _, _, bucket, *rest = path.split("/")  # api/datasets/o/BUCKET/…
        paths = self.keys(bucket)
        if rest[:1] == ["tree"]:
            inside = "/".join(rest[2:])
            found = [each for each in paths if each.startswith(f"{inside}/" if inside else "")]
            recursive = "recursive" in environ.get("QUERY_STRING", "").lower()
            depth = len(inside.split("/")) + 1 if inside else 1
            names = {each if recursive else "/".join(each.split("/")[:depth]) for each in found}
            answer: Any = [self._told(bucket, name) for name in sorted(names)]
        elif rest[:1] == ["paths-info"]:
            size = int(environ.get("CONTENT_LENGTH") or 0)
            asked = parse_qs(environ["wsgi.input"].read(size).decode()).get("paths", [])
            answer = [self._told(bucket, name) for name in asked if name in paths]
        else:
            answer = {"id": f"o/{bucket}", "sha": "0" * 40, "siblings": []}
        data = json.dumps(answer).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
        respond("200 OK", headers)
        return [data]

    def _told(self, bucket: str, key: str) -> dict[str, Any]:
        if key not in self.keys(bucket, key):
            return {"type": "directory", "path": key, "oid": "0" * 40}
        content = self.get(bucket, key)
        oid = sha1(content).hexdigest()
        return {"type": "file", "path": key, "size": len(content), "oid": oid}
