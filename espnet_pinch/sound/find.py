"""Find the sound files of a folder, by their endings or by their first bytes."""

import dataclasses
import os
from pathlib import Path

import soundfile

from espnet_pinch.sound import ffmpeg, mpeg
from espnet_pinch.sound.read import HEADERLESS, open_regular

# Endings of files that soundfile reads: the names of its formats, and other common endings. MATLAB's .mat is not here:
# the user must name such a file. .raw and .pcm (samples without a header) are here so that they get an error message.
ENDINGS = {f".{name.lower()}" for name in soundfile.available_formats()} | {
    *(".wave", ".bwf", ".rf64", ".aif", ".aifc", ".aiffc", ".snd", ".8svx", ".iff", ".sph", ".wv1", ".wv2", ".sf"),
    *(".oga", ".opus", ".fla", *HEADERLESS, *mpeg.ENDINGS, *ffmpeg.ENDINGS),
}
_MAGICS = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"fLaC", b"OggS", b"caff", b".snd", b"NIST_1A", b"ID3")
_APPLE_DOUBLE = b"\0\5\x16\7"


@dataclasses.dataclass
class Found:
    """What a folder holds.

    Attributes:
        files: sound files, and files with such a name, sorted.
        problems: one line for every folder that could not be read.
        companions: number of macOS's companions of files (``._NAME``), which hold no sound.
    """

    files: list[Path] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    companions: int = 0


def find_audio(path: str | os.PathLike) -> Found:
    """``path`` itself if it is not a folder, otherwise the sound files anywhere in it. Links are followed.

    A folder that can be reached in several ways is read once, if possible by a path without links.

    Raises:
        FileNotFoundError: ``path`` does not exist.
    """
    path = Path(path)
    if not path.is_dir():
        if not os.path.lexists(path):
            raise FileNotFoundError(f"{path}: does not exist")
        return Found([path])
    found, seen, waiting = Found(), set(), [path]
    links: list[Path] = []
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if _is_folder(entry):
                        (links if entry.is_symlink() else waiting).append(Path(entry.path))
                    else:
                        _take(Path(entry.path), found)
        except OSError as error:
            found.problems.append(f"{folder}: {error.strerror}; the files in this folder are left out")
    found.files.sort()
    return found


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; opening it gives the error message
        return False


def _take(path: Path, found: Found) -> None:
    known = path.suffix.lower() in ENDINGS
    head = _head(path) if not known or path.name.startswith("._") else b""
    if path.name.startswith("._") and head.startswith(_APPLE_DOUBLE):
        found.companions += known
    elif known or head.startswith(_MAGICS):
        found.files.append(path)


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(8)
    except OSError:
        return b""
