"""Find the reason why a file cannot be read, before it is called damaged."""

import errno
import os
from pathlib import Path

_POINTER = b"version https://git-lfs.github.com/"
POINTER = "is a Git LFS pointer, not the file itself: run git lfs pull in its repository"
_STALLED = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO)  # a bad disk, or a network disk that is gone


def why_unreadable(path: str | os.PathLike, whole: bool = True) -> str | None:
    """Words that follow a file's name and say why it cannot be read or is only a pointer; None if all is well.

    Args:
        path: path of the file.
        whole: read the whole file, because a disk may fail anywhere; otherwise read only its first bytes.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_POINTER))
            while whole and file.read(1 << 20):
                pass
    except OSError as error:
        return reading_reason(error, path)
    return POINTER if is_pointer(start) else None


def is_pointer(start: bytes) -> bool:
    """Whether a file with these first bytes is a pointer, which Git puts in place of a file that Git LFS stores."""
    return start.startswith(_POINTER)


def reading_reason(error: OSError, path: str | os.PathLike) -> str:
    """Words that follow the name of ``path`` and say why it could not be read."""
    if isinstance(error, PermissionError):
        return f"cannot be read: {permission_reason(path)}"
    if isinstance(error, FileNotFoundError):
        link = f" (it is a link to {os.readlink(path)}, which does not exist)" if os.path.islink(path) else ""
        return f"does not exist{link}"
    if isinstance(error, IsADirectoryError):
        return "is a folder, but a file is needed"
    if error.errno in _STALLED:
        return f"cannot be read (the disk fails): {error.strerror}"
    return f"cannot be read: {error.strerror or error}"


def permission_reason(path: str | os.PathLike) -> str:
    """Which permission for ``path`` is missing, as far as that can be found out; the error itself does not say."""
    path = Path(os.fsdecode(path)).absolute()
    for folder in reversed(path.parents):
        if not os.access(folder, os.X_OK):
            return f"no permission to enter the folder {folder}"
    if not os.path.lexists(path):
        return "no permission to write there"
    read, write = os.access(path, os.R_OK), os.access(path, os.W_OK)
    if read:
        return "no permission to write there" if not write else "the system does not permit it"
    return "no permission to read it" if write else "no permission to read or write it"
