"""The cache of compiled models: made once, checked, and made again where it is damaged."""

import dataclasses
import os

import pytest

from espnet_pinch.errors import UserError
from espnet_pinch.inference import cache
from espnet_pinch.inference.cache import CACHE_FOLDER, RECORD, kept


@pytest.fixture
def box(tmp_path, monkeypatch):
    """Makes a folder from ``source``; counts how often, and collects what is said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "source").write_text("weights")
    return Box(tmp_path / "in" / "source")


@dataclasses.dataclass
class Box:
    source: os.PathLike
    made: int = 0
    said: list = dataclasses.field(default_factory=list)

    def get(self, version="v1"):
        return kept([self.source], "toy", [version], self.build, self.said.append)

    def build(self, folder):
        self.made += 1
        (folder / "deep").mkdir()
        (folder / "deep" / "result").write_text(f"made of {self.source.read_text()}")


def test_a_folder_is_made_once_until_something_changes(box):
    first = box.get()
    assert first == box.get() and box.made == 1 and not box.said
    assert first.parent == box.source.parent / CACHE_FOLDER and first.name.startswith("source-toy-")
    assert box.get("v2") != first and box.made == 2
    box.source.write_text("other weights")
    assert (box.get() / "deep" / "result").read_text() == "made of other weights" and box.made == 3
    box.source.write_text("weights")
    assert box.get() == first and box.made == 3


@pytest.mark.parametrize("harm", ["changed", "gone", "cut", "no record", "record", "foreign"])
def test_a_damaged_or_foreign_folder_is_made_again_and_said(box, harm):
    folder = box.get()
    result = folder / "deep" / "result"
    if harm in ("changed", "cut"):
        result.write_text("made of weightz" if harm == "changed" else "made")
    elif harm == "gone":
        result.unlink()
    elif harm == "no record":
        (folder / RECORD).unlink()
    else:
        (folder / RECORD).write_text("[1" if harm == "record" else '{"program": "another", "files": {"a": "b"}}')
    assert box.get() == folder and box.made == 2 and result.read_text() == "made of weights"
    [line] = box.said
    what = "is damaged (deep/result)" if harm in ("changed", "gone", "cut") else "was not made by espnet_pinch, or is"
    assert line.startswith(f"note: {folder} {what}") and line.endswith("it is made again")
    assert box.get() == folder and box.made == 2


def test_a_failed_build_leaves_nothing(box, monkeypatch):
    monkeypatch.setattr(Box, "build", lambda self, folder: (folder / "half").write_text("") and 1 / 0 or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        box.get()
    assert list((box.source.parent / CACHE_FOLDER).iterdir()) == []


def test_a_folder_that_cannot_be_written_falls_back_and_says_so(box, tmp_path, monkeypatch):
    closed = [tmp_path / "in"]
    able = cache._can_write
    monkeypatch.setattr(cache, "_can_write", lambda p: not any(p.is_relative_to(c) for c in closed) and able(p))
    beside = box.source.parent / CACHE_FOLDER
    first = box.get()
    assert first.parent == tmp_path / "user" / "espnet_pinch" and first.parent.stat().st_mode & 0o777 == 0o700
    assert box.said == [f"note: {beside} cannot be written; the model for toy is kept in {first.parent}"]
    assert box.get() == first and box.made == 1 and len(box.said) == 1
    first.parent.chmod(0o777)  # anybody could have put it there
    closed.append(tmp_path / "user")
    second = box.get()
    assert second.parent.parent == tmp_path / "temporary" and box.made == 2
    closed.append(tmp_path)
    with pytest.raises(UserError, match="no place to keep the model for toy: none of .* can be written"):
        box.get("v2")


def test_a_read_only_place_is_seen(tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(30, "Read-only file system")

    assert cache._can_write(tmp_path / "a" / "b")
    monkeypatch.setattr(cache.tempfile, "TemporaryFile", refuse)
    assert not cache._can_write(tmp_path / "a" / "b")
