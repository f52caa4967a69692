"""The figures of a training run, epoch by epoch, in ``history.json`` of its folder."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from espnet_pinch.asr.head import Head, all_heads
from espnet_pinch.errors import UserError
from espnet_pinch.files import read_json, write_json

if TYPE_CHECKING:
    from espnet2.train.reporter import Reporter, SubReporter

FILE = "history.json"
POINTS_PER_EPOCH = 20
# Figures that are also kept within an epoch.
LOSSES = tuple(head.loss for head in all_heads().values())
POINT = ("loss", *LOSSES, "loss_distill", "penalty", "sparsity", "macs_saved", "bits", "tau", "eta")


def read(folder: str | Path) -> dict[str, dict]:
    """``{epoch: {"train": figures, "valid": figures}}``; empty if nothing was trained.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / FILE
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError:
        raise UserError(
            f"{path} is damaged; remove it and train.done beside it, and run stage 4 again, which rebuilds it from the "
            "checkpoint"
        ) from None


def head_of(epochs: dict[str, dict]) -> Head:
    """The head of the model that a history, with an epoch at least, is of."""
    figures = next(iter(epochs.values()))["train"]
    return next(head for head in all_heads().values() if head.loss in figures)


def mend(folder: str | Path, reporter: Reporter) -> None:
    """After a resume, add the epochs that the file lacks, from ``reporter``. The file may be damaged or missing.

    The reporter has the means, the time and the length of an epoch. It has no figures within an epoch, no memory and no
    device.
    """
    path = Path(folder) / FILE
    try:
        epochs = read(folder)
    except UserError:
        epochs = {}
    lost = [e for e, phases in reporter.stats.items() if {"train", "valid"} <= phases.keys() and str(e) not in epochs]
    if not lost:
        return
    print(f"warning: {path} was damaged or lacked epochs: rebuilt from the checkpoint, in less detail", flush=True)
    for epoch in lost:
        for phase in ("train", "valid"):
            stats = dict(reporter.stats[epoch][phase])
            seconds, count = stats.pop("time").total_seconds(), stats.pop("total_count")
            figures = {key: _plain(value) for key, value in stats.items()}
            more = {"seconds": seconds, "peak_memory_bytes": 0, "device": ""}
            if phase == "train":
                more["points"] = [{"iteration": count, **{k: figures[k] for k in POINT if k in figures}}]
            epochs.setdefault(str(epoch), {})[phase] = {**figures, **more}
    write_json(path, {str(epoch): epochs[str(epoch)] for epoch in sorted(map(int, epochs))})


def record(folder: str | Path, reporter: SubReporter, steps_before: int = 0, **more) -> None:
    """Add a phase ("train" or "valid") of an epoch to the file.

    Records of this phase and of later epochs, which a killed run has left, are dropped.

    Args:
        folder: of the training.
        reporter: has observed the phase.
        steps_before: iterations of earlier epochs, to number the points of a training epoch.
        more: figures that ``reporter`` does not have.
    """
    epoch, phase = reporter.get_epoch(), reporter.key
    figures = {key: _mean(values) for key, values in reporter.stats.items()} | more
    figures["seconds"] = time.perf_counter() - reporter.start_time
    figures["peak_memory_bytes"] = peak_memory()
    figures["device"] = device_name()
    if phase == "train":
        figures["points"] = _points(reporter, steps_before)
    kept = {e: phases for e, phases in read(folder).items() if int(e) < epoch or (int(e) == epoch and phase != "train")}
    kept.setdefault(str(epoch), {})[phase] = figures
    write_json(Path(folder) / FILE, kept)


def peak_memory() -> int:
    """Peak memory in bytes: allocated on the GPU if one is in use, else resident memory of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name() -> str:
    """Name of the GPU in use, or else of the CPU with the number of threads."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.get_device_name()
    return f"{cpu_info().get('model name', 'CPU')}, {torch.get_num_threads()} threads"


def cpu_info() -> dict[str, str]:
    """What Linux says of the processor's last core, such as "model name"; empty where it says nothing."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _points(reporter: SubReporter, steps_before: int) -> list[dict]:
    """Means of the training figures over each twentieth of the epoch, with the number of its last iteration."""
    length = max(reporter.count // POINTS_PER_EPOCH, 1)
    keys = [k for k in POINT if k in reporter.stats]
    points = []
    for start in range(0, reporter.count, length):
        end = min(start + length, reporter.count)
        means = {k: _mean(reporter.stats[k][start:end]) for k in keys}
        points.append({"iteration": steps_before + end, **means})
    return points


def _mean(values) -> float | None:
    from espnet2.train.reporter import aggregate  # here: who reads a history needs no ESPnet

    return _plain(aggregate(values))


def _plain(value) -> float | None:
    value = float(value)
    return value if value == value else None  # JSON has no NaN
