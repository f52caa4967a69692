"""``espnet-pinch``: transcribe sound files with a compressed model, or see what is in it."""

import argparse
import codecs
import contextlib
import json
import logging
import re
import sys
import warnings
from pathlib import Path

import espnet_pinch
from espnet_pinch.bin import run_main, use_utf8
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.explain import explain
from espnet_pinch.export.format import loadable

WORTH_MEASURING = 300  # seconds of audio: with less, measuring takes longer than it saves
BAR = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"

TRANSCRIBE = """Sound files to text. A folder is searched to its bottom, links included. Files may have any length,
1 to 768 kHz, and any format that libsndfile reads; for MPEG-4, AAC, WebM, WMA and the like, ffmpeg must be on the PATH.
Of several sound tracks the first is read. A file is transcribed whole or named in an error, and the exit status is then
1: one that is cut short is an error; one whose length was never stated, as in a pipe, is read to its end."""


def audio_path(argument: str) -> Path:
    """The file that an argument means; ``./-`` is the one of that name."""
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
        "audio", type=audio_path, nargs="+", metavar="AUDIO", help="sound file, folder of such, or - for standard input"
    )
    command.add_argument("--format", choices=("text", "json"), default="text", help="text: a line 'FILE<TAB>TEXT' each")
    command.add_argument("--chunk", type=int, default=30, help="seconds; longer files are decoded in such pieces [30]")
    command.add_argument("--stride", type=int, default=5, help="seconds of a piece's overlap at each edge [5]")
    command.add_argument(
        "--backend",
        choices=("auto", "dense", "sparse"),
        default="auto",
        help="products of pruned layers on a CPU; auto measures what is faster, given 5 minutes of audio [auto]",
    )
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command = commands.add_parser("info", help="sparsity, sizes, layers", description="Sparsity, sizes and layers.")
    command.set_defaults(run=info)
    command.add_argument("model", type=Path, metavar="MODEL", help=model_help)
    command.add_argument("--format", choices=("text", "json"), default="text")
    args = parser.parse_args()
    args.run(args)


def load_quietly(path: Path):
    """``espnet_pinch.load``, without the notes that the libraries below make on the way."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error

        disable_progress_bar()
        set_verbosity_error()
        return espnet_pinch.load(path)


def transcribe(args: argparse.Namespace) -> None:
    if args.stride < 1 or args.chunk <= 2 * args.stride:
        raise UserError(f"--chunk {args.chunk} must be more than twice --stride {args.stride}, which is at least 1")
    model = load_quietly(args.model)
    import torch
    from tqdm import tqdm

    from espnet_pinch.export.long_audio import transcribe_file
    from espnet_pinch.sound.find import find_audio
    from espnet_pinch.sound.read import seconds_of

    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: torch sees no GPU here")
    failed = 0

    def fail(line: str) -> None:
        nonlocal failed
        failed += 1
        tqdm.write(f"error: {printable(one_line(line))}", file=sys.stderr)

    files = {}
    for path in args.audio:
        try:
            found = find_audio(path)
        except OSError as error:
            fail(explain(error))
            continue
        for problem in found.problems:
            fail(problem)
        if found.companions:
            note = f"note: {path}: {found.companions} files ._* of macOS, which hold no sound, are passed over"
            tqdm.write(printable(note), file=sys.stderr)
        if not found.files:
            fail(f"{path}: no sound file in this folder")
        files.update((file, seconds_of(file)) for file in found.files)
    total = sum(files.values())
    choose_backend(model, args, total)
    print_result = Json() if args.format == "json" else print_line
    done = 0
    with tqdm(total=total, bar_format=BAR, file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        for path in files:
            try:
                text, seconds = transcribe_file(model, path, args.chunk, args.stride, args.device, bar.update)
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
        if len(files) > 1:
            print(f"error: {done} of {len(files)} files are transcribed; what is not is named above", file=sys.stderr)
        sys.exit(1)


def choose_backend(model, args: argparse.Namespace, seconds: float) -> None:
    """Put the model on its device and, where that pays, its pruned layers on the sparse backend."""
    from espnet_pinch.export.model import count_layers

    backend = args.backend
    if backend == "auto" and (args.device != "cpu" or seconds < WORTH_MEASURING):
        backend = "dense"
    model.to(args.device)
    if backend != "dense" and any(layer["pruned"] for layer in count_layers(model).values()):
        from espnet_pinch.inference.sparse_linear import use_backend  # compiles

        use_backend(model.frontend.upstream, backend, model.pruning.settings.layers)


def printable(text: str, controls: bool = False) -> str:
    r"""``text`` with bytes that are not UTF-8, as names of files may have them, as ``\xff``.

    Args:
        controls: write control characters as ``\n`` too.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: repr(match[0])[1:-1], text) if controls else text


def print_line(path: Path, text: str, seconds: float) -> None:
    _print(f"{printable(str(path), controls=True)}\t{text}\n")


def _print(text: str) -> None:
    """To stdout, whose encoding may lack letters: those come out as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


class Json:
    """Prints a JSON list, an element at a time: it is there to read before the last file is done."""

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


def info_lines(figures: dict, own: list[str]) -> list[str]:
    """Lines of ``info``.

    Args:
        own: those of the model's format.
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
