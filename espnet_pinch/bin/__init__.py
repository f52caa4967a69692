"""Entry points: ``python -m espnet_pinch.bin.NAME --help``."""

import sys
from collections.abc import Callable


def run_main(main: Callable[[], None]) -> None:
    """Run an entry point; an error that its user can cause becomes one line on stderr and exit status 1."""
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
