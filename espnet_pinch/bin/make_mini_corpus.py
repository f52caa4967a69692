"""Stage 0 of egs/mini and egs/mini_hindi: make a mini corpus, synthetic speech in LibriSpeech's layout."""

import argparse
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.data.mini_corpus import LANGUAGES, make_mini_corpus


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.make_mini_corpus", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets LibriSpeech/SUBSET")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of utterances")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="that is spoken [en]")
    args = parser.parse_args()
    make_mini_corpus(args.out, args.scale, language=args.language)


if __name__ == "__main__":
    run_main(main)
