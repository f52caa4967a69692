"""Progress of long work: on a terminal a bar with the time left, in a file a line from time to time."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

INTERVAL = 30.0  # seconds between two lines
# A step's stdout goes through a pipe into its log. This variable has the number of a file descriptor that leads to the
# terminal, past the pipe.
TERMINAL = "ESPNET_PINCH_TERMINAL"


def progress_bar(iterable: Iterable | None = None, *, desc: str, unit: str, total: int | None = None, **kwargs) -> tqdm:
    """A tqdm bar if stdout is a terminal; otherwise lines, at most one per ``INTERVAL`` seconds and one at the end.

    Args:
        iterable, total, kwargs: as for tqdm.
        desc: name of the work, such as "decoding dev_clean".
        unit: name of what is counted, such as "utts".
    """
    kwargs.update(desc=desc, total=total, unit=f" {unit}", disable=False)
    if sys.stdout.isatty():
        return tqdm(iterable, file=sys.stdout, mininterval=0.2, dynamic_ncols=True, **kwargs)
    return Lines(iterable, file=sys.stdout, mininterval=INTERVAL, miniters=1, delay=INTERVAL, **kwargs)


class Lines(tqdm):
    """A tqdm bar that prints its states as lines with the time. If there is a terminal, it also shows a bar there.

    2026-01-31 12:00:00 decoding dev_clean: 120/500 utts (24 %), 3.1 utts/s, 2 min left
    """

    def __init__(self, iterable=None, **kwargs):
        super().__init__(iterable, **kwargs)
        self.bar = None
        with contextlib.suppress(ValueError, OSError):
            terminal = int(os.environ.get(TERMINAL, ""))
            if os.isatty(terminal):
                more = {
                    "file": os.fdopen(os.dup(terminal), "w", encoding="utf-8", errors="replace"),
                    "mininterval": 0.2,
                    "miniters": None,
                    "delay": 0,
                }
                more.update(total=self.total, position=0, leave=False, dynamic_ncols=True)
                self.bar = tqdm(**{**kwargs, **more})

    def __iter__(self):
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def update(self, n=1):
        if self.bar is not None:
            self.bar.update(n)
        return super().update(n)

    def display(self, msg=None, pos=None):
        if not self._ended():  # close() prints the last state once
            self._print()

    def _ended(self) -> bool:
        return self.total is not None and self.n >= self.total

    def _print(self) -> None:
        if self.bar is not None:
            self.bar.clear()
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        # The new line goes out with the line: an error message could come between the two.
        print(f"{now} {describe(self.format_dict)}\n", end="", file=self.fp, flush=True)

    def close(self):
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        if self.total is None or self._ended():  # otherwise an error message follows, which says more
            self._print()
        if self.bar is not None:
            self.bar.close()
            self.bar.fp.close()


def describe(state: dict) -> str:
    """One line for the state of a bar (tqdm's ``format_dict``).

    >>> state = {"prefix": "decoding dev", "unit": " utts", "unit_scale": False, "n": 120, "total": 500, "initial": 0}
    >>> describe({**state, "elapsed": 40.0})
    'decoding dev: 120/500 utts (24 %), 3.0 utts/s, 2 min left'
    >>> describe({**state, "n": 500, "elapsed": 200.0})
    'decoding dev: 500/500 utts (100 %), 2.5 utts/s, took 3 min'
    """
    n, total, elapsed = state["n"], state["total"], state["elapsed"]
    unit = state["unit"].strip()
    number = (lambda x: tqdm.format_sizeof(x, "", 1000)) if state["unit_scale"] else str
    rate = (n - state["initial"]) / elapsed if elapsed else 0.0
    speed = f"{tqdm.format_sizeof(rate) if state['unit_scale'] else f'{rate:.1f}'} {unit}/s"
    if total is None:
        return f"{state['prefix']}: {number(n)} {unit}, {speed}, after {duration(elapsed)}"
    share = int(100 * n // total) if total else 100
    end = f"{duration((total - n) / rate)} left" if n < total and rate else f"took {duration(elapsed)}"
    return f"{state['prefix']}: {number(n)}/{number(total)} {unit} ({share} %), {speed}, {end}"


def duration(seconds: float) -> str:
    """A duration as text for people.

    >>> [duration(s) for s in (4, 150, 5400)]
    ['4 s', '2 min', '1 h 30 min']
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
