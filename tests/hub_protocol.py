"""The HTTP side of tests.hub: the requests that huggingface_hub 2.4 makes, and their answers.

What a request means was read in huggingface_hub's hf_api, lfs, _commit_api and file_download; how
errors are told apart, in its utils/_http.py (hf_raise_for_status).
"""

import base64
import json
import re
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER = "hf_owner"  # a token that may read and write everything
STRANGER = "hf_stranger"  # a good token of somebody who was given access to nothing

# Over https the client takes any 401 for a missing repository; over http only this tells it. (The
# real one answers 401, not 404, to whoever is not logged in.)
ERROR_CODES = {401: "RepoNotFound", 403: "GatedRepo", 404: "EntryNotFound"}

LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0", "other")  # of many more
LARGE = (".parquet", ".safetensors", ".bin", ".jpg", ".png")  # uploaded before the commit

API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+?)"  # of a model, without a kind
AT = r"/(?P<revision>[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_card"),
    ("POST", r"/api/repos/create", "create"),
    ("GET", rf"{API}(?:/revision{AT})?", "info"),
    ("GET", rf"{API}/tree{AT}(?:/(?P<folder>.*))?", "tree"),
    ("POST", rf"{API}/paths-info{AT}", "paths_info"),
    ("GET", rf"{PAGE}/resolve{AT}/(?P<path>.+)", "resolve"),
    ("POST", rf"{API}/preupload{AT}", "plan_commit"),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", "plan_upload"),
    ("PUT", r"/upload/(?P<oid>\w+)", "upload"),
    ("POST", rf"{API}/commit{AT}", "commit"),
)


class Refused(Exception):
    """An answer other than 200, with the headers by which the client names the error."""

    def __init__(self, status, message="refused", code=None):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code
        if status == 429:
            self.headers["Retry-After"] = "0"


class Handler(BaseHTTPRequestHandler):
    """One connection to `hub`. The methods named in ROUTES answer a request, or raise Refused."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body leave together: apart, the second waits for the client

    def log_message(self, *_):
        """Print nothing; `hub.requests` has it."""

    def do_any(self):
        url = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.query = parse_qs(url.query)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.requests.append((self.command, unquote(url.path)))
        self.failure = self.hub.next_failure(self.command, unquote(url.path))
        try:
            self.route(url.path)
        except Refused as refused:
            message = str(refused)
            answer = {"error": message, "errors": [{"message": message}]}
            self.reply(answer, refused.status, refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_any

    def route(self, path):
        if isinstance(self.failure, int):
            raise Refused(self.failure, code=ERROR_CODES.get(self.failure))
        if self.token not in ("", OWNER, STRANGER):
            raise Refused(401, "Invalid credentials in Authorization header")
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, name in ROUTES:
            if wanted == method and (match := re.fullmatch(pattern, path)):
                groups = match.groupdict().items()
                return getattr(self, name)(**{key: text and unquote(text) for key, text in groups})
        raise Refused(404, f"this hub does not know {self.command} {path}")

    def reply(self, data, status=200, headers=None):
        """Send bytes, or anything else as JSON; of a HEAD the head only."""
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.failure in ("cut", "stall"):
            data, self.close_connection = data[: len(data) // 2], True
        if self.command != "HEAD":
            self.wfile.write(data)
        if self.failure == "stall":
            self.wfile.flush()
            self.hub.waiting.wait(30)

    # --- reading -------------------------------------------------------------------------------

    def repo(self, kind, name):
        repo = self.hub.repos.get((kind or "models", name))
        if repo is None or (repo.private and self.token != OWNER):
            raise Refused(404 if self.token else 401, "Repository not found", "RepoNotFound")
        return repo

    def files(self, repo, revision):
        """(sha, {path: bytes}) of "main" or of a commit."""
        sha = repo.sha if revision in (None, "main") else revision
        if sha not in repo.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha]

    def info(self, kind, name, revision):
        repo = self.repo(kind, name)
        sha, files = self.files(repo, revision)
        answer = {"id": name, "sha": sha, "private": repo.private, "gated": repo.gated, "tags": []}
        if head := _head(files.get("README.md", b"").decode()):
            answer["cardData"] = head
        self.reply({**answer, "siblings": [{"rfilename": path} for path in sorted(files)]})

    def tree(self, kind, name, revision, folder):
        _, files = self.files(self.repo(kind, name), revision)
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries = _tree(files, f"{folder}/" if folder else "", recursive)
        if folder and not entries:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        self.reply(entries)

    def paths_info(self, kind, name, revision):
        _, files = self.files(self.repo(kind, name), revision)
        wanted = parse_qs(self.body.decode()).get("paths", [])
        self.reply([entry for entry in _tree(files, "", True) if entry["path"] in wanted])

    def resolve(self, kind, name, revision, path):
        repo = self.repo(kind, name)
        if repo.gated and self.token != OWNER:
            raise Refused(403 if self.token else 401, "Access is restricted", "GatedRepo")
        sha, files = self.files(repo, revision)
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data = files[path]
        headers = {"ETag": f'"{sha256(data).hexdigest()}"', "X-Repo-Commit": sha}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.reply(data, 200, headers)
        self.hub.ranges.append(self.headers["Range"])
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if start > end:
            raise Refused(416, "Range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self.reply(data[start : end + 1], 206, headers)

    # --- writing -------------------------------------------------------------------------------

    def owner_only(self):
        if self.token != OWNER:
            raise Refused(403 if self.token else 401, "You may not write here")

    def address(self, kind, name):
        return f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}"

    def whoami(self):
        if not self.token:
            raise Refused(401, "Invalid username or password.")
        self.reply({"type": "user", "name": "me" if self.token == OWNER else "stranger"})

    def validate_card(self):
        """The client reads the card by itself; which licences exist only a hub knows."""
        licence = _head(json.loads(self.body)["content"]).get("license", "other")
        if licence not in LICENCES:
            raise Refused(400, f'"license" must be one of {", ".join(LICENCES)}')
        self.reply({"errors": [], "warnings": []})

    def create(self):
        self.owner_only()
        asked = json.loads(self.body)
        kind = f"{asked.get('type', 'model')}s"
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        there = (kind, name) in self.hub.repos
        if not there:
            private = asked.get("visibility") == "private"
            self.hub.add(kind, name, {".gitattributes": ""}, private=private)
        self.reply({"url": self.address(kind, name)}, 409 if there else 200)

    def plan_commit(self, kind, name, revision):
        """Which files go into the commit, and which are uploaded before it."""
        self.repo(kind, name)
        self.owner_only()
        files = json.loads(self.body)["files"]
        for file in files:
            file["uploadMode"] = "lfs" if file["path"].endswith(LARGE) else "regular"
            file["shouldIgnore"] = False
        self.reply({"files": files})

    def plan_upload(self, kind, name):
        self.owner_only()
        objects = json.loads(self.body)["objects"]
        for asked in objects:
            asked["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{asked['oid']}"}}
        self.reply({"transfer": "basic", "objects": objects})

    def upload(self, oid):
        if sha256(self.body).hexdigest() != oid:
            raise Refused(400, "These are not the bytes that were announced")
        self.hub.blobs[oid] = self.body
        self.reply({})

    def commit(self, kind, name, revision):
        repo = self.repo(kind, name)
        self.owner_only()
        files = dict(self.files(repo, revision)[1])
        for line in self.body.splitlines():
            self.change(files, repo.sha, **json.loads(line))
        repo.commit(files)
        url = f"{self.address(kind, name)}/commit/{repo.sha}"
        self.reply({"commitOid": repo.sha, "commitUrl": url})

    def change(self, files, sha, key, value):
        """One line of a commit, done to `files`."""
        if key == "header":
            if value.get("parentCommit", sha) != sha:
                raise Refused(412, "A commit has happened since")
        elif key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = self.hub.blobs[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
        else:
            raise Refused(400, f"this hub cannot commit a {key}")


def _head(card):
    """The metadata on top of a README.md."""
    head = re.match(r"\s*---\r?\n(.*?)\n---", card, re.DOTALL)
    return (yaml.safe_load(head[1]) or {}) if head else {}


def _tree(files, folder, recursive):
    """Files and folders below `folder`, "" or "a/b/", as /tree lists them."""
    entries = {}
    for path, data in sorted(files.items()):
        if not path.startswith(folder):
            continue
        slashes = [i for i, letter in enumerate(path) if letter == "/" and i >= len(folder)]
        for i in slashes if recursive else slashes[:1]:
            entries[path[:i]] = {"type": "directory", "path": path[:i], "oid": "", "size": 0}
        if recursive or not slashes:
            oid = sha256(data).hexdigest()
            entries[path] = {"type": "file", "path": path, "oid": oid, "size": len(data)}
    return list(entries.values())
