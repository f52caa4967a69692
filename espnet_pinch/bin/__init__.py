"""Entry points: ``python -m espnet_pinch.bin.NAME --help``."""

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

# A notebook's terminal hands on a backend that draws into the notebook; it may not even be installed here.
os.environ["MPLBACKEND"] = "Agg"
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where it cannot write to the home


def _say_what_is_missing(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """One line for a package that a program misses before ``run_main`` begins, while it imports what it needs."""
    line = explain(error) if isinstance(error, ModuleNotFoundError) else None
    if line is None:
        _say_all(kind, error, trace)
    else:
        print(f"error: {line}", file=sys.stderr)


_say_all, sys.excepthook = sys.excepthook, _say_what_is_missing

_BROKEN_PIPE = 128 + signal.SIGPIPE  # what a shell says of a program whose reader has gone


def run_main(main: Callable[[], None]) -> None:
    """Run an entry point; an error that its user can cause becomes one line on stderr and exit status 1.

    Where the reader of its output has gone (``| head``), it ends without a word, as other programs do.
    """
    if getattr(main, "__module__", None) == "__main__":
        use_utf8()
    _open_streams()
    try:
        main()
        sys.stdout.flush()  # here, where a reader that has gone is no surprise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:  # of argparse, which passes over an error of its --help
        if _unread(sys.stdout):
            _end_unread(end.code or _BROKEN_PIPE)
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and (_unread(sys.stdout) or _unread(sys.stderr)):
            _end_unread(_BROKEN_PIPE)
        line = explain(error)
        if line is None:
            raise
        _end_children()  # the line is the last word
        with contextlib.suppress(BrokenPipeError):
            print(f"error: {line}", file=sys.stderr)
        _end_unread(1)


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode, unless files, their names and the output are UTF-8 already.

    Corpora, transcripts and paths in them are UTF-8, whatever the locale says. The mode cannot be changed later on.
    """
    coded = {sys.getfilesystemencoding().lower(), locale.getpreferredencoding(False).lower()}
    if coded != {"utf-8"} and os.environ.get("PYTHONUTF8") != "1" and multiprocessing.parent_process() is None:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _open_streams() -> None:
    """Have stdout and stderr take any text, whatever PYTHONIOENCODING says, and be there if the caller closed them."""
    for name, errors in (("stdout", "surrogateescape"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)


def _unread(stream) -> bool:
    """Whether ``stream`` is a pipe or socket that nobody reads any more."""
    poll = select.poll()
    try:
        poll.register(stream, 0)  # what is wrong is told unasked
    except (OSError, ValueError):  # no file behind it
        return False
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _end_unread(status: int) -> None:
    """Exit, without Python's complaint at the end about what it could not write."""
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
