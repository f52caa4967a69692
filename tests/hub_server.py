"""A stand-in of the hub on the loopback, which has large files on another host, cuts and refuses."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse

import loopback
import pytest
from huggingface_hub import constants

from espnet_pinch.bin import fetch_upstream

COMMIT, TAGGED = "c" * 40, "d" * 40
WEIGHTS = bytes(range(256)) * 2048  # 512 KiB
PRIVATE = "hf_secret"


class Hub(loopback.Handler):
    """One model, "a/b", of which "main" and the tag "v1" are two commits. Large files are on "localhost"."""

    def do_GET(self):
        server, (_, first, *rest) = self.server, urllib.parse.unquote(self.path.partition("?")[0]).split("/")
        host = self.headers["Host"].partition(":")[0]
        server.seen.append((host, self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if server.stall_api and first == "api":
            server.wait.wait(20)
        if server.status and (first == "api" or server.only_api is False):
            self.reply(server.status, b"{}", **({"X-Error-Code": server.code} if server.code else {}))
        elif first == "api":
            self.model(rest)
        elif first == "cdn":
            self.send(server.sent.get(rest[1], server.files[rest[0]].get(rest[1], b"")))
        elif rest[:2] == ["old", "resolve"]:
            self.reply(307, b"", Location=self.path.replace("/old/", "/b/"))
        elif rest[1] == "resolve" and rest[3] in server.files.get(rest[2], {}):
            if is_large(rest[3]):
                where = f"http://localhost:{server.server_port}/cdn/{rest[2]}/{rest[3]}"
                self.reply(302, b"", Location=where)
            else:
                self.send(server.sent.get(rest[3], server.files[rest[2]][rest[3]]))
        else:
            self.reply(404, b"", **{"X-Error-Code": "EntryNotFound"})

    def model(self, rest):
        server = self.server
        revision = rest[4] if rest[3:4] == ["revision"] else "main"
        commit = {"main": COMMIT, "v1": TAGGED}.get(revision, revision)
        if rest[2] == "old":
            rest[2] = "b"
        if rest[1:3] != ["a", "b"] or commit not in server.files:
            found = "RevisionNotFound" if rest[1:3] == ["a", "b"] else "RepoNotFound"
            self.reply(404, b"{}", **{"X-Error-Code": found})
            return
        files = []
        for name, content in server.files[commit].items():
            large = {"sha256": sha256(content), "size": len(content), "pointerSize": 1}
            blob = {"lfs": large, "blobId": "0" * 40} if is_large(name) else {"blobId": git_blob(content)}
            files.append({"rfilename": name, "size": len(content), **blob})
        card = {"license": "other", "license_name": "our-own", "license_link": "LICENSE.md"}
        answer = {"id": "a/b", "sha": commit, "siblings": files, "cardData": server.card or card}
        self.reply(200, json.dumps(answer).encode())

    def send(self, content):
        server, start = self.server, int((self.headers.get("Range") or "bytes=0-")[6:-1])
        more = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.reply(206 if start else 200, content[start:], cut=server.cut, ETag=f'"{sha256(content)}"', **more)

    def reply(self, status, content, cut=0, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: cut or None])
        self.wfile.flush()
        if cut and len(content) > cut:
            self.server.wait.wait(20)
            self.close_connection = True


class Server(loopback.Server):
    status, code, cut, only_api, stall_api, card = 0, None, 0, True, False, None


def is_large(name):
    return not name.endswith((".json", ".txt", ".md"))


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_blob(content):
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    with Server(("", 0), Hub) as server:
        server.seen, server.sent, server.wait = [], {}, threading.Event()
        files = {"config.json": b"{}", "vocab.json": b"{ }", "model.safetensors": WEIGHTS, "trainer_state.json": b"{}"}
        files.update({"tf_model.h5": b"x", "README.md": b"x"})
        server.files = {COMMIT: files, TAGGED: {**files, "model.safetensors": WEIGHTS[::-1]}}
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        yield server
        server.wait.set()
        server.shutdown()


def fetch(monkeypatch, upstream, out):
    """Stage 0's program, in this process."""
    monkeypatch.setattr(sys, "argv", ["fetch_upstream", "--upstream", upstream, "--out", str(out)])
    fetch_upstream.main()


def begin(server, tmp_path, upstream, out):
    """Stage 0's program, in a process of its own."""
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "espnet_pinch.bin.fetch_upstream", "--upstream", upstream, "--out", str(out)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def make_cache(cache, commits):
    """What huggingface_hub leaves: blobs named by their checksums, links to them, the commits of branches and tags."""
    root = cache / "models--a--b"
    for commit, files in commits.items():
        for name, content in files.items():
            blob = root / "blobs" / (sha256(content) if is_large(name) else git_blob(content))
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link = root / "snapshots" / commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir()
    for name, commit in (("main", COMMIT), ("v1", TAGGED)):
        (root / "refs" / name).write_text(commit)
