"""Killed at any moment, a training folder stays usable: whole checkpoints, links that lead somewhere, one owner."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from espnet2.train.reporter import Reporter

from espnet_pinch.files import whole_file


@contextlib.contextmanager
def whole_saves() -> Iterator[None]:
    """Inside, ``torch.save`` to a path writes a temporary file and renames it: ESPnet's saves are not atomic."""
    plain = torch.save

    def save(value, target, *args, **kwargs):
        if not isinstance(target, (str, os.PathLike)):
            return plain(value, target, *args, **kwargs)
        with whole_file(target) as tmp:
            plain(value, tmp, *args, **kwargs)

    torch.save = save
    try:
        yield
    finally:
        torch.save = plain


@contextlib.contextmanager
def owned(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a training folder alone. The kernel lets go when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it; the message says which.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(
                f"{folder} is being trained by {file.read().strip() or 'another process'}; wait for it or stop it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def mend(folder: Path, model: torch.nn.Module, reporter: Reporter, criteria: Sequence[Sequence[str]]) -> None:
    """After a resume: make what a kill between the saves of an epoch has left out.

    ESPnet saves checkpoint.pth, then Nepoch.pth, then the links latest.pth and PHASE.KEY.best.pth.
    """
    epoch = reporter.get_epoch()
    newest = folder / f"{epoch}epoch.pth"
    if not newest.exists():
        logging.warning(f"{newest} was lost in a kill: written again from checkpoint.pth")
        torch.save(model.state_dict(), newest)
    _link(folder / "latest.pth", newest.name)
    for phase, key, mode in criteria:
        best = folder / f"{reporter.get_best_epoch(phase, key, mode)}epoch.pth"
        if best.exists():
            _link(folder / f"{phase}.{key}.best.pth", best.name)


def _link(path: Path, target: str) -> None:
    tmp = path.with_name(f".{path.name}.{os.getpid()}")
    tmp.symlink_to(target)
    os.replace(tmp, path)
