"""Upstreams from a stand-in of the hub: fetched, recorded, resumed, and taken out of its cache."""

import logging
import os
import signal

import hub_server
import pytest
from hub_server import (
    COMMIT,
    PRIVATE,
    TAGGED,
    WEIGHTS,
    begin,
    fetch,
    git_blob,
    make_cache,
    names,
    sha256,
    wait_for,
)
from huggingface_hub import constants

from espnet_pinch.asr.upstream import load_upstream, read_config
from espnet_pinch.data.source import BY_HAND, CACHE, CHANGED, FILE, HUB, parse_source, read_record
from espnet_pinch.data.upstream_files import check_folder
from espnet_pinch.files import read_json, write_json

server = hub_server.server


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


# ---- The hub's cache


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
