"""``espnet-pinch bench``: models compared in runtimes."""

import argparse
import dataclasses
from pathlib import Path

from espnet_pinch.commands.shared import any_model, quiet, write_now
from espnet_pinch.errors import UserError
from espnet_pinch.inference.runtime import DTYPES, all_runtimes

ABOUT = """Compare models in runtimes: parameters, multiplications, bytes, time to load, seconds and real-time factor of
batches of noise, peak memory; with --data, word error rates and a significance test. The first model is what the
others are compared with. Each side is a process of its own. They take turns. Tables in Markdown go to stdout."""


def add(commands) -> None:
    command = commands.add_parser("bench", help="size, speed, memory and errors of models, compared", description=ABOUT)
    command.set_defaults(run=bench)
    command.add_argument("models", type=Path, nargs="+", metavar="MODEL", help=any_model())
    command.add_argument(
        "--runtimes", nargs="+", choices=tuple(all_runtimes()), default=[], help="[all that are installed]"
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
        if path.is_dir():
            raise UserError(f"{path} is a folder, but a file is to be written: give its name")
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
    write_now(report.to_markdown(comparison))
