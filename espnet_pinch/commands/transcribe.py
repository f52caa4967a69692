"""``espnet-pinch transcribe``: sound files to text."""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from espnet_pinch.asr.search_options import add_search_options, make_search
from espnet_pinch.commands.files import gather, over_files
from espnet_pinch.commands.shared import (
    STDIN,
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
from espnet_pinch.files import write_text
from espnet_pinch.transcript.format import TranscriptFormat, Writer, all_formats, whole
from espnet_pinch.transcript.words import Transcript

ABOUT = """Sound files to text. Folders are searched with all subfolders and links. Files may have any length, a
sample rate of 1 to 768 kHz, and any format that libsndfile reads. MPEG-4, AAC, WebM, WMA and the like need ffmpeg on
the PATH. If a file has several sound tracks, the first is read. A file that cannot be transcribed as a whole, such as
one that is cut short, is named in an error, and the exit status is 1. A file that states no length, as in a pipe, is
read to its end."""


def add(commands) -> None:
    command = commands.add_parser("transcribe", help="sound files to text", description=ABOUT)
    command.set_defaults(run=transcribe)
    add_model(command)
    command.add_argument(
        "audio", type=audio_path, nargs="+", metavar="AUDIO", help="sound file, folder of them, or - for standard input"
    )
    add_format(command, "text")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="write a file for each sound file into DIR, under the same name"
    )
    command.add_argument(
        "--follow",
        action="store_true",
        help="print what standard input holds while it grows, WAV from a pipe; words come at most --chunk seconds late",
    )
    add_search_options(command)
    add_machine(command)


def transcribe(args: argparse.Namespace) -> None:
    """Print the transcripts of sound files. Files that fail are named on stderr; the exit status is then 1.

    Args:
        args: ``model``, ``audio`` (paths), ``format``, ``out``, and the options of ``add_search_options`` and
            ``add_machine``.

    Raises:
        UserError: options do not fit each other or this machine; or as ``espnet_pinch.load`` and ``make_search``.
    """
    check_machine(args)
    fmt = all_formats()[args.format]
    if args.follow:
        follow_stdin(args, fmt)
        return
    audio = gather(args.audio)
    if len(audio.files) > 1 and not fmt.several and not args.out:
        raise UserError(f"a file of the format {fmt.name} holds one recording, not {len(audio.files)}: give --out DIR")
    to_folder = FileWriter(fmt, args.out, audio.names) if args.out else None
    to_stdout = Writer(fmt, write_now)
    model = load_to_decode(args)
    search, _ = make_search(args, model.token_list, model.blank_id)
    from espnet_pinch.export.long_audio import transcribe_file

    def work(path: Path, advance: Callable[[float], None]) -> Callable[[], None]:
        transcript = transcribe_file(model, path, args.chunk, args.stride, advance=advance, search=search)
        transcript = dataclasses.replace(transcript, audio=printable(str(path)))
        return lambda: to_folder(transcript, path) if to_folder else to_stdout(transcript)

    failed = over_files(audio, work, "transcribed")
    if not to_folder:
        to_stdout.close()
    if failed:
        sys.exit(1)


def follow_stdin(args: argparse.Namespace, fmt: TranscriptFormat) -> None:
    """Print the transcripts of standard input while it grows. The first Ctrl-C leaves the end to what writes the pipe.

    Args:
        args: as of ``transcribe``.
        fmt: the format.

    Raises:
        UserError: options do not fit each other; or as ``espnet_pinch.export.long_audio.follow``.
    """
    if args.audio != [STDIN] or args.out or not fmt.several:
        several = ", ".join(name for name, found in all_formats().items() if found.several)
        raise UserError(f"--follow takes - alone, without --out, and a format of: {several}")
    model = load_to_decode(args)
    search, _ = make_search(args, model.token_list, model.blank_id)
    from espnet_pinch.export.long_audio import follow

    print(f"note: words come at most {args.chunk} s after they are said, and the time to compute", file=sys.stderr)
    default = signal.default_int_handler
    before = signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, default))
    writer = Writer(fmt, write_now)
    try:
        for transcript in follow(model, "-", args.chunk, args.stride, search=search):
            writer(transcript)
    finally:
        signal.signal(signal.SIGINT, before)
    writer.close()


class FileWriter:
    """Writes a file for each transcript.

    Args:
        fmt: the format.
        folder: is made if it is not there.
        names: ``{sound file: its name}`` in the folder; with the ending of the format.

    Raises:
        UserError: two sound files would get the same name.
    """

    def __init__(self, fmt: TranscriptFormat, folder: Path, names: Mapping[Path, Path]):
        self.format, self.files = fmt, {}
        taken: dict[Path, Path] = {}
        for audio, name in names.items():
            file = folder / name.with_suffix(fmt.suffix)
            if file in taken:
                raise UserError(f"--out: {printable(str(file))} would be of both {taken[file]} and {audio}: rename one")
            self.files[audio], taken[file] = file, audio

    def __call__(self, transcript: Transcript, audio: Path) -> None:
        file = self.files[audio]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, whole(self.format, transcript))
