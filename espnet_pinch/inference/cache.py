"""Folders that are made once of a model's files, and kept beside them.

The name of such a folder has the checksum of these files and the versions of what made it. So it is never out of date.
It can be deleted at any time.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from espnet_pinch.errors import UserError
from espnet_pinch.files import read_json, whole_folder, write_json

CACHE_FOLDER = "espnet_pinch_cache"
RECORD = "entry.json"
PROGRAM = "espnet_pinch"
_PRIVATE = 0o700


def kept(
    files: Sequence[Path],
    kind: str,
    versions: Sequence[str],
    build: Callable[[Path], None],
    say: Callable[[str], None],
) -> Path:
    """The folder that ``build`` fills, from the cache if it is there and undamaged.

    It is in ``CACHE_FOLDER`` beside the first file. If nothing can be written there, it is in the user's cache
    ($XDG_CACHE_HOME, ~/.cache) or in the folder for temporary files.

    Args:
        files: all that the result depends on.
        kind: what the folder is.
        versions: of all else that the result depends on; they become a part of the folder's name.
        build: fills an empty folder.
        say: is called with each line for the user.

    Raises:
        UserError: no place can be written to.
        OSError: a file cannot be read, or the disk is full.
    """
    name = "-".join([files[0].name[:80], kind, checksum(files), *versions])
    beside = files[0].absolute().parent / CACHE_FOLDER
    places = [beside, *_private_places()]
    for place in places:
        if (place / name).exists():
            fault = find_fault(place / name)
            if fault is None:
                return place / name
            say(f"note: {place / name} {fault}; it is made again")
    home = next((place for place in places if _can_write(place)), None)
    if home is None:
        raise UserError(f"no place to keep the model for {kind}: none of {', '.join(map(str, places))} can be written")
    if home != beside:
        say(f"note: {beside} cannot be written; the model for {kind} is kept in {home}")
    with whole_folder(home / name) as new:
        build(new)
        made = sorted(path for path in new.rglob("*") if path.is_file())
        record = {str(path.relative_to(new)): checksum([path]) for path in made}
        write_json(new / RECORD, {"program": PROGRAM, "files": record})
    return home / name


def checksum(files: Sequence[Path]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the files' SHA-256.

    Raises:
        OSError: a file cannot be read.
    """
    total = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def find_fault(folder: Path) -> str | None:
    """What is wrong with a folder of ``kept``, in words that follow its name; None if nothing is."""
    try:
        record = read_json(folder / RECORD)
        program, files = record["program"], dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        program, files = None, {}
    if program != PROGRAM or not files:
        return "was not made by espnet_pinch, or is damaged"
    for name, wanted in files.items():
        try:
            damaged = checksum([folder / name]) != wanted
        except OSError:
            damaged = True
        if damaged:
            return f"is damaged ({name})"
    return None


def _private_places() -> list[Path]:
    """Folders that belong to the user alone: nobody else can put a model there."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / PROGRAM
    places = [user, Path(tempfile.gettempdir()) / f"{PROGRAM}-{os.getuid()}"]
    return [place for place in places if not os.path.lexists(place) or _is_private(place)]


def _is_private(place: Path) -> bool:
    found = place.stat(follow_symlinks=False)
    return place.is_dir() and not place.is_symlink() and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _can_write(place: Path) -> bool:
    try:
        place.mkdir(mode=0o777 if place.name == CACHE_FOLDER else _PRIVATE, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False
