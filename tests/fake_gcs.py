"""A Google Cloud Storage of one process: the part of its JSON API that gcsfs, Orbax and tensorstore use, in memory.

The real clients talk to it over HTTP on 127.0.0.1, so what is tested is their requests, not stand-ins for them. As in the
service, an object appears whole or not at all, has a generation that each write changes, and cannot be appended to.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec.config
import pytest

#: Entries of one page of a listing; small, so that every test of a run folder turns pages.
PAGE = 7


@dataclasses.dataclass(frozen=True)
class Object:
    """One object of a bucket."""

    data: bytes
    generation: int
    kind: str


class Problem(Exception):
    """An answer other than success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class FakeGcs:
    """The buckets, and what happened to them.

    Attributes:
        objects: bucket -> name -> object.
        requests: ``METHOD name`` of every request for an object, in order.
        refuse: a pattern of ``METHOD bucket/name``; requests that match it get 403, which clients do not try again.
    """

    def __init__(self, *buckets: str) -> None:
        self.objects: dict[str, dict[str, Object]] = {bucket: {} for bucket in buckets}
        self.requests: list[str] = []
        self.refuse: str | None = None
        self.url = ""
        self._lock = threading.Lock()
        self._generations = itertools.count(1)
        self._uploads: dict[str, tuple[str, str, Mapping[str, str], bytearray]] = {}

    # What tests ask for.

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Names of the objects below `prefix`, in order."""
        return sorted(name for name in self.objects[bucket] if name.startswith(prefix))

    def text(self, bucket: str, name: str) -> str:
        """The text of an object."""
        return self.objects[bucket][name].data.decode()

    def environment(self) -> dict[str, str]:
        """Variables that lead the clients here, without credentials and without looking for a metadata server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
            "FSSPEC_GCS_TOKEN": "anon",
            # The kind of a bucket is asked for by gRPC, which is not spoken here.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    # What the API does.

    def bucket(self, name: str) -> dict[str, Object]:
        """The objects of a bucket; 404 where there is none."""
        if name not in self.objects:
            raise Problem(404, f"The specified bucket {name} does not exist.")
        return self.objects[name]

    def get(self, bucket: str, name: str) -> Object:
        """An object; 404 where there is none."""
        found = self.bucket(bucket).get(name)
        if found is None:
            raise Problem(404, f"No such object: {bucket}/{name}")
        return found

    def put(self, bucket: str, name: str, data: bytes, kind: str, query: Mapping[str, str]) -> Object:
        """Write an object where the preconditions hold."""
        with self._lock:
            self.check(bucket, name, query)
            made = Object(data, next(self._generations), kind)
            self.bucket(bucket)[name] = made
            return made

    def delete(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        """Remove an object where the preconditions hold."""
        with self._lock:
            self.get(bucket, name)
            self.check(bucket, name, query)
            del self.bucket(bucket)[name]

    def check(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        """412 where the object is of another generation than asked for; 0 stands for none."""
        found = self.bucket(bucket).get(name)
        generation = found.generation if found else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            raise Problem(412, "At least one of the pre-conditions you specified did not hold.")
        if "generation" in query and int(query["generation"]) != generation:
            raise Problem(404, f"No such object: {bucket}/{name}#{query['generation']}")

    def list(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        """One page of names and, with a delimiter, of folders."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        with self._lock:
            objects = dict(self.bucket(bucket))
        entries: dict[str, Object | None] = {}
        for name in sorted(objects):
            inside = name.startswith(prefix) and name >= query.get("startOffset", "")
            if not inside or ("endOffset" in query and name >= query["endOffset"]):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                entries[prefix + rest.split(delimiter)[0] + delimiter] = None
            else:
                entries[name] = objects[name]
        later = [name for name in sorted(entries) if name > query.get("pageToken", "")]
        page = later[: min(PAGE, int(query.get("maxResults", PAGE)))]
        found: dict[str, Any] = {"kind": "storage#objects"}
        found["items"] = [describe(bucket, name, made) for name in page if (made := entries[name])]
        found["prefixes"] = [name for name in page if entries[name] is None]
        if len(later) > len(page):
            found["nextPageToken"] = page[-1]
        return found

    def begin_upload(self, bucket: str, name: str, kind: str, query: Mapping[str, str]) -> str:
        """Start a resumable upload; its number."""
        self.bucket(bucket)
        number = str(next(self._generations))
        self._uploads[number] = (bucket, name, {**query, "kind": kind}, bytearray())
        return number

    def go_on_with_upload(self, number: str, data: bytes, last: bool) -> tuple[str, str, Object] | int:
        """Take a part: the object where it is the last one, how many bytes there are where not."""
        bucket, name, query, held = self._uploads[number]
        held += data
        if not last:
            return len(held)
        del self._uploads[number]
        return bucket, name, self.put(bucket, name, bytes(held), query["kind"], query)


def describe(bucket: str, name: str, found: Object) -> dict[str, Any]:
    """An object's metadata."""
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{found.generation}",
        "name": name,
        "bucket": bucket,
        "generation": str(found.generation),
        "metageneration": "1",
        "contentType": found.kind,
        "size": str(len(found.data)),
        "md5Hash": base64.b64encode(hashlib.md5(found.data).digest()).decode(),
        "etag": f"e{found.generation}",
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "updated": "2026-01-01T00:00:00.000Z",
    }


class Handler(BaseHTTPRequestHandler):
    """Requests to methods of FakeGcs."""

    protocol_version = "HTTP/1.1"
    #: Answers are small and written in two parts: without this each would wait for the other side's acknowledgement.
    disable_nagle_algorithm = True
    gcs: FakeGcs

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send one answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, found: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        """Send JSON."""
        body = json.dumps(found).encode()
        self.answer(200, body, {"Content-Type": "application/json; charset=UTF-8", **(headers or {})})

    def handle_request(self) -> None:
        """Route one request."""
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.route(parts.path, query, body)
        except Problem as problem:
            error = {"error": {"code": problem.status, "message": str(problem), "errors": []}}
            self.answer(problem.status, json.dumps(error).encode(), {"Content-Type": "application/json"})

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_request  # noqa: N815

    def note(self, bucket: str, name: str) -> None:
        """Keep a request for an object, and refuse it where a test says so."""
        line = f"{self.command} {name}"
        self.gcs.requests.append(line)
        if self.gcs.refuse is not None and re.search(self.gcs.refuse, f"{self.command} {bucket}/{name}"):
            raise Problem(403, f"nobody does not have access to {bucket}/{name}")

    def route(self, path: str, query: dict[str, str], body: bytes) -> None:
        """Find the method by the path."""
        if match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            return self.upload(unquote(match[1]), query, body)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)", path):
            return self.rewrite([unquote(part) for part in match.groups()], query)
        if match := re.fullmatch(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)", path):
            return self.object(unquote(match[1]), unquote(match[2]), query)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/?", path):
            return self.answer_json(self.gcs.list(unquote(match[1]), query))
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/?", path):
            self.gcs.bucket(unquote(match[1]))
            return self.answer_json({"kind": "storage#bucket", "name": unquote(match[1]), "id": match[1]})
        raise Problem(501, f"the fake does not know {self.command} {path}")

    def object(self, bucket: str, name: str, query: dict[str, str]) -> None:
        """Read, describe or delete an object."""
        self.note(bucket, name)
        if self.command == "DELETE":
            self.gcs.delete(bucket, name, query)
            return self.answer(204)
        self.gcs.check(bucket, name, query)
        found = self.gcs.get(bucket, name)
        if query.get("ifGenerationNotMatch") == str(found.generation):
            return self.answer(304)
        if query.get("alt") != "media":
            return self.answer_json(describe(bucket, name, found))
        headers = {"Content-Type": found.kind, "x-goog-generation": str(found.generation)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.answer(200, found.data, headers)
        size = len(found.data)
        first = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
        last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        if first > last:
            raise Problem(416, "The requested range cannot be satisfied.")
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.answer(206, found.data[first : last + 1], headers)

    def upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        """Write an object: at once, with its metadata, or part by part."""
        kind = self.headers.get("Content-Type", "")
        how = query.get("uploadType")
        if "upload_id" in query:
            return self.part(query["upload_id"], body)
        if how == "multipart":
            mark = re.search(r'boundary="?([^";]+)', kind)
            assert mark is not None
            pieces = body.split(b"--" + mark[1].encode())
            head, data = (piece.split(b"\n\n", 1) for piece in pieces[1:3])
            name, kind = json.loads(head[1])["name"], data[0].decode().partition(":")[2].strip()
            body = data[1].removesuffix(b"\n")
        else:
            name = query.get("name") or json.loads(body)["name"]
        self.note(bucket, name)
        if how == "resumable":
            number = self.gcs.begin_upload(bucket, name, kind, query)
            where = f"{self.gcs.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return self.answer(200, b"", {"Location": where})
        self.answer_json(describe(bucket, name, self.gcs.put(bucket, name, body, kind, query)))

    def part(self, number: str, body: bytes) -> None:
        """One part of a resumable upload: ``bytes FIRST-LAST/SIZE``, with ``*`` for a size that is not known yet."""
        size = self.headers["Content-Range"].rpartition("/")[2]
        last = size != "*"
        done = self.gcs.go_on_with_upload(number, body, last)
        if isinstance(done, int):
            return self.answer(308, b"", {"Range": f"bytes=0-{done - 1}"})
        self.answer_json(describe(*done))

    def rewrite(self, names: list[str], query: dict[str, str]) -> None:
        """Copy an object."""
        bucket, name, to_bucket, to_name = names
        self.note(to_bucket, to_name)
        found = self.gcs.get(bucket, name)
        made = self.gcs.put(to_bucket, to_name, found.data, found.kind, query)
        self.answer_json({"done": True, "resource": describe(to_bucket, to_name, made)})


class Server(ThreadingHTTPServer):
    """A thread a connection."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, but not that a client hung up: gcsfs asks twice at once and takes the faster answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(*buckets: str) -> Iterator[FakeGcs]:
    """The service on a free port of 127.0.0.1, with these buckets."""
    gcs = FakeGcs(*buckets)
    handler = type("BoundHandler", (Handler,), {"gcs": gcs})
    with Server(("127.0.0.1", 0), handler) as server:
        gcs.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, name="fake-gcs", daemon=True)
        thread.start()
        try:
            yield gcs
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def gcs() -> Iterator[FakeGcs]:
    """The service, and the clients of this process led to it; they remember the address, so there is one for all tests."""
    with serving() as made, pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment().items():
            patch.setenv(name, value)
        # Read from the variable when fsspec is imported, which may have been before.
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield made


@pytest.fixture
def bucket(gcs: FakeGcs) -> Iterator[str]:
    """The name of an empty bucket."""
    name = f"bucket-{len(gcs.objects)}"
    gcs.objects[name] = {}
    yield name
    gcs.refuse = None
