"""A small stand-in for the Hugging Face Hub: datasets served the way the `datasets` library asks for them, and models.

    python -m tests.hub FOLDER PORT        serves FOLDER/<owner>/<name>/... ; then HF_ENDPOINT=http://127.0.0.1:PORT

In tests: `with HubStandIn({"owner/name": {"data/train.parquet": bytes or Path, ...}}) as hub: hub.url`.
It answers what streaming asks (README, the file tree, byte ranges of files), and what the upload of a model asks.
Without a README.md one is made from `configs`: {"owner/name": {"20231101.en": {"train": "en/*.parquet"}}}.
"""

import hashlib
import io
import json
import re
import sys
import threading
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes | Path]


LARGE = 10_000  # bytes of a file that the Hub keeps outside of git
FAULTS = (429, 500, 503, 504, "drop", "truncate", "stall", "half", "page")


def no_fault(method: str, path: str, number: int) -> int | str | None:
    return None


FIRST_COMMIT = "0" * 40  # of every model: an empty one


def commits() -> list[dict]:
    """The history of a model, newest first."""
    facts = {"authors": [], "date": "2026-11-29T12:00:00.000Z", "title": "a commit", "message": ""}
    return [{"id": name, **facts} for name in ("1" * 40, FIRST_COMMIT)]


class HubStandIn:
    """Serves `repos` on a free port (or `port`) until closed.

    `fault(method, path, number_of_request)` may return a status to answer with (429 has `Retry-After: retry_after`) or
    what to do instead of answering: "drop" the connection; "truncate" the body, of which more was promised; "stall"
    until the client gives up, or after "half" the body; send a "page" of HTML with status 200, or the "whole" file
    when a part is asked for. None: answer.
    `requests` lists what was asked. `gated` repositories answer 403 as the Hub does, `private` ones 401 without the token
    "good", whose account is "me": it may make models of that account, and no others. `models` are those by name, the
    files of each after its last commit, and `branches` those of "name@branch"; what was uploaded of large ones before is
    in `objects`. With `signature` a file's
    bytes are served as the Hub serves large ones, from another host: a redirect to a presigned address that holds the
    signature, which must be given back and no token with it. `tokens` lists the Authorization headers, in order. File
    lists go on at the address `next_page`.
    """

    def __init__(
        self,
        repos: dict[str, Files],
        configs: dict[str, dict[str, dict[str, str]]] | None = None,
        *,
        port: int = 0,
        gated: tuple[str, ...] = (),
        fault: Callable[[str, str, int], int | str | None] = no_fault,
    ):
        self.repos: dict[str, Files] = {}
        for name, files in repos.items():
            self.add(name, files, (configs or {}).get(name, {}))
        self.gated, self.fault, self.retry_after = gated, fault, 1
        self.private: tuple[str, ...] = ()
        self.signature = self.next_page = ""
        self.models: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, dict[str, bytes]] = {}
        self.hidden: set[str] = set()  # models that are private
        self.objects: dict[str, bytes] = {}  # large files, by their SHA-256
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.bytes_sent = 0
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, name: str, files: Files, configs: dict[str, dict[str, str]] | None = None) -> None:
        """Serve `files` (path -> content) as the dataset `name`; `configs`: configuration -> split -> glob."""
        self.repos[name] = {"README.md": readme(configs or {}), **files}

    def revision(self, name: str) -> str:
        """40 hex digits that change with the list of files and their sizes, as a commit would."""
        listing = sorted((path, size(content)) for path, content in self.repos[name].items())
        return hashlib.sha1(json.dumps(listing).encode()).hexdigest()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "HubStandIn":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    _fault: str | None = None  # of the answer that is being sent
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for the client's delayed acknowledgement
    wbufsize = 1 << 16

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that gave up
            super().handle()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens.append(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match fault := self.hub.fault(self.command, path, len(self.hub.requests)):
            case "drop":
                self.close_connection = True
                return None
            case "stall":
                return self._wait_for_the_client_to_leave()
            case "page":
                return self._send(200, b"<html>back soon</html>", {"Content-Type": "text/html; charset=utf-8"})
            case int(status):
                headers = {"Retry-After": str(self.hub.retry_after)} if status == 429 else {}
                return self._send(status, b"out of order", headers)
        self._fault = fault
        if self.command in ("POST", "PUT") or path == "/api/whoami-v2":
            return self._upload(path, body)
        if stored := re.fullmatch(r"/stored/([^/]+/[^/]+)/(.+)", path):
            return self._stored(stored[1], stored[2])
        model = re.fullmatch("/api/models/([^/]+/[^/]+)/(tree|commits)/([^/]+)", path)
        if model and (files := self._model(model[1], model[3])) is not None:
            tree = self._tree({".gitattributes": b"", **files}, "", recursive=True)
            return self._json(tree if model[2] == "tree" else commits())
        if file := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(file[1], file[3])
        if api := re.fullmatch(
            r"/api/(?:datasets|models)/([^/]+/[^/]+?)(/revision/.+|/tree/[^/]+(/.*)?|/auth-check)?", path
        ):
            if not self._shown(api[1]):
                return self._error(401, "RepoNotFound", "Repository not found")
            if path.endswith("/auth-check"):
                if api[1] in self.hub.gated:
                    return self._error(403, "GatedRepo", "Access to this repository is restricted")
                return self._send(200, b"OK")
            found = (
                self._tree(self.hub.repos[api[1]], (api[3] or "").strip("/"))
                if "/tree/" in path
                else self._info(api[1])
            )
            if self.hub.next_page and "/tree/" in path:
                return self._json(found, Link=f'<{self.hub.next_page}>; rel="next"')
            return found and self._json(found)
        return self._error(404, "EntryNotFound", "Entry not found")

    def _upload(self, path: str, body: bytes) -> None:
        """Answer a request of the upload of a model: files of 1,000 bytes and more are large."""
        if object_ := re.fullmatch("/objects/(.+)", path):  # a presigned address, without a token
            self.hub.objects[object_[1]] = body
            return self._send(200, b"")
        if self.headers.get("Authorization") != "Bearer good":
            return self._error(401, "", "Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            return self._json({"type": "user", "name": "me"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            if not name.startswith("me/"):
                return self._error(
                    403, "", f"You don't have the rights to create a model under {asked['organization']}"
                )
            if name in self.hub.models:
                return self._json({"url": f"{self.hub.url}/{name}"}, 409)
            self.hub.models[name] = {}
            self.hub.hidden |= {name} if asked["visibility"] == "private" else set()
            return self._json({"url": f"{self.hub.url}/{name}"})
        if (asked := re.fullmatch("/api/models/(.+)/branch/(.+)", path)) and asked[1] in self.hub.models:
            if (name := f"{asked[1]}@{asked[2]}") in self.hub.branches:
                return self._json({}, 409)
            begins_empty = json.loads(body).get("startingPoint") == FIRST_COMMIT
            self.hub.branches[name] = {} if begins_empty else dict(self.hub.models[asked[1]])
            return self._json({})
        if (asked := re.fullmatch("/api/models/(.+)/preupload/(.+)", path)) and self._model(
            *asked.groups()
        ) is not None:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= 1000 else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if asked := re.fullmatch("/(.+).git/info/lfs/objects/batch", path):
            return self._json(
                {"transfer": "basic", "objects": [self._object(each) for each in json.loads(body)["objects"]]}
            )
        commit = re.fullmatch("/api/models/(.+)/commit/(.+)", path)
        if commit and (there := self._model(*commit.groups())) is not None:
            for operation in map(json.loads, body.splitlines()):
                value = operation["value"]
                if operation["key"] == "file":
                    there[value["path"]] = b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    there[value["path"]] = self.hub.objects[value["oid"]]
                elif operation["key"] == "deletedFile":
                    del there[value["path"]]
            return self._json({"commitUrl": f"{self.hub.url}/{commit[1]}/commit/1", "commitOid": "1" * 40})
        return self._error(404, "RepoNotFound", "Repository not found")

    def _model(self, name: str, revision: str) -> dict[str, bytes] | None:
        return (self.hub.models if revision == "main" else self.hub.branches).get(
            name if revision == "main" else f"{name}@{revision}"
        )

    def _object(self, asked: dict) -> dict:
        there = asked["oid"] in self.hub.objects
        upload = {"upload": {"href": f"{self.hub.url}/objects/{asked['oid']}"}}
        return {**asked, **({} if there else {"actions": upload})}

    def _json(self, body: dict | list, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})

    def _shown(self, name: str) -> bool:
        """Whether this dataset exists for whoever asks."""
        allowed = name not in self.hub.private or self.headers.get("Authorization") == "Bearer good"
        return name in self.hub.repos and allowed

    def _info(self, name: str) -> dict:
        with_facts = "blobs=true" in self.path
        siblings = [
            {"rfilename": path, **(facts(content) if with_facts else {})}
            for path, content in sorted(self.hub.repos[name].items())
        ]
        gated = "auto" if name in self.hub.gated else False
        found = {"id": name, "sha": self.hub.revision(name), "private": name in self.hub.private, "gated": gated}
        return {**found, "tags": [], "siblings": siblings}

    def _tree(self, files: Files, folder: str, *, recursive: bool = False) -> list[dict] | None:
        entries: dict[str, dict] = {}
        for path, content in sorted(files.items()):
            if folder and not path.startswith(folder + "/"):
                continue
            head, inside, _ = path.removeprefix(folder + "/" if folder else "").partition("\0" if recursive else "/")
            kind = "directory" if inside else "file"
            here = f"{folder}/{head}".strip("/")
            oid = hashlib.sha1(here.encode()).hexdigest()
            entries[here] = {"type": kind, "oid": oid, "size": 0 if inside else size(content), "path": here}
        return list(entries.values()) or self._error(404, "EntryNotFound", "Entry not found")

    def _file(self, name: str, path: str) -> None:
        if not self._shown(name):
            return self._error(401, "RepoNotFound", "Repository not found")
        if name in self.hub.gated:
            return self._error(403, "GatedRepo", "Access to this dataset is restricted")
        headers = {"X-Repo-Commit": self.hub.revision(name), "Accept-Ranges": "bytes"}
        content = self.hub.repos[name].get(path)
        if content is None:
            return self._error(404, "EntryNotFound", "Entry not found", headers)
        if self.hub.signature and path != "README.md":
            port = self.server.server_port
            query = f"X-Amz-Expires=900&X-Amz-Signature={self.hub.signature}&response-content-type=x"
            headers["Location"] = f"http://localhost:{port}/stored/{name}/{path}?{query}"
            return self._send(302, b"", headers)
        return self._content(path, content, headers)

    def _stored(self, name: str, path: str) -> None:
        """The other end of a presigned address."""
        if f"X-Amz-Signature={self.hub.signature}&" not in self.path or self.headers.get("Authorization"):
            return self._error(403, "AccessDenied", f"not signed so: {self.path}")
        return self._content(path, self.hub.repos[name][path], {"Accept-Ranges": "bytes"})

    def _content(self, path: str, content: bytes | Path, headers: dict[str, str]) -> None:
        total = size(content)
        headers["ETag"] = f'"{hashlib.sha1(f"{path}:{total}".encode()).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked or self._fault == "whole":
            return self._send(200, part(content, 0, total) if self.command == "GET" else b"", headers, total)
        start, end = int(asked[1]), min(int(asked[2] or total), total - 1) + 1
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
        return self._send(206, part(content, start, end), headers)

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        commit = {"X-Repo-Commit": "0" * 40} if code == "EntryNotFound" else {}
        self._send(
            status, message.encode(), {"X-Error-Code": code, "X-Error-Message": message, **commit, **(headers or {})}
        )

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.hub.bytes_sent += len(body)
            self.wfile.write(body[: len(body) // 2] if self._fault in ("truncate", "half") else body)
        if self._fault == "truncate":
            self.close_connection = True
        elif self._fault == "half":
            self.wfile.flush()
            self._wait_for_the_client_to_leave()

    def _wait_for_the_client_to_leave(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.recv(1)


def parquet(rows_in_group: int = 10, **columns: list) -> bytes:
    """A Parquet file of `columns`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=rows_in_group)
    return file.getvalue()


def readme(configs: dict[str, dict[str, str]]) -> bytes:
    """A dataset card whose head maps configuration -> split -> glob of files."""
    lines = ["configs:"] if configs else []
    for name, splits in configs.items():
        lines += [f'- config_name: "{name}"', "  data_files:"]
        lines += [f'  - split: {split}\n    path: "{glob}"' for split, glob in splits.items()]
    return "\n".join(["---", *lines, "---", "# A dataset", ""]).encode()


def facts(content: bytes | Path) -> dict:
    """What the Hub knows of a file: its size, and the SHA-256 of one that is too large for git."""
    total = size(content)
    digest = hashlib.sha256(part(content, 0, total)).hexdigest()
    lfs = {"lfs": {"size": total, "sha256": digest, "pointerSize": 134}} if total > LARGE else {}
    return {"size": total, **lfs}


def size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def part(content: bytes | Path, start: int, end: int) -> bytes:
    if isinstance(content, bytes):
        return content[start:end]
    with content.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def folder_repos(folder: Path) -> dict[str, Files]:
    """FOLDER/<owner>/<name>/... as repositories."""
    repos: dict[str, Files] = {}
    for path in sorted(folder.glob("*/*/**/*")):
        if path.is_file():
            owner, name, *rest = path.relative_to(folder).parts
            repos.setdefault(f"{owner}/{name}", {})["/".join(rest)] = path
    return repos


if __name__ == "__main__":
    stand_in = HubStandIn(folder_repos(Path(sys.argv[1])), port=int(sys.argv[2]))
    print(f"serving {', '.join(stand_in.repos)} at {stand_in.url}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        stand_in.close()
