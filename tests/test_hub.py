"""Upstreams against a stand-in of the hub on the loopback, which has large files on another host, cuts and refuses."""

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse

import loopback
import pytest
from huggingface_hub import constants

from espnet_pinch.asr.upstream import load_upstream, read_config
from espnet_pinch.bin import fetch_upstream
from espnet_pinch.data import download, hub
from espnet_pinch.data.source import BY_HAND, CACHE, CHANGED, FILE, HUB, parse_source, read_record
from espnet_pinch.data.upstream_files import check_folder
from espnet_pinch.files import read_json, write_json

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


def test_an_upstream_is_fetched_with_a_record_of_what_it_is(server, tmp_path, monkeypatch, capsys):
    fetch(monkeypatch, "a/b", tmp_path / "up")
    assert names(tmp_path / "up") == ["config.json", "model.safetensors", FILE, "vocab.json"]
    assert (tmp_path / "up" / "model.safetensors").read_bytes() == WEIGHTS
    assert names(tmp_path) == ["up"]
    record = read_record(tmp_path / "up")
    assert record == {
        **{"upstream": "a/b", "repo": "a/b", "revision": None, "language": None, "commit": COMMIT, "origin": HUB},
        **{"licence": "other", "licence_name": "our-own", "licence_link": "LICENSE.md"},
    }
    files = read_json(tmp_path / "up" / FILE)["files"]
    assert files["model.safetensors"] == {"size": len(WEIGHTS), "sha256": sha256(WEIGHTS)}
    assert files["config.json"] == {"size": 2, "git_blob": git_blob(b"{}")}
    assert "fetching model.safetensors: 524k/524k B (100 %)" in capsys.readouterr().out
    server.seen.clear()
    fetch(monkeypatch, "a/b", tmp_path / "up")
    assert not server.seen


def test_a_revision_is_pinned_and_recorded(server, tmp_path, monkeypatch):
    fetch(monkeypatch, "a/b@v1", tmp_path / "up")
    assert (tmp_path / "up" / "model.safetensors").read_bytes() == WEIGHTS[::-1]
    record = read_record(tmp_path / "up")
    assert (record["upstream"], record["revision"], record["commit"]) == ("a/b@v1", "v1", TAGGED)
    assert all(TAGGED in path for _, path, _, _ in server.seen if "api" not in path)
    fetch(monkeypatch, f"a/b@{TAGGED}", tmp_path / "other")
    assert read_record(tmp_path / "other")["commit"] == TAGGED


@pytest.mark.parametrize("name", ["vocab.json", "model.safetensors"])
def test_a_file_of_another_checksum_is_refused_and_fetched_again(server, tmp_path, monkeypatch, name):
    content = server.files[COMMIT][name]
    server.sent[name] = content[::-1] if name != "vocab.json" else b"{\n}"  # of the same size
    with pytest.raises(ValueError, match=f"{name} has .*(SHA-256|git blob id).*deleted, fetch it again"):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    assert not (tmp_path / "up").exists()
    server.sent.clear()
    fetch(monkeypatch, "a/b", tmp_path / "up")
    assert (tmp_path / "up" / name).read_bytes() == content


def test_a_fetch_that_is_killed_goes_on_at_its_byte(server, tmp_path, monkeypatch):
    server.cut = 200_000
    process = begin(server, tmp_path, "a/b", tmp_path / "up")
    part = tmp_path / "up.part" / "model.safetensors.part"
    wait_for(lambda: part.is_file() and part.stat().st_size == 200_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "up").exists()
    server.cut = 0
    server.seen.clear()
    fetch(monkeypatch, "a/b", tmp_path / "up")
    ranges = {path.rpartition("/")[2]: ask for host, path, ask, _ in server.seen if host == "localhost"}
    assert ranges == {"model.safetensors": "bytes=200000-"}
    assert not [path for _, path, _, _ in server.seen if path.endswith("config.json")]  # which had come
    assert (tmp_path / "up" / "model.safetensors").read_bytes() == WEIGHTS
    assert not (tmp_path / "up.part").exists() and not (tmp_path / "up.lock").exists()


def test_what_has_come_of_an_older_commit_is_not_mixed_in(server, tmp_path, monkeypatch):
    part = tmp_path / "up.part"
    fetch(monkeypatch, "a/b@v1", tmp_path / "old")
    part.mkdir()
    (part / "model.safetensors.part").write_bytes(WEIGHTS[::-1][:1000])
    (part / "model.safetensors.of").write_text(f"sha256={sha256(WEIGHTS[::-1])}")
    (part / "added_tokens.json").write_text("{}")  # which this commit has not
    fetch(monkeypatch, "a/b", tmp_path / "up")
    assert (tmp_path / "up" / "model.safetensors").read_bytes() == WEIGHTS
    assert names(tmp_path / "up") == ["config.json", "model.safetensors", FILE, "vocab.json"]


def test_two_that_fetch_the_same_do_it_once(server, tmp_path):
    server.cut = 200_000
    first = begin(server, tmp_path, "a/b", tmp_path / "up")
    part = tmp_path / "up.part" / "model.safetensors.part"
    wait_for(lambda: part.is_file() and part.stat().st_size == 200_000)
    second = begin(server, tmp_path, "a/b", tmp_path / "up")
    assert second.stdout.readline() == "another process fetches a/b: waiting until it is done\n"
    first.kill()  # whose place the second one takes
    server.cut = 0
    third = begin(server, tmp_path, "a/b", tmp_path / "up")
    for process in (second, third):
        out, error = process.communicate(timeout=30)
        assert process.returncode == 0, error
    first.communicate()
    ranges = [ask for host, _, ask, _ in server.seen if host == "localhost"]
    assert ranges == [None, "bytes=200000-"]
    assert (tmp_path / "up" / "model.safetensors").read_bytes() == WEIGHTS
    assert names(tmp_path) == ["up"]


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", PRIVATE)
    fetch(monkeypatch, "a/old", tmp_path / "up")  # another name of the same model: a redirect on the same host
    tokens = {host: {token for h, _, _, token in server.seen if h == host} for host in ("127.0.0.1", "localhost")}
    assert tokens == {"127.0.0.1": {f"Bearer {PRIVATE}"}, "localhost": {None}}
    assert [path for _, path, _, _ in server.seen if path.startswith("/a/b/resolve")]


def test_files_put_there_by_hand_are_used_as_they_are(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "up").mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / "up" / name).write_text("own")
    fetch(monkeypatch, "a/b", tmp_path / "up")
    assert not server.seen and "by hand are used: config.json, pytorch_model.bin" in capsys.readouterr().out
    record = read_record(tmp_path / "up")
    assert (record["upstream"], record["commit"], record["licence"], record["origin"]) == ("a/b", None, None, BY_HAND)


def test_a_file_put_there_by_hand_is_kept_and_the_rest_fetched(server, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "up").symlink_to(tmp_path / "disk")
    fetch(monkeypatch, "a/b", tmp_path / "up")
    assert names(tmp_path / "disk") == ["config.json", "model.safetensors", FILE, "vocab.json"]
    assert not [path for _, path, _, _ in server.seen if "safetensors" in path]
    assert (tmp_path / "up").is_symlink() and not (tmp_path / "disk.part").exists()


def test_a_file_put_there_by_hand_that_is_another_is_kept_and_named(server, tmp_path, monkeypatch):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(
        ValueError, match="up/model.safetensors has 5 bytes, expected .* remove it, then run stage 0 again"
    ):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    assert names(tmp_path / "up") == ["model.safetensors"]


def test_a_file_that_is_lost_is_fetched_again_of_the_same_commit(server, tmp_path, monkeypatch):
    fetch(monkeypatch, "a/b", tmp_path / "up")
    (tmp_path / "up" / "vocab.json").unlink()
    server.files["e" * 40] = {**server.files[COMMIT], "config.json": b"{\n}"}
    monkeypatch.setitem(globals(), "COMMIT", "e" * 40)  # the hub has a newer one by now
    fetch(monkeypatch, "a/b", tmp_path / "up")
    assert (tmp_path / "up" / "vocab.json").is_file() and read_record(tmp_path / "up")["commit"] == "c" * 40


def test_a_folder_of_another_upstream_or_with_changed_files_is_refused(server, tmp_path, monkeypatch, caplog):
    fetch(monkeypatch, "a/b", tmp_path / "up")
    for other in ("a/c", "a/b@v1", "mini"):
        with pytest.raises(ValueError, match=f"up holds the upstream a/b, as its source.json says, not {other}"):
            fetch(monkeypatch, other, tmp_path / "up")
    (tmp_path / "up" / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(ValueError, match="model.safetensors has changed since it was fetched: remove it"):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    with caplog.at_level(logging.WARNING):
        record = read_record(tmp_path / "up")
    assert (record["commit"], record["origin"]) == (None, CHANGED) and "has changed since" in caplog.text
    (tmp_path / "up" / FILE).write_text('{"repo": ')
    with pytest.raises(ValueError, match="source.json is damaged"):
        fetch(monkeypatch, "a/b", tmp_path / "up")


# ---- What the hub refuses


TOKEN, TERMS = r"HF_TOKEN", r"accept its terms on http://\S+/a/b"


@pytest.mark.parametrize(
    "status, code, token, wanted",
    [
        (401, None, None, ["misspelt", TOKEN, TERMS]),
        (401, "RepoNotFound", None, ["misspelt", TOKEN, TERMS]),
        (401, None, PRIVATE, ["the token in HF_TOKEN .* is not valid"]),
        (401, "GatedRepo", None, ["give your token in HF_TOKEN", TERMS]),
        (403, "GatedRepo", PRIVATE, ["with the account of the token in HF_TOKEN", TERMS]),
        (403, None, None, [TOKEN, TERMS]),
        (404, "RepoNotFound", None, ["misspelt", "private", TOKEN]),
        (404, None, None, ["misspelt", "private", TOKEN]),
        (404, "RevisionNotFound", None, ["no revision 'v1': no branch, tag or commit"]),
        (429, None, None, ["too many requests: wait"]),
        (500, None, None, ["answers 500; try again later", "By hand: put its config.json"]),
        (503, None, None, ["answers 503; try again later"]),
    ],
)
@pytest.mark.parametrize("file", [False, True])
def test_a_hub_that_refuses_is_one_line_that_says_what_to_do(
    server, tmp_path, monkeypatch, status, code, token, wanted, file
):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    if file:  # the list of files is for everybody, the files are not
        if code != "RevisionNotFound" and status == 404:
            wanted = ["it has no file config.json"]
        answer = Hub.do_GET

        def refuse(self):
            self.server.status = 0 if "/api/" in self.path else status
            answer(self)

        server.only_api, server.code = False, code
        monkeypatch.setattr(Hub, "do_GET", refuse)
    else:
        server.status, server.code = status, code
    with pytest.raises(OSError, match="could not fetch a/b@v1 from the Hugging Face hub: ") as caught:
        fetch(monkeypatch, "a/b@v1", tmp_path / "up")
    line = str(caught.value)
    assert "\n" not in line and all(re.search(text, line) for text in wanted), line
    assert token is None or token not in line
    assert not (tmp_path / "up").exists()


def test_a_revision_or_a_file_that_is_not_there_is_named(server, tmp_path, monkeypatch):
    with pytest.raises(OSError, match="it has no revision 'v9'"):
        fetch(monkeypatch, "a/b@v9", tmp_path / "up")
    with pytest.raises(OSError, match="misspelt"):
        fetch(monkeypatch, "a/c", tmp_path / "up")
    del server.files[COMMIT]["model.safetensors"]
    with pytest.raises(OSError, match=r"could not fetch a/b .* it has no weights \(.*\); it has tf_model.h5"):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    server.files[COMMIT]["pytorch_model.bin.index.json"] = b"{}"
    with pytest.raises(ValueError, match="a/b: pytorch_model.bin.index.json is not a list of the shards"):
        fetch(monkeypatch, "a/b", tmp_path / "up")


def test_the_host_that_keeps_the_files_is_named_where_it_refuses(server, tmp_path, monkeypatch):
    answer = Hub.send
    monkeypatch.setattr(
        Hub, "send", lambda self, content: self.reply(403, b"") if "cdn" in self.path else answer(self, content)
    )
    with pytest.raises(OSError, match="localhost, where the hub keeps model.safetensors, answers 403; run again"):
        fetch(monkeypatch, "a/b", tmp_path / "up")


def test_no_network_says_what_to_put_where(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    wanted = "cannot be reached: .*By hand: put its config.json, .* into .*/up$"
    with pytest.raises(OSError, match=wanted):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    make_cache(tmp_path / "cache", server.files)
    with pytest.raises(OSError, match="the hub's cache on this machine has it: set HF_HUB_OFFLINE=1 to use it"):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    for wrong in ("huggingface.co", "http://", "http://host:port", "ftp://host"):
        monkeypatch.setattr(constants, "ENDPOINT", wrong)
        with pytest.raises(ValueError, match="HF_ENDPOINT must be an address such as"):
            fetch(monkeypatch, "a/b", tmp_path / "up")


def test_a_hub_that_does_not_answer_or_talks_of_something_else_is_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.stall_api = True
    with pytest.raises(OSError, match="cannot be reached: .*By hand"):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    server.stall_api = False
    monkeypatch.setattr(Hub, "model", lambda self, rest: self.reply(200, b"<html>log in to this network</html>"))
    with pytest.raises(OSError, match=r"answers, but not like the hub \(is it a proxy\?\)"):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    monkeypatch.setattr(Hub, "model", lambda self, rest: self.reply(200, b'{"id": "a/b"}'))
    with pytest.raises(OSError, match="not like the hub"):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    assert not list(tmp_path.iterdir())


def test_a_connection_that_stalls_keeps_what_has_come(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    server.cut = 100_000
    with pytest.raises(OSError, match="could not fetch a/b .*nothing came for 0.5 s; run again to resume"):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    assert (tmp_path / "up.part" / "model.safetensors.part").stat().st_size == 100_000


def test_a_disk_without_room_is_named_before_anything_large_is_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2000, 1000, 1000))
    with pytest.raises(OSError, match=f"^{tmp_path} has 0.000 GB left, but the download needs 0.001 GB$"):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    assert not [path for _, path, _, _ in server.seen if "resolve" in path]


@pytest.mark.parametrize(
    "card, licence",
    [
        ({"license": "apache-2.0"}, {"licence": "apache-2.0"}),
        ({"license": ["mit", "apache-2.0"]}, {"licence": "mit, apache-2.0"}),
        ({"license": "mit\nbase_model: other"}, {}),
        ({"license": 3}, {}),
        ({"tags": ["x"]}, {}),
    ],
)
def test_the_licence_is_that_of_the_model_card(server, tmp_path, monkeypatch, card, licence):
    server.card = card
    fetch(monkeypatch, "a/b", tmp_path / "up")
    record = read_record(tmp_path / "up")
    assert {key: record[key] for key in record if key.startswith("licence") and record[key]} == licence


# ---- The hub's cache


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


def test_offline_the_files_come_out_of_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match="could not fetch a/b .*HF_HUB_OFFLINE .* is set, and the model is not in the hub's cache"
    ):
        fetch(monkeypatch, "a/b", tmp_path / "up")
    for files in server.files.values():
        files["README.md"] = b"---\nlicense: mit\n---\n"
    make_cache(tmp_path / "cache", server.files)
    for upstream, commit in (("a/b", COMMIT), ("a/b@v1", TAGGED), (f"a/b@{TAGGED}", TAGGED)):
        out = tmp_path / parse_source(upstream).folder_name
        fetch(monkeypatch, upstream, out)
        assert names(out) == ["config.json", "model.safetensors", FILE, "vocab.json"]
        assert (out / "model.safetensors").read_bytes() == server.files[commit]["model.safetensors"]
        assert not (out / "model.safetensors").is_symlink()
        record = read_record(out)
        assert (record["commit"], record["licence"], record["origin"]) == (commit, "mit", CACHE)
    with pytest.raises(OSError, match="not in the hub's cache"):
        fetch(monkeypatch, "a/b@v2", tmp_path / "v2")
    snapshot = tmp_path / "cache" / "models--a--b" / "snapshots" / COMMIT
    assert read_record(snapshot)["repo"] == "a/b" and read_record(snapshot)["commit"] == COMMIT
    os.truncate(snapshot / "model.safetensors", 5)
    with pytest.raises(ValueError, match="the hub's cache is damaged"):
        fetch(monkeypatch, "a/b", tmp_path / "damaged")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(OSError, match="its copy in the hub's cache has no weights"):
        fetch(monkeypatch, "a/b", tmp_path / "damaged")
    assert not server.seen and not (tmp_path / "damaged").exists()


def test_offline_what_was_fetched_is_used(server, tmp_path, monkeypatch):
    fetch(monkeypatch, "a/b", tmp_path / "up")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetch(monkeypatch, "a/b", tmp_path / "up")


def test_only_stage_0_asks_the_hub(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (load_upstream, read_config, check_folder):
        with pytest.raises(FileNotFoundError, match="a/b does not exist; .*espnet_pinch.bin.fetch_upstream"):
            load("a/b")
    write_json(tmp_path / "a" / "b" / "config.json", {"model_type": "wav2vec2"})
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load_upstream("a/b")
    (tmp_path / "a" / "b" / "model.safetensors").write_text("")
    with pytest.raises(Exception):  # noqa: B017  (whatever: the point is that nobody is asked)
        load_upstream("a/b")
    assert not server.seen
