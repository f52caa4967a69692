"""``espnet-pinch align``: when each word of a given text is said."""

import argparse
import dataclasses
import os
from pathlib import Path

from espnet_pinch.commands.shared import (
    add_format,
    add_machine,
    add_model,
    audio_path,
    check_machine,
    load_to_decode,
    printable,
    write_now,
)
from espnet_pinch.errors import UserError
from espnet_pinch.transcript.format import all_formats, whole

ABOUT = """When each word of a given text is said in a sound file (forced alignment). Upper and lower case and the form
of accented letters need not be the model's; numbers and punctuation have to be words or left out."""


def add(commands) -> None:
    command = commands.add_parser("align", help="when each word of a given text is said", description=ABOUT)
    command.set_defaults(run=align)
    add_model(command)
    command.add_argument("audio", type=audio_path, metavar="AUDIO", help="sound file, or - for standard input")
    command.add_argument("text", metavar="TEXT", help="text file, or the words themselves")
    add_format(command, "ctm")
    add_machine(command)


def align(args: argparse.Namespace) -> None:
    """Print the times of the words of a given text.

    Args:
        args: ``model``, ``audio``, ``text`` (name of a file, or words), ``format``, and the options of
            ``add_machine``.

    Raises:
        OSError, UserError: as ``align_file`` and ``espnet_pinch.load``; or the text file is not UTF-8.
    """
    check_machine(args)
    text, is_file = args.text, os.path.isfile(args.text)  # which takes any text
    if is_file:
        try:
            text = Path(args.text).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{args.text} is not UTF-8: {error}") from None

    model = load_to_decode(args)
    from espnet_pinch.export.align_audio import align_file

    try:
        transcript = align_file(model, args.audio, text, args.chunk, args.stride)
    except UserError as error:
        read = "" if is_file else " (TEXT is no file, so it is read as words)"
        raise UserError(f"{error}{read}") from None
    write_now(whole(all_formats()[args.format], dataclasses.replace(transcript, audio=printable(str(args.audio)))))
