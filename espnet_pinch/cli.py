"""``espnet-pinch``: transcribe sound files with a compressed model, print what is in it, or compare models."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import dataclasses
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import espnet_pinch
from espnet_pinch.bin import run_main, use_utf8
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.explain import explain
from espnet_pinch.export.format import loadable
from espnet_pinch.inference.runtime import DTYPES, FLOAT32, all_runtimes, usual_runtime

if TYPE_CHECKING:
    from espnet_pinch.asr.recogniser import Recogniser

WORTH_MEASURING = 300  # seconds of audio; with less, measuring backends takes longer than it saves
BAR = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"

COMPILED = "or an ONNX file or OpenVINO model of our export"
TRANSCRIBE = """Sound files to text. Folders are searched with all subfolders and links. Files may have any length, a
sample rate of 1 to 768 kHz, and any format that libsndfile reads. MPEG-4, AAC, WebM, WMA and the like need ffmpeg on
the PATH. If a file has several sound tracks, the first is read. A file that cannot be transcribed as a whole, such as
one that is cut short, is named in an error, and the exit status is 1. A file that states no length, as in a pipe, is
read to its end."""


BENCH = """Compare models in runtimes: parameters, multiplications, bytes, time to load, seconds and real-time factor of
batches of noise, peak memory; with --data, word error rates and a significance test. The first model is what the
others are compared with. Each side is a process of its own. They take turns. Tables in Markdown go to stdout."""


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
    command.add_argument("model", type=Path, metavar="MODEL", help=f"{model_help}, {COMPILED}")
    command.add_argument(
        "audio", type=audio_path, nargs="+", metavar="AUDIO", help="sound file, folder of them, or - for standard input"
    )
    command.add_argument("--format", choices=("text", "json"), default="text", help="text: lines 'FILE<TAB>TEXT'")
    command.add_argument("--chunk", type=int, default=30, help="seconds; longer files are decoded in such chunks [30]")
    command.add_argument("--stride", type=int, default=5, help="seconds of a chunk's context at each edge [5]")
    command.add_argument(
        "--backend",
        choices=("auto", "dense", "sparse"),
        default="auto",
        help="torch's products of pruned layers on a CPU; auto measures which is faster, from 5 minutes of audio on "
        "[auto]",
    )
    command.add_argument(
        "--runtime",
        choices=("auto", *all_runtimes()),
        help="what computes the model; auto measures once which is the fastest here, and keeps the answer beside the "
        "model [torch; of a file that torch does not read, its own]",
    )
    command.add_argument("--threads", type=int, help="of the CPU [$OMP_NUM_THREADS, or all cores]")
    command.add_argument("--dtype", choices=DTYPES, default=FLOAT32, help=f"of weights and products [{FLOAT32}]")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    add_bench(commands, model_help)
    command = commands.add_parser("info", help="sparsity, sizes, layers", description="Sparsity, sizes and layers.")
    command.set_defaults(run=info)
    command.add_argument("model", type=Path, metavar="MODEL", help=model_help)
    command.add_argument("--format", choices=("text", "json"), default="text")
    args = parser.parse_args()
    args.run(args)


def add_bench(commands, model_help: str) -> None:
    command = commands.add_parser("bench", help="size, speed, memory and errors of models, compared", description=BENCH)
    command.set_defaults(run=bench)
    command.add_argument("models", type=Path, nargs="+", metavar="MODEL", help=f"{model_help}, {COMPILED}")
    ways = ("torch", "torch-sparse", *(name for name in all_runtimes() if name != "torch"))
    command.add_argument(
        "--runtimes",
        nargs="+",
        choices=ways,
        default=[],
        help="torch-sparse: torch with sparse products of pruned layers [all that are installed]",
    )
    command.add_argument("--dtypes", nargs="+", choices=DTYPES, default=[], help="[all that a runtime has here]")
    command.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="utterances in a batch [1 8]")
    command.add_argument("--seconds", type=float, nargs="+", default=[1, 10, 30], help="of an utterance [1 10 30]")
    command.add_argument("--repeats", type=int, default=5, help="rounds; each runs every side once [5]")
    command.add_argument("--threads", type=int, help="of the CPU [$OMP_NUM_THREADS, or all cores]")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a machine in use [wall]"
    )
    command.add_argument("--data", type=Path, nargs="+", default=[], help="Kaldi data directories, for error rates")
    command.add_argument("--decode_batch", type=int, default=8, help="utterances in a batch of these [8]")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw speed against errors or bytes: PNG and SVG")


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


def transcribe(args: argparse.Namespace) -> None:
    """Print the transcripts of sound files. Files that fail are named on stderr; the exit status is then 1.

    Args:
        args: ``model``, ``audio`` (paths), ``format``, ``chunk`` and ``stride`` (seconds), ``runtime`` (None for the
            usual one), ``threads``, ``dtype``, ``backend``, ``device``.

    Raises:
        UserError: options do not fit each other or this machine; or as ``espnet_pinch.load``.
    """
    if args.stride < 1 or args.chunk <= 2 * args.stride:
        raise UserError(f"--chunk {args.chunk} must be more than twice --stride {args.stride}, which is at least 1")
    audio = gather(args.audio)
    total = sum(audio.files.values())
    model = load_to_decode(args, total)
    from tqdm import tqdm

    from espnet_pinch.export.long_audio import transcribe_file

    failed = 0

    def fail(line: str) -> None:
        nonlocal failed
        failed += 1
        tqdm.write(f"error: {printable(one_line(line))}", file=sys.stderr)

    for line in audio.notes:
        tqdm.write(printable(line), file=sys.stderr)
    for line in audio.problems:
        fail(line)
    print_result = Json() if args.format == "json" else print_line
    done = 0
    with tqdm(total=total, bar_format=BAR, file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        for path in audio.files:
            try:
                text, seconds = transcribe_file(model, path, args.chunk, args.stride, advance=bar.update)
            except Exception as error:
                line = explain(error)
                if line is None:
                    raise
                fail(line)
            else:
                bar.clear()
                print_result(path, text, seconds)
                done += 1
    if args.format == "json":
        print_result.end()
    if failed:
        if len(audio.files) > 1:
            count = f"{done} of {len(audio.files)} files were transcribed"
            print(f"error: {count}; the others are named above", file=sys.stderr)
        sys.exit(1)


def bench(args: argparse.Namespace) -> None:
    """Compare models in runtimes, and print tables in Markdown.

    Args:
        args: the fields of ``espnet_pinch.bench.run.Request``; ``json`` and ``plot`` (paths or None).

    Raises:
        FileNotFoundError, UserError: as ``espnet_pinch.bench.run.compare``.
    """
    for path in filter(None, (args.json, args.plot)):
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path.absolute().parent} is no folder, so {path.name} cannot be written there")
    with quiet() as say:
        import torch

        from espnet_pinch.bench import report
        from espnet_pinch.bench.run import Request, compare

        options = {field.name: getattr(args, field.name) for field in dataclasses.fields(Request)}
        options["threads"] = torch.get_num_threads() if args.threads is None else args.threads
        comparison = compare(Request(**options), say)
        if args.json:
            report.to_json(comparison, args.json)
        if args.plot:
            report.plot(comparison, args.plot)
    _print(report.to_markdown(comparison))


@dataclasses.dataclass
class Audio:
    """Sound files that were found.

    Attributes:
        files: ``{path: seconds}``, 0 where the length is not known.
        problems: what is wrong with a path, one line each.
        notes: what was left out.
    """

    files: dict[Path, float] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def gather(paths: list[Path]) -> Audio:
    """The sound files of files and folders."""
    from espnet_pinch.sound.find import find_audio
    from espnet_pinch.sound.read import seconds_of

    audio = Audio()
    for path in paths:
        try:
            found = find_audio(path)
        except OSError as error:
            audio.problems.append(explain(error) or str(error))
            continue
        audio.problems += found.problems
        if found.companions:
            audio.notes.append(f"note: {path}: {found.companions} files ._* of macOS, which hold no sound, are skipped")
        if not found.files:
            audio.problems.append(f"{path}: no sound file in this folder")
        audio.files.update((file, seconds_of(file)) for file in found.files)
    return audio


def load_to_decode(args: argparse.Namespace, seconds: float) -> Recogniser:
    """The model in its runtime.

    Args:
        args: as ``transcribe``.
        seconds: of audio; torch's backend "auto" measures from ``WORTH_MEASURING`` on, or where the runtime is "auto".
    """
    with quiet() as say:
        from espnet_pinch.export.load import locate

        runtime = args.runtime or usual_runtime(locate(args.model)[0]).name
        backend = args.backend
        if backend == "auto" and runtime != "auto" and seconds < WORTH_MEASURING:
            backend = "dense"
        options = {"threads": args.threads, "dtype": args.dtype, "device": args.device, "backend": backend}
        return espnet_pinch.load(args.model, runtime, say=say, **options)


def printable(text: str, controls: bool = False) -> str:
    r"""``text`` with escapes such as ``\xff`` for bytes that are not UTF-8, which names of files may have.

    Args:
        controls: also write control characters as escapes, such as ``\n``.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: repr(match[0])[1:-1], text) if controls else text


def print_line(path: Path, text: str, seconds: float) -> None:
    _print(f"{printable(str(path), controls=True)}\t{text}\n")


def _print(text: str) -> None:
    """Write to stdout. Characters that its encoding lacks become escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


class Json:
    """Prints a JSON list, one element at a time, so that a reader need not wait for the last file."""

    def __init__(self):
        self.before = "["

    def __call__(self, path: Path, text: str, seconds: float) -> None:
        element = {"audio": printable(str(path)), "text": text, "seconds": round(seconds, 3)}
        is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
        _print(f"{self.before}\n  {json.dumps(element, ensure_ascii=not is_utf8)}")
        self.before = ","

    def end(self) -> None:
        print("[]" if self.before == "[" else "\n]")


def info(args: argparse.Namespace) -> None:
    """Print the sparsity, the sizes and the gated layers of a model.

    Args:
        args: ``model``, ``format``. JSON has sizes in bytes and numbers of parameters and weights.

    Raises:
        FileNotFoundError, UserError: as ``espnet_pinch.load``.
    """
    with quiet():
        model = espnet_pinch.load(args.model)
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
