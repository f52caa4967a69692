"""Full and read-only disks, killed writers: one line that names the file, and nothing half-written."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from espnet_pinch import files
from espnet_pinch.asr.decode import write_transcripts
from espnet_pinch.asr.small_upstreams import make_small_upstream
from espnet_pinch.core.parameters import LayerCount
from espnet_pinch.data import download
from espnet_pinch.data.dump import pack_audio
from espnet_pinch.data.kaldi_dir import Utterance, write_data_dir
from espnet_pinch.data.mini_corpus import make_mini_corpus
from espnet_pinch.data.tokens import write_tokens
from espnet_pinch.files import whole_file, whole_folder, write_json, write_text
from espnet_pinch.results.plots import plot_layers


def mounted(folder: Path, options: str):
    """A tmpfs at ``folder`` for as long as the context lives; the test is skipped where mounting is not allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs to mount a small file system: {done.stderr.strip()}")
    return contextlib.ExitStack()


@pytest.fixture
def small(tmp_path):
    """A disk of 512 KiB with an old file and an old folder on it."""
    with mounted(tmp_path / "small", "size=512k") as stack:
        stack.callback(subprocess.run, ["umount", "-l", tmp_path / "small"], check=True)
        write_text(tmp_path / "small" / "old", "old")
        (tmp_path / "small" / "oldfolder").mkdir()
        (tmp_path / "small" / "oldfolder" / "x").write_text("old")
        yield tmp_path / "small"


@pytest.fixture
def readonly(small):
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    return small


def rows(tmp_path, count=40, samples=16000):
    audio = tmp_path / "a.flac"
    soundfile.write(audio, np.random.default_rng(0).normal(0, 0.2, samples), 16000)
    return [Utterance(f"a-{i:05d}", str(audio), "A " * 300 + "B", "a", samples) for i in range(count)]


def unpack(path, tmp_path):
    import tarfile

    (tmp_path / "big").write_bytes(os.urandom(1 << 20))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "big", "LibriSpeech/dev-clean/x")
    download.unpack(tmp_path / "a.tar.gz", "LibriSpeech/dev-clean", path)


def transcripts(path, tmp_path):
    some = rows(tmp_path, 4000)
    write_transcripts(path, {u.id: u.text for u in some}, some, 1.0)


def pictures(path, tmp_path):
    (path.parent / "old").write_bytes(b"x" * 490_000)  # little is left
    plot_layers({f"encoder.layers.{i}.x": LayerCount(weights=2, pruned=1) for i in range(24)}, path / "layers")


# What each stage writes: stage, writer(path, tmp_path).
WRITERS = {
    "0 mini corpus": lambda path, tmp_path: make_mini_corpus(path, 0.05),
    "0 mini upstream": lambda path, tmp_path: make_small_upstream(path),
    "0 unpacked archive": unpack,
    "1 data directory": lambda path, tmp_path: write_data_dir(path, rows(tmp_path, 4000)),
    "2 packed audio": lambda path, tmp_path: list(pack_audio(rows(tmp_path), path)),
    "2 token list": lambda path, tmp_path: write_tokens(path, [chr(i) * 9 for i in range(0x4E00, 0x9F00)]),
    "5 transcripts": transcripts,
    "6 results": lambda path, tmp_path: write_json(path, list(range(200_000))),
    "6 pictures": pictures,
}


def left(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(small, tmp_path, name):
    with pytest.raises(OSError, match="new.* cannot be written: the disk is full; free some space") as caught:
        WRITERS[name](small / "new", tmp_path)
    assert "\n" not in str(caught.value) and ".tmp-" not in str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    whole = {path for path in left(small) if path.startswith("new/") and name in ("5 transcripts", "6 pictures")}
    assert left(small) - whole == {"old", "oldfolder/x"}  # of several files, those before the last are whole
    assert "new/text" not in whole


@pytest.mark.parametrize("name", ["1 data directory", "2 token list", "0 mini upstream", "0 unpacked archive"])
def test_a_read_only_disk_is_one_line(readonly, tmp_path, name):
    with pytest.raises(OSError, match="new cannot be written: the file system is read-only$"):
        WRITERS[name](readonly / "new", tmp_path)
    assert left(readonly) == {"old", "oldfolder/x"}


def test_a_download_on_a_full_disk_keeps_its_part(small, monkeypatch):
    (small.parent / "big").write_bytes(os.urandom(1 << 20))
    monkeypatch.setattr(download, "_need", lambda size, path: None)  # as where another program fills the disk
    url = (small.parent / "big").as_uri()
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda request, timeout: _Response(small.parent / "big"))
    with pytest.raises(OSError, match="big.tar cannot be written: the disk is full"):
        download.fetch(url, small / "big.tar", "0")
    assert not (small / "big.tar").exists() and (small / "big.tar.part").stat().st_size > 100_000


class _Response:
    status, headers = 200, {}

    def __init__(self, path):
        self.file = open(path, "rb")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def read1(self, size):
        return self.file.read(size)


def test_an_old_file_and_an_old_folder_outlive_a_full_disk(small):
    for write in (lambda p: write_text(small / "old", "x" * (1 << 20)), lambda p: fill(small / "oldfolder")):
        with pytest.raises(OSError, match="the disk is full"):
            write(small)
    assert (small / "old").read_text() == "old" and (small / "oldfolder" / "x").read_text() == "old"


def fill(path):
    with whole_folder(path) as new:
        torch.save(torch.zeros(1 << 20), new / "model.pth")  # torch has a RuntimeError of its own for this


def test_a_file_has_the_rights_that_its_user_gives_files_whatever_wrote_it(tmp_path):
    with whole_file(tmp_path / "a.safetensors") as new:
        save_file({"x": torch.zeros(1)}, new)
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_that_is_no_disks_keeps_its_own_words(tmp_path):
    for error in (ValueError("mine"), RuntimeError("mine"), FileNotFoundError(2, "mine", "/x")):
        for whole in (whole_file, whole_folder):
            with pytest.raises(type(error), match="mine"):
                with whole(tmp_path / "new"):
                    raise error
    assert not list(tmp_path.iterdir())


# The module alone: the package imports torch, which takes seconds.
ALONE = f"import runpy, sys, time\nfiles = runpy.run_path({files.__file__!r})\n"
KILLED = """
with files["{which}"](sys.argv[1]) as new:
    (new / "x" if new.is_dir() else new).write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("which", ["whole_file", "whole_folder"])
def test_what_a_killed_writer_leaves_is_removed_and_what_a_living_one_writes_is_not(tmp_path, which):
    command = [sys.executable, "-c", ALONE + KILLED.format(which=which), str(tmp_path / "a.json")]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "writing\n"
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        assert len(list(tmp_path.iterdir())) == 2 and not (tmp_path / "a.json").exists()
        (tmp_path / ".a.json.swp").touch()  # somebody else's
        with getattr(files, which)(tmp_path / "a.json") as new:
            (new / "x" if new.is_dir() else new).write_text("whole")
        names = {p.name for p in tmp_path.iterdir()}
        assert {"a.json", ".a.json.swp"} < names and len(names) == 3
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()
    with getattr(files, which)(tmp_path / "a.json") as new:
        (new / "x" if new.is_dir() else new).write_text("whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", ".a.json.swp"}


def test_an_old_folder_that_a_kill_has_left_aside_is_put_back(tmp_path, monkeypatch):
    with whole_folder(tmp_path / "d") as new:
        (new / "x").write_text("old")

    class Killed(BaseException):
        pass

    replace = os.replace

    def kill_at_second(source, target):
        if ".tmp-" in str(source):
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill_at_second)
    with pytest.raises(Killed):
        with whole_folder(tmp_path / "d") as new:
            (new / "x").write_text("new")
    monkeypatch.setattr(os, "replace", replace)
    assert not (tmp_path / "d").exists()
    with pytest.raises(ValueError):
        with whole_folder(tmp_path / "d"):
            raise ValueError("no new one either")
    assert (tmp_path / "d" / "x").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_folder_takes_the_place_of_a_folder_through_a_link_and_not_of_a_file(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with whole_folder(tmp_path / "link") as new:
        (new / "x").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "x").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        with whole_folder(tmp_path / "file"):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_writers_of_one_folder_at_a_time_leave_one_of_theirs(tmp_path):
    program = ALONE + "for i in range(60):\n"
    program += (
        "  with files['whole_folder'](sys.argv[1]) as new:\n    [(new / n).write_text(sys.argv[2]) for n in 'ab']\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "d"), who]) for who in "123"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert {p.name for p in tmp_path.iterdir()} == {"d"}
    assert (tmp_path / "d" / "a").read_text() == (tmp_path / "d" / "b").read_text()
