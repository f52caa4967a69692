"""``espnet-pinch``: transcribe sound files with a compressed model, align a text to one, or print what is in it."""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import espnet_pinch
from espnet_pinch.asr.search_options import add_search_options, make_search
from espnet_pinch.bin import run_main, use_utf8
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.explain import explain
from espnet_pinch.export.format import loadable
from espnet_pinch.files import write_text
from espnet_pinch.transcript.format import TranscriptFormat, Writer, all_formats, whole
from espnet_pinch.transcript.words import Transcript

WORTH_MEASURING = 300  # seconds of audio; with less, measuring backends takes longer than it saves
BAR = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"

TRANSCRIBE = """Sound files to text. Folders are searched with all subfolders and links. Files may have any length, a
sample rate of 1 to 768 kHz, and any format that libsndfile reads. MPEG-4, AAC, WebM, WMA and the like need ffmpeg on
the PATH. If a file has several sound tracks, the first is read. A file that cannot be transcribed as a whole, such as
one that is cut short, is named in an error, and the exit status is 1. A file that states no length, as in a pipe, is
read to its end."""

ALIGN = """When each word of a given text is said in a sound file (forced alignment). Upper and lower case and the form
of accented letters need not be the model's; numbers and punctuation have to be words or left out."""


FOLD = """The model of a trained run at another sparsity, without more training. Between two trained targets the
thresholds are interpolated; outside of them one common factor scales those of the nearest. The sparsity is exact. With
--max_wer_increase, the word error rate on SET is compared with that of the lowest trained target."""


def audio_path(argument: str) -> Path:
    """The file that an argument names: ``-`` is standard input, ``./-`` a file of that name."""
    return Path("/dev/stdin") if argument == "-" else Path(argument).absolute() if argument == "./-" else Path(argument)


def main() -> None:
    parser = argparse.ArgumentParser(prog="espnet-pinch", description=__doc__)
    parser.add_argument("--version", action="version", version=f"espnet_pinch {espnet_pinch.__version__}")
    model_help = loadable()
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("transcribe", help="sound files to text", description=TRANSCRIBE)
    command.set_defaults(run=transcribe)
    command.add_argument("model", type=Path, metavar="MODEL", help=model_help)
    command.add_argument(
        "audio", type=audio_path, nargs="+", metavar="AUDIO", help="sound file, folder of them, or - for standard input"
    )
    add_format(command, "text")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="write a file for each sound file into DIR, under the same name"
    )
    add_search_options(command)
    add_machine(command)
    command = commands.add_parser("align", help="when each word of a given text is said", description=ALIGN)
    command.set_defaults(run=align)
    command.add_argument("model", type=Path, metavar="MODEL", help=model_help)
    command.add_argument("audio", type=audio_path, metavar="AUDIO", help="sound file, or - for standard input")
    command.add_argument("text", metavar="TEXT", help="text file, or the words themselves")
    add_format(command, "ctm")
    add_machine(command)
    command = commands.add_parser("info", help="sparsity, sizes, layers", description="Sparsity, sizes and layers.")
    command.set_defaults(run=info)
    command.add_argument("model", type=Path, metavar="MODEL", help=model_help)
    command.add_argument("--format", choices=("text", "json"), default="text")
    command = commands.add_parser("fold", help="a trained run at any sparsity", description=FOLD)
    command.set_defaults(run=fold)
    command.add_argument(
        "experiment", type=Path, metavar="EXPERIMENT", help="folder of a run of pinch: exp/.../asr_..."
    )
    wanted = command.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--sparsity", type=float, help="the target, of the kind that the run has: 0.7")
    wanted.add_argument(
        "--max_wer_increase",
        type=float,
        metavar="POINTS",
        help="search the highest target within this on SET",
    )
    command.add_argument("--data", type=Path, metavar="SET", help="of the search: a data directory with a text")
    command.add_argument("--out", type=Path, help="folder to write [EXPERIMENT/folded/TARGET]")
    args = parser.parse_args()
    args.run(args)


def add_format(command: argparse.ArgumentParser, default: str) -> None:
    formats = all_formats()
    about = "; ".join(f"{name}: {fmt.summary}" for name, fmt in formats.items())
    command.add_argument("--format", choices=tuple(formats), default=default, help=f"{about} [{default}]")


def add_machine(command: argparse.ArgumentParser) -> None:
    """Options of how the model is run."""
    command.add_argument("--chunk", type=int, default=30, help="seconds; longer files are decoded in such chunks [30]")
    command.add_argument("--stride", type=int, default=5, help="seconds of a chunk's context at each edge [5]")
    command.add_argument(
        "--backend",
        choices=("auto", "dense", "sparse"),
        default="auto",
        help="products of pruned layers on a CPU; auto measures which is faster, from 5 minutes of audio on [auto]",
    )
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def quieten() -> None:
    """Have other libraries print no notes."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error

        disable_progress_bar()
        set_verbosity_error()


def load_quietly(path: Path):
    """``espnet_pinch.load`` without the notes that other libraries print."""
    quieten()
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        return espnet_pinch.load(path)


def transcribe(args: argparse.Namespace) -> None:
    """Print the transcripts of sound files. Files that fail are named on stderr; the exit status is then 1.

    Args:
        args: ``model``, ``audio`` (paths), ``format``, ``out``, ``chunk`` and ``stride`` (seconds), ``backend``,
            ``device``, and those of ``add_search_options``.

    Raises:
        UserError: options do not fit each other or this machine; or as ``espnet_pinch.load`` and ``make_search``.
    """
    check_machine(args)
    model = load_quietly(args.model)
    from tqdm import tqdm

    from espnet_pinch.export.long_audio import transcribe_file
    from espnet_pinch.sound.find import find_audio
    from espnet_pinch.sound.read import seconds_of

    check_device(args)
    search, _ = make_search(args, model.token_list, model.blank_id)
    fmt = all_formats()[args.format]
    failed = 0

    def fail(line: str) -> None:
        nonlocal failed
        failed += 1
        tqdm.write(f"error: {printable(one_line(line))}", file=sys.stderr)

    files: dict[Path, float] = {}
    names: dict[Path, Path] = {}
    for path in args.audio:
        try:
            found = find_audio(path)
        except OSError as error:
            fail(explain(error))
            continue
        for problem in found.problems:
            fail(problem)
        if found.companions:
            note = f"note: {path}: {found.companions} files ._* of macOS, which hold no sound, are skipped"
            tqdm.write(printable(note), file=sys.stderr)
        if not found.files:
            fail(f"{path}: no sound file in this folder")
        files.update((file, seconds_of(file)) for file in found.files)
        names.update((file, file.relative_to(path) if file != path else Path(file.name)) for file in found.files)
    if len(files) > 1 and not fmt.several and not args.out:
        raise UserError(f"a file of the format {fmt.name} holds one recording, not {len(files)}: give --out DIR")
    to_folder = FileWriter(fmt, args.out, names) if args.out else None
    to_stdout = Writer(fmt, write_now)
    total = sum(files.values())
    choose_backend(model, args, total)
    done = 0
    with tqdm(total=total, bar_format=BAR, file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        for path in files:
            try:
                transcript = transcribe_file(model, path, args.chunk, args.stride, args.device, bar.update, search)
            except Exception as error:
                line = explain(error)
                if line is None:
                    raise
                fail(line)
            else:
                bar.clear()
                transcript = dataclasses.replace(transcript, audio=printable(str(path)))
                if to_folder:
                    to_folder(transcript, path)
                else:
                    to_stdout(transcript)
                done += 1
    if not to_folder:
        to_stdout.close()
    if failed:
        if len(files) > 1:
            print(f"error: {done} of {len(files)} files were transcribed; the others are named above", file=sys.stderr)
        sys.exit(1)


def align(args: argparse.Namespace) -> None:
    """Print the times of the words of a given text.

    Args:
        args: ``model``, ``audio``, ``text`` (name of a file, or words), ``format``, and as ``transcribe``.

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
    model = load_quietly(args.model)
    check_device(args)
    from espnet_pinch.export.align_audio import align_file
    from espnet_pinch.sound.read import seconds_of

    choose_backend(model, args, seconds_of(args.audio))
    try:
        transcript = align_file(model, args.audio, text, args.chunk, args.stride, args.device)
    except UserError as error:
        read = "" if is_file else " (TEXT is no file, so it is read as words)"
        raise UserError(f"{error}{read}") from None
    write_now(whole(all_formats()[args.format], dataclasses.replace(transcript, audio=printable(str(args.audio)))))


def choose_backend(model, args: argparse.Namespace, seconds: float) -> None:
    """Move the model to its device, and choose the backend of its pruned layers.

    Args:
        seconds: of audio; "auto" measures the backends from ``WORTH_MEASURING`` on.
    """
    from espnet_pinch.export.model import count_layers

    backend = args.backend
    if backend == "auto" and (args.device != "cpu" or seconds < WORTH_MEASURING):
        backend = "dense"
    model.to(args.device)
    if backend != "dense" and any(layer["pruned"] for layer in count_layers(model).values()):
        from espnet_pinch.inference.sparse_linear import use_backend  # numba compiles it

        use_backend(model.frontend.upstream, backend, model.pruning.settings.layers)


def check_machine(args: argparse.Namespace) -> None:
    if args.stride < 1 or args.chunk <= 2 * args.stride:
        raise UserError(f"--chunk {args.chunk} must be more than twice --stride {args.stride}, which is at least 1")


def check_device(args: argparse.Namespace) -> None:
    import torch

    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: torch sees no GPU here")


def printable(text: str) -> str:
    r"""``text`` with escapes such as ``\xff`` for bytes that are not UTF-8, which names of files may have."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_now(text: str) -> None:
    """Write to stdout, for a reader at the other end of a pipe to have it."""
    sys.stdout.write(text)
    sys.stdout.flush()


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


def info(args: argparse.Namespace) -> None:
    """Print the sparsity, the sizes and the gated layers of a model.

    Args:
        args: ``model``, ``format``. JSON has sizes in bytes and numbers of parameters and weights.

    Raises:
        FileNotFoundError, UserError: as ``espnet_pinch.load``.
    """
    model = load_quietly(args.model)
    from espnet_pinch.export.load import locate
    from espnet_pinch.export.model import count_layers

    fmt, found = locate(args.model)
    files = fmt.weight_files(found)
    layers = count_layers(model)
    gated, pruned = (sum(layer[key] for layer in layers.values()) for key in ("weights", "pruned"))
    total = sum(p.numel() for p in model.parameters())
    own = fmt.info(found)
    figures = {
        "model": str(args.model),
        "kind": fmt.title,
        "upstream": model.frontend.upstream.config.model_type,
        "tokens": len(model.token_list),
        "files": [str(file) for file in files],
        "bytes": sum(file.stat().st_size for file in files),
        "dense_bytes": 4 * total,
        "params_total": total,
        "params_kept": total - pruned,
        "gated": gated,
        "pruned": pruned,
        "sparsity": pruned / gated if gated else 0.0,
        **own,
        "layers": layers,
    }
    if args.format == "json":
        print(json.dumps(figures, indent=2))
    else:
        print("\n".join(info_lines(figures, fmt.info_lines(own))))


def fold(args: argparse.Namespace) -> None:
    """Fold a trained run at a target that it may not have been trained for.

    Args:
        args: ``experiment``; ``sparsity``, or ``max_wer_increase`` and ``data``; ``out``.

    Raises:
        FileNotFoundError, UserError: as ``espnet_pinch.asr.any_target.Trained``; or there is something at ``out``.
    """
    if (args.max_wer_increase is None) != (args.data is None):
        raise UserError("--max_wer_increase and --data SET go together")
    quieten()
    from espnet_pinch.asr.any_target import Trained

    with contextlib.redirect_stderr(None):
        trained = Trained(args.experiment)
    target = args.sparsity
    if target is None:
        target = trained.sparsest(args.max_wer_increase, args.data)
    out = args.out or args.experiment / "folded" / str(target)
    if out.exists():
        raise UserError(f"{out} is there already: remove it, or give another --out")
    with contextlib.redirect_stderr(None):
        counts = trained.fold(target, out)
    share = f"{100 * counts.sparsity:.2f} % pruned"
    print(f"{out}: {counts.params_kept:,} of {counts.params_total:,} parameters kept, {share}")


def info_lines(figures: dict, own: list[str]) -> list[str]:
    """Lines of ``info``.

    Args:
        figures: what ``info`` prints as JSON.
        own: lines that only the model's format has.
    """
    lines = [
        f"{figures['model']}: {figures['kind']}, {figures['upstream']}, {figures['tokens']} tokens",
        f"sparsity     {100 * figures['sparsity']:.2f} % ({figures['pruned']:,} of {figures['gated']:,} gated weights)",
        f"parameters   {figures['params_kept']:,} of {figures['params_total']:,} kept",
        f"size         {figures['bytes'] / 1e6:.2f} MB; all weights as float32: {figures['dense_bytes'] / 1e6:.2f} MB",
    ]
    lines += own
    width = max(map(len, figures["layers"]), default=0)
    for name, layer in figures["layers"].items():
        shape = " x ".join(map(str, layer["shape"]))
        lines.append(f"{name:{width}}  {shape:>11}  {100 * layer['pruned'] / layer['weights']:6.2f} %")
    return lines


def main_program() -> None:
    """What the console script calls."""
    use_utf8()
    run_main(main)
