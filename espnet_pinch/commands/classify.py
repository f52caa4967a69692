"""``espnet-pinch classify``: sound files to labels."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from espnet_pinch.asr.head import CLASSIFY
from espnet_pinch.commands.files import gather, over_files
from espnet_pinch.commands.shared import add_machine, add_model, audio_path, load_to_decode, printable, write_now
from espnet_pinch.errors import UserError

ABOUT = """The label of each sound file, which is taken as one utterance, and its probability: file, label and
probability a line, with tabs between. Files are those that transcribe reads. A file that cannot be read as a whole is
named in an error, and the exit status is 1."""


def add(commands) -> None:
    command = commands.add_parser("classify", help="sound files to labels", description=ABOUT)
    command.set_defaults(run=classify)
    add_model(command)
    command.add_argument(
        "audio", type=audio_path, nargs="+", metavar="AUDIO", help="sound file, folder of them, or - for standard input"
    )
    command.add_argument("--top", type=int, default=1, metavar="N", help="print the N most probable labels [1]")
    add_machine(command, chunks=False)


def classify(args: argparse.Namespace) -> None:
    """Print the labels of sound files. Files that fail are named on stderr; the exit status is then 1.

    Args:
        args: ``model``, ``audio`` (paths), ``top``, and the options of ``add_machine`` but for chunks.

    Raises:
        UserError: options do not fit this machine; or as ``load_to_decode``.
    """
    if args.top < 1:
        raise UserError(f"--top must be at least 1, not {args.top}")
    audio = gather(args.audio)
    model = load_to_decode(args, CLASSIFY)
    from espnet_pinch.export.long_audio import classify_file

    def work(path: Path, advance: Callable[[float], None]) -> Callable[[], None]:
        found = classify_file(model, path)[: args.top]
        advance(audio.files[path])
        lines = [f"{printable(str(path))}\t{label}\t{probability:.4f}\n" for label, probability in found]
        return lambda: write_now("".join(lines))

    if over_files(audio, work, "classified"):
        sys.exit(1)
