"""What several commands have in common: the model in its runtime, quiet libraries, what they print."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import espnet_pinch
from espnet_pinch.asr.head import ASR, require_task
from espnet_pinch.errors import UserError
from espnet_pinch.export.format import loadable
from espnet_pinch.inference.runtime import DTYPES, FLOAT32, all_runtimes, usual_runtime
from espnet_pinch.transcript.format import all_formats

if TYPE_CHECKING:
    from espnet_pinch.asr.recogniser import Recogniser

STDIN = Path("/dev/stdin")
WHOLE, FOLLOWED = (30, 5), (8, 2)  # seconds of a chunk and of its context, of a recording and of a stream


def audio_path(argument: str) -> Path:
    """The file that an argument names: ``-`` is standard input, ``./-`` a file of that name."""
    return STDIN if argument == "-" else Path(argument).absolute() if argument == "./-" else Path(argument)


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, metavar="MODEL", help=any_model())


def any_model() -> str:
    """Help on a model that a runtime loads."""
    return f"{loadable()}, or an ONNX file or OpenVINO model of our export"


def add_format(command: argparse.ArgumentParser, default: str) -> None:
    formats = all_formats()
    about = "; ".join(f"{name}: {fmt.summary}" for name, fmt in formats.items())
    command.add_argument("--format", choices=tuple(formats), default=default, help=f"{about} [{default}]")


def add_machine(command: argparse.ArgumentParser, chunks: bool = True) -> None:
    """Options of how the model is run.

    Args:
        chunks: whether long files are decoded in chunks.
    """
    if chunks:
        chunk, stride = (f"{whole}; {followed} with transcribe's --follow" for whole, followed in zip(WHOLE, FOLLOWED))
        about = f"seconds; longer files are decoded in such chunks [{chunk}]"
        command.add_argument("--chunk", type=int, help=about)
        command.add_argument("--stride", type=int, help=f"seconds of a chunk's context at each edge [{stride}]")
    command.add_argument(
        "--runtime",
        choices=("auto", *all_runtimes()),
        help="what computes the model; auto measures once which is the fastest here, and keeps the answer beside the "
        "model [torch; of a file that torch does not read, its own]",
    )
    command.add_argument("--threads", type=int, help="of the CPU [$OMP_NUM_THREADS, or all cores]")
    command.add_argument("--dtype", choices=DTYPES, default=FLOAT32, help=f"of weights and products [{FLOAT32}]")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def check_machine(args: argparse.Namespace) -> None:
    """Fill in ``chunk`` and ``stride``; raise UserError where options of ``add_machine`` do not fit each other."""
    chunk, stride = FOLLOWED if getattr(args, "follow", False) else WHOLE
    args.chunk = chunk if args.chunk is None else args.chunk
    args.stride = stride if args.stride is None else args.stride
    if args.stride < 1 or args.chunk <= 2 * args.stride:
        raise UserError(f"--chunk {args.chunk} must be more than twice --stride {args.stride}, which is at least 1")


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[str], None]]:
    """Hide the notes that other libraries print. Yields a function that prints a line on stderr nevertheless."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    stderr = sys.stderr
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error

        disable_progress_bar()
        set_verbosity_error()
        yield lambda line: print(printable(line), file=stderr, flush=True)


def load_to_decode(args: argparse.Namespace, task: str = ASR) -> Recogniser:
    """The model in its runtime.

    Args:
        args: ``model``, and the options of ``add_machine``.
        task: that the command is for.

    Raises:
        FileNotFoundError, UserError: as ``espnet_pinch.load``; or the model is of another task.
    """
    with quiet() as say:
        from espnet_pinch.export.load import locate

        runtime = args.runtime or usual_runtime(locate(args.model)[0]).name
        options = {"threads": args.threads, "dtype": args.dtype, "device": args.device}
        model = espnet_pinch.load(args.model, runtime, say=say, **options)
    require_task(task, model, str(args.model))
    return model


def printable(text: str) -> str:
    r"""``text`` with escapes such as ``\xff`` for bytes that are not UTF-8, which names of files may have."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_now(text: str) -> None:
    """Write to stdout, for a reader at the other end of a pipe to have it."""
    sys.stdout.write(text)
    sys.stdout.flush()
