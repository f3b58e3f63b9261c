"""A Hugging Face Hub on loopback: repositories to read from and push to, and its failures.

    with Hub(folder) as hub:
        hub.add("models", "me/tiny", checkpoint_folder)
        hub.fail("model.safetensors", "cut")  # the next GET of it breaks off in the middle
        subprocess.run(command, env=os.environ | hub.environment())
        print(hub.requests)

In a test, the fixture `hub` is one, and the libraries of this process use it.

Two packages were read first. hf-local-hub 3.0.0 has no server in it: its launcher looks for a Go
binary that the package does not ship. olah 0.5.4 is a read-only mirror of an upstream hub, without
create, commit or upload, and needs some twenty packages. Neither injects failures.
"""

import threading
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.hub_protocol import OWNER, Handler


@dataclass
class Repo:
    """The files of every commit so far, {sha: {path: bytes}}; `sha` is the newest."""

    gated: bool = False
    private: bool = False
    sha: str = ""
    commits: dict = field(default_factory=dict)

    def commit(self, files):
        digests = [path.encode() + sha256(data).digest() for path, data in sorted(files.items())]
        self.sha = sha1(b"\n".join([self.sha.encode(), *digests])).hexdigest()
        self.commits[self.sha] = files


class Hub:
    """One server on a free port of 127.0.0.1; `url` is known before it runs.

    `folder` is for the caches of those who use it; the repositories are in memory.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        handler = type("HandlerOfThisHub", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.lock, self.waiting = threading.Lock(), threading.Event()
        self.clear()

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def clear(self):
        """Forget every repository, failure and request; let go of the connections that stall."""
        self.repos, self.blobs, self.failures, self.requests, self.ranges = {}, {}, [], [], []
        self.waiting.set()
        self.waiting = threading.Event()

    def add(self, kind, name, files, gated=False, private=False):
        """Commit files to a repository of kind "models" or "datasets", an existing or a new one.

        `files` is {path: bytes, text or Path}, or a folder. A `private` repository is not there for
        anybody but its owner; a `gated` one is, but its files are refused.
        """
        if not isinstance(files, dict):
            root = Path(files)
            files = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
        new = {path: _bytes(data) for path, data in files.items()}
        repo = self.repos.setdefault((kind, name), Repo())
        repo.gated, repo.private = gated, private
        repo.commit(repo.commits.get(repo.sha, {}) | new)

    def files(self, kind, name):
        """{path: bytes} of the newest commit."""
        repo = self.repos[kind, name]
        return dict(repo.commits[repo.sha])

    def fail(self, part, how, times=1, method="GET"):
        """Make the next `times` requests whose path contains `part` fail.

        `how` is an HTTP status; "cut": half of the body, then the connection is closed; or "stall":
        half of the body, then nothing until `clear`. The libraries try again five times and more:
        `times=math.inf` is a hub that stays broken.
        """
        self.failures.append({"part": part, "how": how, "times": times, "method": method})

    def next_failure(self, method, path):
        """What `fail` has planned for this request, counted down; None if nothing."""
        with self.lock:
            for planned in self.failures:
                if planned["times"] and planned["method"] == method and planned["part"] in path:
                    planned["times"] -= 1
                    return planned["how"]

    def environment(self):
        """For a new process: makes the libraries use this hub, as its owner, and a cache here."""
        home = self.folder / "huggingface"
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_TOKEN": OWNER,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


def _bytes(data):
    if isinstance(data, Path):
        return data.read_bytes()
    return data.encode() if isinstance(data, str) else data
