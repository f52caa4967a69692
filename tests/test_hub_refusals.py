"""What a hub refuses, or does not say: one line that says what to do."""

import re
import shutil

import hub_server
import pytest
from hub_server import COMMIT, PRIVATE, Hub, fetch, make_cache
from huggingface_hub import constants

from espnet_pinch.data import download, hub
from espnet_pinch.data.source import read_record

server = hub_server.server


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
