"""Stage 0: fetch LibriSpeech-100h, or make the mini corpus."""

import argparse
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.data.download import LIBRISPEECH_URL, fetch_librispeech
from espnet_pinch.data.librispeech import SUBSETS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.fetch_corpus", description=__doc__)
    parser.add_argument("--corpus", choices=("librispeech_100", "mini"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets LibriSpeech/SUBSET")
    parser.add_argument("--base_url", default=LIBRISPEECH_URL, help="a mirror of openslr.org/12")
    parser.add_argument("--scale", type=float, default=1.0, help="mini: factor on the number of utterances")
    args = parser.parse_args()
    if args.corpus == "mini":
        from espnet_pinch.data.mini_corpus import make_mini_corpus  # loads espeak-ng

        make_mini_corpus(args.out, args.scale)
    else:
        fetch_librispeech(args.out, list(SUBSETS), args.base_url)


if __name__ == "__main__":
    run_main(main)
