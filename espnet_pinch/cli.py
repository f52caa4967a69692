"""``espnet-pinch``: use a compressed model, print what is in it, compare it with others."""

import argparse

import espnet_pinch
from espnet_pinch.bin import run_main, use_utf8
from espnet_pinch.commands import align, bench, classify, fold, info, transcribe

COMMANDS = (transcribe, align, classify, bench, info, fold)


def main() -> None:
    parser = argparse.ArgumentParser(prog="espnet-pinch", description=__doc__)
    parser.add_argument("--version", action="version", version=f"espnet_pinch {espnet_pinch.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    args = parser.parse_args()
    args.run(args)


def main_program() -> None:
    """What the console script calls."""
    use_utf8()
    run_main(main)
