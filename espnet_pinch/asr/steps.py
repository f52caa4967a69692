"""The steps of an epoch: save and resume within it, and stop if the training has diverged."""

import contextlib
import multiprocessing
import os
import random
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue

import numpy as np
import torch
from espnet2.train.reporter import Average, SubReporter, WeightedAverage

from espnet_pinch.progress import progress_bar


class Steps:
    """The batches of an epoch for ESPnet's loop, with a call after each optimizer step.

    Args:
        batches: the epoch's ``DataLoader``, whose ``batch_sampler`` is a list.
        accum_grad: batches in an optimizer step.
        done: called after each step with the number of batches done in the epoch, and the step's utterance ids.
        start: batches that an earlier run has done, a multiple of ``accum_grad``; they are skipped.
        begin: called before the first batch is loaded.
        title: of a progress bar; None shows no bar.
    """

    def __init__(
        self,
        batches,
        accum_grad: int,
        done: Callable,
        start: int = 0,
        begin: Callable = lambda: None,
        title: str | None = None,
    ):
        self.batches, self.accum_grad, self.done, self.start, self.begin = batches, accum_grad, done, start, begin
        self.title, self.total = title, len(batches)
        if start:
            del batches.batch_sampler[:start]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator:
        batches = iter(self.batches)  # draws a seed for the workers
        self.begin()
        ids: list[str] = []
        bar = contextlib.nullcontext()
        if self.title:
            bar = progress_bar(desc=self.title, total=self.total, initial=self.start, unit="batches")
        with bar:
            for count, (names, batch) in enumerate(batches, self.start + 1):
                ids += names
                yield names, batch
                if self.title:
                    bar.update()
                if count % self.accum_grad == 0:  # runs when ESPnet asks for the next batch, after the step
                    self.done(count, ids)
                    ids = []


class Skipped:
    """Counts the optimizer steps that were skipped because the loss or a gradient was not finite.

    ESPnet itself skips such a step and leaves the weights unchanged; the pruning method counts it. A single one is
    harmless, and so is an utterance that causes one in every epoch. A model that has diverged skips all later steps. So
    only skipped steps in a row count here. Loss scaling of AMP skips some in a row at the start, rarely more than ten.

    Args:
        limit: skipped steps in a row after which the training stops.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.in_row = 0
        self.of_epoch = 0

    def count(self, skipped: bool, where: str, ids: list[str], model: torch.nn.Module) -> None:
        """Count one step.

        Args:
            skipped: whether ESPnet skipped it.
            where: the batch and the epoch, in words for the message.
            ids: utterances of the step.
            model: whose parameters the message checks.

        Raises:
            FloatingPointError: it is the last of ``limit`` skipped steps in a row.
        """
        self.in_row = self.in_row + 1 if skipped else 0
        self.of_epoch += skipped
        if self.in_row >= self.limit:
            self.stop(where, ids, model)

    def stop(self, where: str, ids: list[str], model: torch.nn.Module) -> None:
        """Raise a FloatingPointError that says where it happened, with which utterances, and what to try."""
        broken = [name for name, p in model.named_parameters() if not p.isfinite().all()]
        raise FloatingPointError(
            f"diverged: {self.in_row} steps in a row without a finite loss and gradient, the last {where}"
            + (f", utterances {_some(ids)}" if ids else "")
            + (f"; not finite: {_some(broken)}" if broken else "")
            + "; try a lower optim_conf.lr or a longer warm-up under a new --asr_tag, and look at these utterances; "
            "the last checkpoint is whole"
        )


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def pack_figures(reporter: SubReporter) -> dict:
    """What an epoch's reporter has collected so far, as numbers and text only."""
    return {
        "count": reporter.count,
        "seconds": time.perf_counter() - reporter.start_time,
        "stats": {
            key: [(float(v.value), float(v.weight) if isinstance(v, WeightedAverage) else None) for v in values]
            for key, values in reporter.stats.items()
        },
    }


def unpack_figures(reporter: SubReporter, packed: dict) -> None:
    """Put what ``pack_figures`` returned into a fresh reporter of the same epoch."""
    reporter.count = packed["count"]
    reporter.total_count += packed["count"]
    reporter.start_time -= packed["seconds"]
    for key, values in packed["stats"].items():
        reporter.stats[key] = [Average(v) if w is None else WeightedAverage(v, w) for v, w in values]


def random_state() -> dict:
    """The state of every random generator that training uses, as tensors, numbers and text only."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: dict) -> None:
    """Restore what ``random_state`` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


@contextlib.contextmanager
def no_lost_batches() -> Iterator[None]:
    """Inside the block, a worker that cannot pass on a batch exits, and its loader raises an error.

    This happens if /dev/shm is full. Otherwise the worker would drop the batch, and the training would wait for ever.
    """
    before = Queue._on_queue_feeder_error

    def end(error, batch):
        if multiprocessing.parent_process() is None:
            return before(error, batch)
        traceback.print_exception(error)
        os._exit(1)

    Queue._on_queue_feeder_error = staticmethod(end)
    try:
        yield
    finally:
        Queue._on_queue_feeder_error = staticmethod(before)
