"""Progress bars of long work, on stdout: stderr goes to the stages' logs."""

import sys

from tqdm import tqdm


def progress_bar(*args, **kwargs) -> tqdm:
    """A tqdm bar, drawn at most every 5 seconds where the output is not a terminal."""
    interval = 0.5 if sys.stdout.isatty() else 5
    return tqdm(*args, mininterval=interval, file=sys.stdout, **kwargs)
