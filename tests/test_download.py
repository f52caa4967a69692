"""Downloads against a small server on the loopback that cuts and corrupts."""

import hashlib
import io
import shutil
import socket
import struct
import sys
import tarfile
import threading

import loopback
import pytest

from espnet_pinch.bin import fetch_librispeech
from espnet_pinch.data import download

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Handler(loopback.Handler):
    """Sends ``server.files``, and does what ``server`` is told to do wrong."""

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        if self.path in server.moved:
            self.answer(302, b"", Location=server.moved[self.path])
        elif server.status:
            self.answer(server.status, b"wrong")
        elif self.path not in server.files:
            self.answer(404, b"")
        else:
            self.send(server.files[self.path])

    def send(self, body):
        server, start = self.server, int((self.headers.get("Range") or "bytes=0-")[6:-1])
        etag = f'"{sha(body)[:8]}"'
        if server.no_ranges or self.headers.get("If-Range", etag) != etag:
            start = 0
        if start and start >= len(body):
            self.answer(416, b"", **{"Content-Range": f"bytes */{len(body)}"})
            return
        more = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        chunked = {"Transfer-Encoding": "chunked"} if server.chunked else {"Content-Length": str(len(body) - start)}
        body = body[start : server.cut or None]
        if server.chunked:
            body = b"%x\r\n%s" % (len(body) + 5, body)  # a chunk that ends too early
        self.answer(206 if start else 200, body, ETag=etag, **more, **chunked)
        if server.stall:
            server.stall.wait()

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if not (name == "Content-Length" and "Transfer-Encoding" in headers):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if self.server.reset:  # a connection that breaks instead of ending
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        self.close_connection = True


class Server(loopback.Server):
    cut = status = 0
    no_ranges = chunked = reset = False
    stall = None


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.files, server.ranges, server.moved = {"/file": CONTENT}, [], {}
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        if server.stall:
            server.stall.set()
        server.shutdown()


def sha(data):
    return hashlib.sha256(data).hexdigest()


def test_an_interrupted_download_is_continued(server, tmp_path):
    server.cut = 300_000
    with pytest.raises(OSError, match="run again to resume"):
        download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))
    assert not (tmp_path / "file").exists() and (tmp_path / "file.part").stat().st_size == 300_000
    server.cut = 0
    download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]
    download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))
    assert len(server.ranges) == 2


def test_a_wrong_checksum_is_refused_and_the_file_deleted(server, tmp_path):
    with pytest.raises(ValueError, match="SHA-256"):
        download.fetch(f"{server.url}/file", tmp_path / "file", sha(b"other"))
    assert not list(tmp_path.iterdir())


def test_a_server_that_says_no_and_none_at_all(server, tmp_path):
    with pytest.raises(OSError, match="404"):
        download.fetch(f"{server.url}/nothing", tmp_path / "file", sha(b""))
    with pytest.raises(OSError, match="refused"):
        download.fetch("http://127.0.0.1:9/file", tmp_path / "file", sha(b""))


def begin(server, path, size=300_000):
    """Leave the first ``size`` bytes of a download."""
    server.cut = size
    with pytest.raises(OSError, match="run again to resume"):
        download.fetch(f"{server.url}/file", path, sha(server.files["/file"]))
    server.cut = 0
    server.ranges.clear()


def test_a_server_that_ignores_ranges_sends_the_file_again(server, tmp_path):
    begin(server, tmp_path / "file")
    server.no_ranges = True
    download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))
    assert server.ranges == ["bytes=300000-"] and [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_that_changes_between_two_requests_is_fetched_anew(server, tmp_path):
    begin(server, tmp_path / "file")
    server.files["/file"] = CONTENT[::-1]
    download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT[::-1]))
    assert (tmp_path / "file").read_bytes() == CONTENT[::-1]


def test_a_begun_file_that_is_longer_than_the_servers_is_dropped(server, tmp_path):
    begin(server, tmp_path / "file")
    (tmp_path / "file.etag").unlink()
    server.files["/file"] = CONTENT[:1000]
    with pytest.raises(OSError, match="has changed since this download began"):
        download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT[:1000]))
    download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT[:1000]))
    assert (tmp_path / "file").read_bytes() == CONTENT[:1000]


def test_a_download_killed_before_its_last_rename_is_whole(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT and server.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_resumed_file_with_a_wrong_checksum_is_deleted_and_fetched_from_its_start(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"x" * 1000)  # not the file's, and no etag to tell
    with pytest.raises(ValueError, match="deleted, fetch it again"):
        download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))
    assert not list(tmp_path.iterdir())
    download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))
    assert server.ranges == ["bytes=1000-", None]


def test_redirects_are_followed_and_one_in_a_circle_is_not(server, tmp_path):
    server.moved = {"/old": "/file", "/circle": "/circle"}
    download.fetch(f"{server.url}/old", tmp_path / "file", sha(CONTENT))
    with pytest.raises(OSError, match="answers 302"):
        download.fetch(f"{server.url}/circle", tmp_path / "circle", sha(CONTENT))


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_a_refusal_keeps_what_has_arrived(server, tmp_path, status):
    begin(server, tmp_path / "file")
    server.status = status
    with pytest.raises(OSError, match=f"/file: the server answers {status}"):
        download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))
    assert (tmp_path / "file.part").stat().st_size == 300_000


@pytest.mark.parametrize("fault", ["reset", "chunked", "stall"])
def test_a_connection_that_breaks_or_stalls_is_one_line_and_resumed(server, tmp_path, monkeypatch, fault):
    server.cut = 300_000
    setattr(server, fault, threading.Event() if fault == "stall" else True)
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    with pytest.raises(OSError, match="run again to resume") as caught:
        download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))
    assert "\n" not in str(caught.value) and not (tmp_path / "file").exists()
    if fault == "stall":
        server.stall.set()
    server.cut, server.reset, server.chunked, server.stall = 0, False, False, None
    download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT
    if fault != "reset":  # the kernel may drop what a reset overtakes
        assert server.ranges[-1] == "bytes=300000-"


def test_a_file_larger_than_the_disk_is_not_begun(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2000, 1000, 1000))
    with pytest.raises(OSError, match="has 0.000 GB left, but the download needs 0.001 GB"):
        download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))


def test_fetching_and_checking_show_their_progress(server, tmp_path, capsys):
    download.fetch(f"{server.url}/file", tmp_path / "file", sha(CONTENT))
    fetching, checking = capsys.readouterr().out.splitlines()
    assert "fetching file: 1.05M/1.05M B (100 %)" in fetching and "checking file: 1.05M/1.05M B (100 %)" in checking


def archive(*names, **more):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 0 if more else 4
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(b"data"[: info.size]))
    return buffer.getvalue()


IN = "LibriSpeech/dev-clean/x"


def test_a_language_model_is_fetched_and_checked(server, tmp_path, monkeypatch, capsys):
    server.files["/4-gram.arpa.gz"] = CONTENT
    command = ["fetch", "--lm", "4-gram", "--out", str(tmp_path), "--base_url", server.url]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(
        ValueError, match=r"4-gram.arpa.gz has MD5 \w+, expected 6abdcd5b055bd482e4f9defe91d40408: deleted"
    ):
        fetch_librispeech.main()
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(download.LIBRISPEECH_LM_MD5, "4-gram", hashlib.md5(CONTENT).hexdigest())
    fetch_librispeech.main()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "4-gram.arpa.gz")
    assert (tmp_path / "4-gram.arpa.gz").read_bytes() == CONTENT
    monkeypatch.setattr(sys, "argv", [*command[:2], "3-gram", *command[3:]])
    with pytest.raises(OSError, match="could not fetch 3-gram.arpa.gz: .*404.*openslr.org/11 has it"):
        fetch_librispeech.main()


def test_a_subset_is_fetched_unpacked_and_not_fetched_again(server, tmp_path, monkeypatch):
    body = archive("LibriSpeech/README.TXT", "LibriSpeech/dev-clean/1/2/1-2.trans.txt")
    server.files["/dev-clean.tar.gz"] = body
    monkeypatch.setitem(download.LIBRISPEECH_SHA256, "dev-clean", sha(body))
    for _ in range(2):
        download.fetch_librispeech(tmp_path, ["dev-clean"], server.url)
    assert len(server.ranges) == 1
    assert (tmp_path / "LibriSpeech/dev-clean/1/2/1-2.trans.txt").read_bytes() == b"data"
    assert [p.name for p in tmp_path.iterdir()] == ["LibriSpeech"]


@pytest.mark.parametrize(
    "body, message",
    [
        (archive("../outside"), "'../outside' would leave the folder"),
        (archive("/tmp/../outside"), "would leave the folder"),
        (archive("/absolute/outside"), "'/absolute/outside' would leave the folder"),
        (archive(IN + "/../../../outside"), "would leave the folder"),
        (archive(IN, type=tarfile.SYMTYPE, linkname="../../outside"), "neither a file nor a folder"),
        (archive(IN, type=tarfile.SYMTYPE, linkname="/etc"), "neither a file nor a folder"),
        (archive(IN, type=tarfile.LNKTYPE, linkname="../outside"), "neither a file nor a folder"),
        (archive(IN, type=tarfile.FIFOTYPE), "neither a file nor a folder"),
        (archive(IN, type=tarfile.CHRTYPE), "neither a file nor a folder"),
        (archive("LibriSpeech/dev-other/x"), "does not hold LibriSpeech/dev-clean"),
        (archive("LibriSpeech/dev-clean/x")[:-40], "cannot be unpacked"),
        (b"no archive", "cannot be unpacked"),
    ],
    ids=range(12),  # not the bytes, which hold the time: every worker has to give a test the same name
)
def test_a_bad_archive_is_refused_and_leaves_nothing(tmp_path, body, message):
    (tmp_path / "a.tar.gz").write_bytes(body)
    with pytest.raises(ValueError, match=message):
        download.unpack(tmp_path / "a.tar.gz", "LibriSpeech/dev-clean", tmp_path / "out" / "dev-clean")
    assert not list((tmp_path / "out").iterdir()) and not (tmp_path / "outside").exists()


def test_members_with_odd_slashes_stay_inside(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(archive("./LibriSpeech/dev-clean//etc/x", "LibriSpeech/dev-clean/./y"))
    download.unpack(tmp_path / "a.tar.gz", "LibriSpeech/dev-clean", tmp_path / "out" / "dev-clean")
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert found == ["dev-clean/etc/x", "dev-clean/y"]
