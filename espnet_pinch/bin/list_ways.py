"""The ways in and their options, for scripts: "way NAME PATTERN..." or "setting NAME", one a line."""

import argparse

from espnet_pinch.bin import run_main
from espnet_pinch.corpus.options import SETTINGS, help_lines
from espnet_pinch.corpus.way import all_ways


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.list_ways", description=__doc__)
    parser.add_argument("--help_lines", action="store_true", help="print the lines of run.sh's --help instead")
    args = parser.parse_args()
    if args.help_lines:
        print("\n".join(help_lines()))
        return
    for way in all_ways().values():
        print("way", way.name, *way.patterns)
    for name in SETTINGS:
        print("setting", name)


if __name__ == "__main__":
    run_main(main)
