"""Keep a training folder usable, whenever the training is killed.

Checkpoints are complete or absent, the previous one is kept, and only one process trains in a folder.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from espnet2.main_funcs.average_nbest_models import average_nbest_models
from espnet2.train.reporter import Reporter

from espnet_pinch.asr.head import SHORT_OF_TARGET, on_target
from espnet_pinch.asr.safe_load import damage, load, tensors_only
from espnet_pinch.errors import UserError
from espnet_pinch.files import whole_file

NEWEST, PREVIOUS = "checkpoint.pth", "checkpoint.previous.pth"
MIDDLE = "middle"  # key of a checkpoint from within an epoch, see PruningTrainer


@contextlib.contextmanager
def whole_saves() -> Iterator[None]:
    """Inside the block, ``torch.save`` to a path writes a temporary file and renames it; ESPnet's saves are not atomic.

    The previous checkpoint.pth is kept. A kill between the two renames leaves only that one, see ``recover``.

    Raises (in ``torch.save``):
        OSError: the file cannot be written; the old file is unchanged.
    """
    plain = torch.save

    def save(value, target, *args, **kwargs):
        if not isinstance(target, (str, os.PathLike)):
            return plain(value, target, *args, **kwargs)
        target = Path(target)
        with whole_file(target) as tmp:
            plain(value, tmp, *args, **kwargs)
            if target.name == NEWEST and target.exists():
                os.replace(target, target.with_name(PREVIOUS))

    torch.save = save
    try:
        yield
    finally:
        torch.save = plain


@contextlib.contextmanager
def owned(folder: str | os.PathLike) -> Iterator[None]:
    """Lock a training folder for this process. The kernel releases the lock when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds the lock; the message names it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        try:
            # Not flock: workers that load batches inherit its lock, and outlive a killed training by some seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise BlockingIOError(
                f"{folder} is being trained by {file.read().strip() or 'another process'}; wait for it or stop it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def recover(folder: Path) -> None:
    """Before a resume, remove temporary links that a kill has left, and check that checkpoint.pth is intact.

    If it is damaged or missing, the previous checkpoint takes its place, and a line on stdout says so.

    Raises:
        UserError: the folder holds a training, but no intact checkpoint to resume from.
    """
    for path in folder.glob(".*.pth.*"):
        path.unlink()
    newest, previous = folder / NEWEST, folder / PREVIOUS
    wrong = _wrong(newest)
    if wrong is None:
        return
    if not newest.exists() and not previous.exists():
        if any(folder.glob("[0-9]*epoch.pth")):
            raise UserError(
                f"{folder} has the models of a training, but no {NEWEST} to resume from: put it back, or remove "
                "that folder to train from the start"
            )
        return
    wrong_too = _wrong(previous)
    if wrong_too is not None:
        raise UserError(
            f"no checkpoint to resume from: {newest}: {wrong}; {previous}: {wrong_too}; put a copy of one of them "
            f"back as {NEWEST}, or remove {folder} to train from the start"
        )
    os.replace(previous, newest)
    print(f"warning: {newest}: {wrong}; resuming from the previous checkpoint", flush=True)


def _wrong(path: Path) -> str | None:
    return damage(path) if path.exists() else "it is missing"


def mend(folder: Path, reporter: Reporter, criteria: Sequence[Sequence[str]], keep: int | Sequence[int]) -> None:
    """After a resume, write what a kill between the saves of an epoch has left out, and check the best epochs' files.

    ESPnet saves checkpoint.pth, then Nepoch.pth, then the links latest.pth and PHASE.KEY.best.pth. At the end of the
    training it writes the mean of the ``keep`` best epochs. An epoch whose file is missing can no longer be one of
    them: ``reporter`` forgets it, and a line on stdout says so.

    Args:
        folder: of the training.
        reporter: of the resumed training.
        criteria: ESPnet's best_model_criterion, a (phase, key, "min" or "max") each.
        keep: ESPnet's keep_nbest_models.

    Raises:
        UserError: the file of one of the best epochs is damaged, and no checkpoint holds the model of that epoch.
    """
    newest, count = reporter.get_epoch(), keep if isinstance(keep, int) else max(keep, default=1)
    ranked = [reporter.sort_epochs(*criterion) for criterion in criteria if reporter.has(*criterion[:2])]
    for epoch in sorted({newest, *(epoch for epochs in ranked for epoch in epochs[:count])} - {0}):
        path = folder / f"{epoch}epoch.pth"
        wrong = _wrong(path)
        if wrong is None:
            continue
        state = _state_of(folder, epoch)
        if state is not None:
            logging.warning(f"{path}: {wrong}; written again from the checkpoint")
            torch.save(state, path)
        elif path.exists():
            raise UserError(
                f"{path}: {wrong}; it is one of the best epochs. Put a copy back, or remove it to choose among the "
                "others"
            )
        else:
            print(f"warning: {path}: {wrong}; epoch {epoch} can no longer be one of the best", flush=True)
            del reporter.stats[epoch]
    if (folder / f"{newest}epoch.pth").exists():
        _link(folder / "latest.pth", f"{newest}epoch.pth")
    for phase, key, mode in criteria:
        if reporter.has(phase, key):
            _link(folder / f"{phase}.{key}.best.pth", f"{reporter.get_best_epoch(phase, key, mode)}epoch.pth")


def average_again(folder: Path, criteria: Sequence[Sequence[str]], keep: int | Sequence[int]) -> None:
    """Write the mean of the best epochs again, as at the end of a training.

    Args:
        folder, criteria, keep: as ``mend``.

    Raises:
        OSError, UserError: as ``mend``, or the checkpoint cannot be read.
    """
    reporter = Reporter()
    reporter.load_state_dict(load(folder / NEWEST, map_location="cpu", mmap=True)["reporter"])
    with whole_saves(), tensors_only():
        mend(folder, reporter, criteria, keep)
        average_best(output_dir=folder, reporter=reporter, best_model_criterion=criteria, nbest=keep)


def average_best(
    output_dir: Path,
    reporter: Reporter,
    best_model_criterion: Sequence[Sequence[str]],
    nbest: int | Sequence[int],
    **more,
) -> None:
    """As ESPnet's ``average_nbest_models``. Where there are epochs on target, the mean is of no other."""
    counts = [nbest] if isinstance(nbest, int) else [*nbest]
    for phase, key, mode in best_model_criterion:
        of_it = counts
        if key.endswith(on_target("")) and reporter.has(phase, key):
            rates = [rate for _, rate in reporter.sort_epochs_and_values(phase, key, mode)]
            met = sum(rate < SHORT_OF_TARGET for rate in rates)
            if 0 < met < min(max(counts, default=1), len(rates)):
                print(f"averaged: {met} of the {max(counts)} best epochs; the others end below the target", flush=True)
                of_it = sorted({min(count, met) for count in counts})
        average_nbest_models(output_dir, reporter, [(phase, key, mode)], of_it, **more)


def _state_of(folder: Path, epoch: int) -> dict | None:
    """The model at the end of an epoch; None if no checkpoint holds it."""
    for path in (folder / NEWEST, folder / PREVIOUS):
        if _wrong(path) is None:
            states = load(path, map_location="cpu", mmap=True)
            if states["reporter"]["epoch"] == epoch and MIDDLE not in states:
                return states["model"]
    return None


def _link(path: Path, target: str) -> None:
    tmp = path.with_name(f".{path.name}.{os.getpid()}")
    tmp.symlink_to(target)
    os.replace(tmp, path)
