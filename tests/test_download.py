"""Downloads against a small server on the loopback that cuts and corrupts."""

import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from espnet_pinch.data import download

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.ranges.append(self.headers.get("Range"))
        if self.path not in self.server.files:
            self.send_error(404)
            return
        body = self.server.files[self.path]
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : self.server.cut or None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.ranges, server.cut = {"/file": CONTENT}, [], 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
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


def archive(*names):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"data"))
    return buffer.getvalue()


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
        (archive("../outside"), "cannot be unpacked"),
        (archive("LibriSpeech/dev-other/x"), "does not hold LibriSpeech/dev-clean"),
        (archive("LibriSpeech/dev-clean/x")[:-40], "cannot be unpacked"),
        (b"no archive", "cannot be unpacked"),
    ],
)
def test_a_bad_archive_is_refused_and_leaves_nothing(tmp_path, body, message):
    (tmp_path / "a.tar.gz").write_bytes(body)
    with pytest.raises(ValueError, match=message):
        download.unpack_subset(tmp_path / "a.tar.gz", "dev-clean", tmp_path / "out" / "dev-clean")
    assert not list((tmp_path / "out").iterdir()) and not (tmp_path / "outside").exists()
