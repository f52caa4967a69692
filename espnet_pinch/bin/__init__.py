"""Entry points: ``python -m espnet_pinch.bin.NAME --help``."""

import argparse
import contextlib
import locale
import logging
import multiprocessing
import os
import select
import signal
import sys
import types
from collections.abc import Callable

from espnet_pinch.explain import explain

# A notebook's terminal sets a matplotlib backend that draws into the notebook. It may not be installed here.
os.environ["MPLBACKEND"] = "Agg"
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns if it cannot write to the home directory


def _say_what_is_missing(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Print one line if a package is missing while a program imports its modules, before ``run_main`` begins."""
    line = explain(error) if isinstance(error, ModuleNotFoundError) else None
    if line is None:
        _say_all(kind, error, trace)
    else:
        print(f"error: {line}", file=sys.stderr)


_say_all, sys.excepthook = sys.excepthook, _say_what_is_missing


def jobs(text: str) -> int:
    """A number of threads or processes, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


_BROKEN_PIPE = 128 + signal.SIGPIPE  # exit status in a shell of a program that writes to a closed pipe


def run_main(main: Callable[[], None]) -> None:
    """Run an entry point. An error that its user can cause becomes one line on stderr and exit status 1.

    If the reader of its output has ended (``| head``), the program ends without a message, as other programs do.
    """
    if getattr(main, "__module__", None) == "__main__":
        use_utf8()
    _open_streams()
    try:
        main()
        sys.stdout.flush()  # here, where an error of a closed pipe is caught
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:  # of argparse, which ignores errors while it prints --help
        if _unread(sys.stdout):
            _end_unread(end.code or _BROKEN_PIPE)
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and (_unread(sys.stdout) or _unread(sys.stderr)):
            _end_unread(_BROKEN_PIPE)
        line = explain(error)
        if line is None:
            raise
        _end_children()  # before the line, so that it is the last one
        with contextlib.suppress(BrokenPipeError):
            print(f"error: {line}", file=sys.stderr)
        _end_unread(1)


def use_utf8() -> None:
    """Restart this program in Python's UTF-8 mode, unless the encoding of files and of their names is UTF-8 already.

    Corpora, transcripts and paths in them are UTF-8, whatever the locale says. The mode cannot be changed later.
    """
    coded = {sys.getfilesystemencoding().lower(), locale.getpreferredencoding(False).lower()}
    if coded != {"utf-8"} and os.environ.get("PYTHONUTF8") != "1" and multiprocessing.parent_process() is None:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _open_streams() -> None:
    """Make stdout and stderr accept any text, whatever PYTHONIOENCODING says, and replace closed ones."""
    for name, errors in (("stdout", "surrogateescape"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)


def _unread(stream) -> bool:
    """Whether ``stream`` is a pipe or socket without a reader."""
    poll = select.poll()
    try:
        poll.register(stream, 0)  # poll always reports errors
    except (OSError, ValueError):  # not a file
        return False
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _end_unread(status: int) -> None:
    """Exit without Python's message about output that it could not write."""
    _end_children()
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            if _unread(stream):
                os.dup2(nothing, stream.fileno())
    sys.exit(status)


def _end_children() -> None:
    for child in multiprocessing.active_children():  # such as workers that load batches
        child.terminate()
        child.join()
