"""Write files and folders that get their final name only when they are complete, and that survive a power cut.

A writer uses a temporary name, such as ``.STEM.tmp-XXXXXXXX.SUFFIX``, and holds a lock (flock) on it as long as it
lives. It removes what killed writers of the same name have left, and restores an old folder that one had moved aside.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar


class _Dataclass(Protocol):  # what type checkers know a dataclass by
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


Record = TypeVar("Record", bound=_Dataclass)

# {error number of a refused write: what is wrong and what to do}
DISK_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run again",
    errno.EDQUOT: "your disk quota is used up; free some space and run again",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EFBIG: "the file system does not allow a file of that size",
}
_LOW = 1 << 16  # bytes; a disk with less free space counts as full


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``. If the block succeeds, move it to ``path``; otherwise remove it.

    Raises:
        OSError: the disk is full, is read-only or refuses for another reason; the message names ``path``.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean(path)
        new, lock = _temporary(path, lambda new: os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)))
    try:
        with disk_errors(path):  # inside the try: without the temporary file, the disk would no longer be full
            yield new
            os.chmod(new, 0o666 & ~_umask())  # safetensors writes files that only their owner can read
            _sync(new)
            os.replace(new, path)
            _sync(path.parent)
    finally:
        new.unlink(missing_ok=True)
        os.close(lock)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``. If the block succeeds, replace ``path`` by it; otherwise remove it.

    Raises:
        OSError: as in ``whole_file``, or ``path`` is a file.
    """
    path = Path(os.path.realpath(path))  # a link to a folder elsewhere stays a link
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean(path)
        new, lock = _temporary(path, lambda new: new.mkdir())
    try:
        with disk_errors(path):
            yield new
            os.sync()  # one for all: an fsync for each of LibriSpeech's 28,539 training files takes minutes
            _swap(new, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def alone(path: str | os.PathLike, waiting: str) -> Iterator[None]:
    """Hold ``path.lock`` while the block runs. If another process holds it, print ``waiting`` and wait.

    The kernel releases the lock when its process ends, even if it is killed.
    """
    path = Path(path)
    lock = path.with_name(path.name + ".lock")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(waiting, flush=True)
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                pass
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(lock)):
                    break
            os.close(handle)  # its last holder has removed the file: try again
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike) -> Iterator[None]:
    """If a disk refuses what the block writes, raise an OSError that names ``path`` and says what to do.

    Libraries report a full disk in many ways, some by an assertion. So if the disk is full, an error of any other kind
    counts as its report, except a ValueError.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        system = error if isinstance(error, OSError) else None
        code = system.errno if system else None
        if system and code in (errno.EACCES, errno.EPERM) and system.filename and _is_read(system.filename, path):
            raise
        if not system and (re.search(r"No space left|disk is full|code: 28\b", str(error)) or _full(path)):
            code = errno.ENOSPC
        if code is None or code not in DISK_REASONS:
            raise
        named = OSError(f"{path} cannot be written: {DISK_REASONS[code]}")
        named.errno = code
        raise named from None


def _is_read(filename, path: str | os.PathLike) -> bool:
    """Whether an error's file is one that the block reads: it is outside the folder of ``path``, or not readable."""
    filename = os.path.abspath(os.fsdecode(filename))
    another = not filename.startswith(os.path.dirname(os.path.abspath(path)))
    return another or os.path.isfile(filename) and not os.access(filename, os.R_OK)


def _full(path: str | os.PathLike) -> bool:
    for parent in Path(path).absolute().parents:
        with contextlib.suppress(OSError):
            found = os.statvfs(parent)
            return found.f_bavail * found.f_frsize < _LOW or found.f_files > 0 and not found.f_favail
    return False


def _temporary(path: Path, make) -> tuple[Path, int]:
    """Make a temporary file or folder beside ``path``. Returns it and its lock, which is held until it is closed."""
    while True:
        new = path.with_name(f".{path.stem}.tmp-{secrets.token_hex(4)}{path.suffix}")
        make(new)
        with contextlib.suppress(FileNotFoundError):  # another writer removed it before it was locked
            lock = os.open(new, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:
                return new, lock
            os.close(lock)


def _clean(path: Path) -> None:
    """Remove what killed writers of ``path`` have left. A locked file or folder has a living writer and stays."""
    left = re.compile(rf"\.{re.escape(path.stem)}\.(tmp|old)-[0-9a-f]{{8}}{re.escape(path.suffix)}")
    for entry in list(os.scandir(path.parent)):
        match = left.fullmatch(entry.name)
        if not match:
            continue
        with contextlib.suppress(OSError):
            if match[1] == "old" and not path.exists():
                os.replace(entry.path, path)
                continue
            lock = os.open(entry.path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
            finally:
                os.close(lock)


def _swap(new: Path, path: Path) -> None:
    """Replace the folder ``path`` by ``new``. At any moment one of the two is there or can be restored."""
    old = new.with_name(new.name.replace(".tmp-", ".old-"))
    if path.is_file():
        raise NotADirectoryError(f"{path} is a file, but a folder of that name must be written: move the file away")
    while True:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, old)
        try:
            os.replace(new, path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # these mean another writer's folder: replace it too
                with contextlib.suppress(OSError):
                    os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: str | os.PathLike) -> None:
    """Make the disk store a file's content, or a folder's list of names, before anything relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot do it
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike, text: str) -> None:
    with whole_file(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def from_json(kind: type[Record], values: dict) -> Record:
    """A dataclass out of a JSON object whose keys are its fields. Other keys are passed over.

    Raises:
        KeyError: a key is missing whose field has no default; the error's argument is the key.
    """
    fields = dataclasses.fields(kind)
    for field in fields:
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise KeyError(field.name)
    return kind(**{field.name: values[field.name] for field in fields if field.name in values})
