"""Errors say the true reason: unreadable is not damaged, reading is not writing, a Git LFS pointer is no file."""

import shutil

import pytest
import torch
from small_models import make_model
from test_data import make_chapter
from test_environment import no_privileges, python
from transformers import Wav2Vec2Model

from espnet_pinch.asr.safe_load import damage, load
from espnet_pinch.asr.upstream import load_upstream
from espnet_pinch.data.dump import pack_audio
from espnet_pinch.data.librispeech import read_subset
from espnet_pinch.explain import explain
from espnet_pinch.export.long_audio import transcribe_file
from espnet_pinch.export.sparse_file import read_sparse
from espnet_pinch.unreadable import why_unreadable

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 378000000\n"
FAILS = "/proc/self/mem"  # reading its first byte is an input/output error


def line_of(call, *arguments) -> str:
    """What the user is told of the error of a call."""
    with pytest.raises((ValueError, OSError)) as caught:
        call(*arguments)
    line = explain(caught.value)
    assert line and "\n" not in line
    return line


# ---- Git LFS


def test_a_pointer_in_the_place_of_weights_is_named(tmp_path, tiny_wav2vec2):
    Wav2Vec2Model(tiny_wav2vec2).save_pretrained(tmp_path / "hf")
    for name in ("model.safetensors", "config.json"):
        shutil.copytree(tmp_path / "hf", tmp_path / name)
        (tmp_path / name / name).write_text(POINTER)
        line = line_of(load_upstream, str(tmp_path / name))
        assert line.startswith(f"{tmp_path / name / name} is a Git LFS pointer") and "git lfs pull" in line
    shutil.copytree(tmp_path / "hf", tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    for name, reader in (
        ("bin/pytorch_model.bin", lambda _: load_upstream(str(tmp_path / "bin"))),
        ("model.pth", load),
        ("checkpoint.pth", damage),
        ("sparse.safetensors", read_sparse),
    ):
        (tmp_path / name).write_text(POINTER)
        line = line_of(reader, tmp_path / name)
        assert (
            f"{tmp_path / name} is a Git LFS pointer" in line.replace("sparse.safetensors: ", "")
            and "damaged" not in line
        )


def test_a_pointer_in_the_place_of_data_is_named(tmp_path, tiny_config):
    folder = make_chapter(tmp_path)
    rows = read_subset(tmp_path, "dev-clean")
    audio = folder / "19-198-0001.flac"
    audio.write_text(POINTER)
    for call in (
        lambda: read_subset(tmp_path, "dev-clean"),
        lambda: list(pack_audio(rows, tmp_path / "packed")),
        lambda: transcribe_file(make_model(tiny_config), audio),
    ):
        line = line_of(call)
        assert str(audio) in line and "is a Git LFS pointer" in line and "damaged" not in line
    (folder / "19-198.trans.txt").write_text(POINTER)
    assert line_of(read_subset, tmp_path, "dev-clean").startswith(f"{folder}/19-198.trans.txt is a Git LFS pointer")


# ---- unreadable


def test_a_failing_disk_is_not_called_damage(tmp_path):
    folder = make_chapter(tmp_path)
    audio = folder / "19-198-0001.flac"
    audio.unlink()
    audio.symlink_to(FAILS)
    assert line_of(read_subset, tmp_path, "dev-clean") == f"{audio} cannot be read (the disk fails): Input/output error"
    torch.save({}, tmp_path / "whole.pth")
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_):
            raise OSError(5, "Input/output error")

        patch.setattr("zipfile.ZipFile.testzip", fail)
        patch.setattr("espnet_pinch.asr.safe_load.why_unreadable", lambda _: why_unreadable(FAILS))
        line = line_of(damage, tmp_path / "whole.pth")
    assert line == f"{tmp_path}/whole.pth cannot be read (the disk fails): Input/output error"


def test_a_folder_or_a_dead_link_is_not_called_damage(tmp_path):
    folder = make_chapter(tmp_path)
    audio = folder / "19-198-0001.flac"
    audio.unlink()
    audio.mkdir()
    assert "has no audio file 19-198-0001.flac: that is a folder" in line_of(read_subset, tmp_path, "dev-clean")
    audio.rmdir()
    audio.symlink_to("/nowhere/x.flac")
    line = line_of(read_subset, tmp_path, "dev-clean")
    assert "19-198-0001.flac: that does not exist (it is a link to /nowhere/x.flac, which does not exist)" in line
    assert why_unreadable(folder) == "is a folder, but a file is needed"


PERMISSIONS = """
import sys
from pathlib import Path
from espnet_pinch.asr.safe_load import damage, load
from espnet_pinch.config import read_yaml
from espnet_pinch.data.librispeech import read_subset
from espnet_pinch.explain import explain
from espnet_pinch.files import whole_file, write_text

root = Path(sys.argv[1])

def say(call, *arguments):
    try:
        call(*arguments)
    except (ValueError, OSError) as error:
        print(explain(error))

def read_while_writing():
    with whole_file(root / "exp" / "new.json"):
        open(root / "exp" / "secret.pth", "rb")

say(read_yaml, root / "secret.yaml")
say(damage, root / "exp" / "secret.pth")
say(load, root / "exp" / "secret.pth")
say(read_while_writing)
say(read_yaml, root / "closed" / "x.yaml")
say(read_subset, root / "corpus", "dev-clean")
say(write_text, root / "fixed" / "new.txt", "")
say(lambda: open(root / "fixed" / "new.txt", "w"))
"""


def test_no_permission_says_for_what(tmp_path):
    make_chapter(tmp_path / "corpus")
    for name in ("exp", "closed", "fixed"):
        (tmp_path / name).mkdir()
    (tmp_path / "closed" / "x.yaml").touch()
    audio = tmp_path / "corpus" / "dev-clean" / "19" / "198" / "19-198-0001.flac"
    torch.save({}, tmp_path / "exp" / "secret.pth")
    for path in (tmp_path / "secret.yaml", tmp_path / "exp" / "secret.pth", audio):
        path.touch()
        path.chmod(0o200)
    (tmp_path / "closed").chmod(0o600)
    (tmp_path / "fixed").chmod(0o555)
    done = python("-c", PERMISSIONS, tmp_path, preexec_fn=no_privileges)
    said = [line for line in done.stdout.splitlines() if " checking " not in line]  # no progress
    (tmp_path / "closed").chmod(0o700)
    secret = f"{tmp_path}/exp/secret.pth: no permission to read it"
    assert said == [
        f"{tmp_path}/secret.yaml: no permission to read it",
        *[secret] * 3,
        f"{tmp_path}/closed/x.yaml: no permission to enter the folder {tmp_path}/closed",
        f"{audio} cannot be read: no permission to read it",
        f"{tmp_path}/fixed/new.txt cannot be written: no permission to write there",
        f"{tmp_path}/fixed/new.txt: no permission to write there",
    ], done.stderr


# ---- copies


@pytest.mark.parametrize(
    "name", ["19-198 (1).trans.txt", "Copy of 19-198.trans.txt", "19-198 - Kopie.trans.txt", "0.trans.txt"]
)
def test_of_a_transcript_and_its_copy_the_copy_is_named(tmp_path, name):
    folder = make_chapter(tmp_path)
    shutil.copy(folder / "19-198.trans.txt", folder / name)
    line = line_of(read_subset, tmp_path, "dev-clean")
    assert line.startswith(
        f"{folder}/{name}: utterance 19-198-0000 is there twice, first in 19-198.trans.txt; remove {name}"
    )


@pytest.mark.parametrize("name", ["19-198-0001 (1).flac", "Copy of 19-198-0001.flac", "19-198-0001 - Kopie.flac"])
def test_a_copy_of_an_audio_file_is_named(tmp_path, name):
    folder = make_chapter(tmp_path)
    shutil.copy(folder / "19-198-0001.flac", folder / name)
    line = line_of(read_subset, tmp_path, "dev-clean")
    assert line == f"{folder}/{name} has no transcript; remove it if it is a copy of 19-198-0001.flac"
    (folder / name).rename(folder / "19-198-00011.flac")
    assert line_of(read_subset, tmp_path, "dev-clean") == f"{folder}/19-198-00011.flac has no transcript"
