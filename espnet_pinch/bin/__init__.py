"""Entry points: ``python -m espnet_pinch.bin.NAME --help``."""

import multiprocessing
import sys
from collections.abc import Callable

from espnet_pinch.errors import explain


def run_main(main: Callable[[], None]) -> None:
    """Run an entry point; an error that its user can cause becomes one line on stderr and exit status 1."""
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        for child in multiprocessing.active_children():  # such as workers that load batches: the line is the last word
            child.terminate()
            child.join()
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
