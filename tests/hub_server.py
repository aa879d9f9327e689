"""A stand-in for the Hugging Face Hub on loopback, as much of its HTTP interface as the real client uses for models.

Point the client at it with HF_ENDPOINT, and turn its own transfer protocol off with HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class HubServer:
    """Repositories in memory, served from a thread.

    Attributes:
        url: Address to give as HF_ENDPOINT.
        token: The token that writing, and reading a private repository, takes.
        repos: Files of each repository by path, its commits from first to last, and whether it is private.
        requests: How many requests came, by method and kind: ("GET", "resolve") counts downloads.
        fault: What goes wrong with downloads: "truncate" sends half of a file, "corrupt" other bytes of the same
            number, "gated" and "unavailable" refuse; None is nothing.
    """

    def __init__(self):
        self.token = "hf_stand_in"
        self.repos = {}
        self.objects = {}
        self.requests = Counter()
        self.fault = None
        server = self

        class Handler(_Handler):
            hub = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @contextmanager
    def failing(self, fault: str):
        """Lets downloads go wrong for a while."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None

    def add(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> None:
        """Adds files to a repository in one commit; makes the repository if there is none."""
        repo = self.repos.setdefault(repo_id, dict(files={}, commits=[], private=private))
        repo["files"].update(files)
        repo["commits"].append(hashlib.sha1(f"{repo_id} {len(repo['commits'])}".encode()).hexdigest())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        routes = (
            ("resolve", r"/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", self._resolve),
            ("create", r"/api/repos/create", self._create),
            ("yaml", r"/api/validate-yaml", lambda body: self._json({"errors": [], "warnings": []})),
            ("preupload", r"/api/models/(?P<repo_id>[^/]+/[^/]+)/preupload/[^/]+", self._preupload),
            ("commit", r"/api/models/(?P<repo_id>[^/]+/[^/]+)/commit/[^/]+", self._commit),
            ("info", r"/api/models/(?P<repo_id>[^/]+/[^/]+?)(/revision/[^/]+)?", self._info),
            ("batch", r"/(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            ("object", r"/objects/(?P<oid>[0-9a-f]{64})", self._put_object),
        )
        for kind, pattern, function in routes:
            if match := re.fullmatch(pattern, path):
                self.hub.requests[self.command, kind] += 1
                return function(body=body, **match.groupdict())
        self.hub.requests[self.command, path] += 1
        self._refuse(404, "not of this stand-in")

    @property
    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _send(self, status: int, body: bytes = b"", **headers: str):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content):
        self._send(200, json.dumps(content).encode(), Content_Type="application/json")

    def _refuse(self, status: int, message: str, code: str = ""):
        self._send(status, X_Error_Message=message, **({"X_Error_Code": code} if code else {}))

    def _find(self, repo_id: str):
        """The repository, or None after the refusal that the Hub gives: it does not tell missing from private."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo["private"] and not self._authorized):
            return self._refuse(404 if self._authorized else 401, "Repository not found", "RepoNotFound")
        return repo

    def _resolve(self, body, repo_id, revision, name):
        if (repo := self._find(repo_id)) is None:
            return
        if self.hub.fault == "gated":
            return self._refuse(403, f"Access to model {repo_id} is restricted", "GatedRepo")
        if self.hub.fault == "unavailable":
            return self._refuse(503, "Service Unavailable")
        if revision not in ("main", *repo["commits"]):
            return self._refuse(404, "Invalid rev id", "RevisionNotFound")
        if name not in repo["files"]:
            return self._refuse(404, "Entry not found", "EntryNotFound")
        data = repo["files"][name]
        is_large = name.endswith((".safetensors", ".bin"))
        etag = (hashlib.sha256 if is_large else hashlib.sha1)(data).hexdigest()
        headers = dict(ETag=f'"{etag}"', X_Repo_Commit=repo["commits"][-1], Accept_Ranges="bytes")
        if self.command == "GET" and is_large and self.hub.fault == "truncate":
            return self._send(200, data[: len(data) // 2], **headers)
        if self.command == "GET" and is_large and self.hub.fault == "corrupt":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if start := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            first = int(start[1])
            headers["Content_Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[first:], **headers)
        if self.command == "GET" and is_large and self.hub.fault == "break off once":
            self.hub.fault = None
            self.send_response(200)
            self.send_header("ETag", headers["ETag"])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self._send(200, data, **headers)

    def _create(self, body):
        if not self._authorized:
            return self._refuse(401, "Invalid username or password.")
        request = json.loads(body)
        repo_id = f"{request['organization']}/{request['name']}"
        if repo_id in self.hub.repos:
            return self._refuse(409, "You already created this model repo")
        private = request.get("visibility") == "private" or request.get("private") is True
        self.hub.add(repo_id, {}, private=private)
        self._json({"url": f"{self.hub.url}/{repo_id}"})

    def _preupload(self, body, repo_id):
        modes = [
            dict(path=f["path"], uploadMode="lfs" if f["path"].endswith(".safetensors") else "regular")
            for f in json.loads(body)["files"]
        ]
        self._json({"files": [dict(mode, shouldIgnore=False) for mode in modes]})

    def _batch(self, body, repo_id):
        objects = [
            dict(o, actions={"upload": {"href": f"{self.hub.url}/objects/{o['oid']}"}})
            for o in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _put_object(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._refuse(400, "wrong checksum")
        self.hub.objects[oid] = body
        self._send(200)

    def _commit(self, body, repo_id):
        if not self._authorized:
            return self._refuse(401, "Invalid username or password.")
        files = {}
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                files[item["value"]["path"]] = self.hub.objects[item["value"]["oid"]]
        self.hub.add(repo_id, files)
        commit = self.hub.repos[repo_id]["commits"][-1]
        self._json({"commitUrl": f"{self.hub.url}/{repo_id}/commit/{commit}", "commitOid": commit})

    def _info(self, body, repo_id):
        if (repo := self._find(repo_id)) is None:
            return
        siblings = [{"rfilename": name} for name in repo["files"]]
        self._json({"id": repo_id, "sha": repo["commits"][-1], "private": repo["private"], "siblings": siblings})
