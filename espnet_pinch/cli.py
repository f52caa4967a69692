"""``espnet-pinch``: transcribe sound files with a compressed model, or see what is in it."""

import argparse
import contextlib
import json
import logging
import sys
import warnings
from pathlib import Path

import espnet_pinch
from espnet_pinch.bin import run_main, use_utf8
from espnet_pinch.errors import explain

WORTH_MEASURING = 300  # seconds of audio: with less, measuring takes longer than it saves
BAR = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
MODEL = "experiment folder, its folded/, an exported Hugging Face folder, or a sparse file"


def main() -> None:
    parser = argparse.ArgumentParser(prog="espnet-pinch", description=__doc__)
    parser.add_argument("--version", action="version", version=f"espnet_pinch {espnet_pinch.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("transcribe", help="sound files to text", description="Sound files to text.")
    command.set_defaults(run=transcribe)
    command.add_argument("model", type=Path, metavar="MODEL", help=MODEL)
    command.add_argument(
        "audio", type=Path, nargs="+", metavar="AUDIO", help="sound file of any rate and format, or folder of such"
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
    command.add_argument("model", type=Path, metavar="MODEL", help=MODEL)
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
        raise ValueError(f"--chunk {args.chunk} must be more than twice --stride {args.stride}, which is at least 1")
    model = load_quietly(args.model)
    import torch
    from tqdm import tqdm

    from espnet_pinch.export.long_audio import find_audio, seconds_of, transcribe_file

    if args.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: torch sees no GPU here")
    failed = 0

    def fail(error: Exception) -> None:
        nonlocal failed
        failed += 1
        tqdm.write(f"error: {' '.join(explain(error).split())}", file=sys.stderr)

    files = {}
    for path in args.audio:
        try:
            files.update((file, seconds_of(file)) for file in find_audio(path))
        except OSError as error:
            fail(error)
    total = sum(files.values())
    choose_backend(model, args, total)
    print_result = Json() if args.format == "json" else print_line
    with tqdm(total=total, bar_format=BAR, file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        for path in files:
            try:
                text, seconds = transcribe_file(model, path, args.chunk, args.stride, args.device, bar.update)
            except Exception as error:
                if explain(error) is None:
                    raise
                fail(error)
            else:
                bar.clear()
                print_result(str(path), text, seconds)
    if args.format == "json":
        print_result.end()
    if failed:
        sys.exit(1)


def choose_backend(model, args: argparse.Namespace, seconds: float) -> None:
    """Put the model on its device and, where that pays, its pruned layers on the sparse backend."""
    from espnet_pinch.export.model import count_layers

    backend = args.backend
    if backend == "auto" and (args.device != "cpu" or seconds < WORTH_MEASURING):
        backend = "dense"
    model.to(args.device)
    if backend != "dense" and any(layer["pruned"] for layer in count_layers(model).values()):
        from espnet_pinch.core.sparse import use_backend  # compiles

        use_backend(model.frontend.upstream, backend, model.pruning.settings.layers)


def print_line(path: str, text: str, seconds: float) -> None:
    print(f"{path}\t{text}", flush=True)


class Json:
    """Prints a JSON list, an element at a time: it is there to read before the last file is done."""

    def __init__(self):
        self.before = "["

    def __call__(self, path: str, text: str, seconds: float) -> None:
        element = {"audio": path, "text": text, "seconds": round(seconds, 3)}
        print(f"{self.before}\n  {json.dumps(element, ensure_ascii=False)}", end="", flush=True)
        self.before = ","

    def end(self) -> None:
        print("[]" if self.before == "[" else "\n]")


def info(args: argparse.Namespace) -> None:
    model = load_quietly(args.model)
    from espnet_pinch.export.load import locate, weights_file
    from espnet_pinch.export.model import count_layers
    from espnet_pinch.export.sparse_file import sizes

    kind, _ = locate(args.model)
    file = weights_file(args.model)
    layers = count_layers(model)
    gated, pruned = (sum(layer[key] for layer in layers.values()) for key in ("weights", "pruned"))
    total = sum(p.numel() for p in model.parameters())
    figures = {
        "model": str(args.model),
        "kind": kind,
        "upstream": model.frontend.upstream.config.model_type,
        "tokens": len(model.token_list),
        "file": str(file),
        "bytes": file.stat().st_size,
        "dense_bytes": 4 * total,
        "params_total": total,
        "params_kept": total - pruned,
        "gated": gated,
        "pruned": pruned,
        "sparsity": pruned / gated if gated else 0.0,
        **({"sparse_file": sizes(file)} if kind == "sparse file" else {}),
        "layers": layers,
    }
    print(json.dumps(figures, indent=2) if args.format == "json" else "\n".join(info_lines(figures)))


def info_lines(figures: dict) -> list[str]:
    """Lines of ``info``."""
    lines = [
        f"{figures['model']}: {figures['kind']}, {figures['upstream']}, {figures['tokens']} tokens",
        f"sparsity     {100 * figures['sparsity']:.2f} % ({figures['pruned']:,} of {figures['gated']:,} gated weights)",
        f"parameters   {figures['params_kept']:,} of {figures['params_total']:,} kept",
        f"size         {figures['bytes'] / 1e6:.2f} MB; all weights as float32: {figures['dense_bytes'] / 1e6:.2f} MB",
    ]
    if "sparse_file" in figures:
        sizes = figures["sparse_file"]
        parts = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sizes["parts"].items())
        lines += [f"values       {sizes['values']}, other weights {sizes['others']}", f"MB of        {parts}"]
        lines += [f"bound        {sizes['entropy_bound'] / 1e6:.2f} MB, with masks at their entropy"]
    width = max(map(len, figures["layers"]), default=0)
    for name, layer in figures["layers"].items():
        shape = " x ".join(map(str, layer["shape"]))
        lines.append(f"{name:{width}}  {shape:>11}  {100 * layer['pruned'] / layer['weights']:6.2f} %")
    return lines


def main_program() -> None:
    """What the console script calls."""
    use_utf8()
    run_main(main)
