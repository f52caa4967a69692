"""Stage 0 of egs/librispeech_100: fetch the subsets of LibriSpeech that it uses; or fetch a language model."""

import argparse
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.data.download import (
    LIBRISPEECH_LM_MD5,
    LIBRISPEECH_LM_URL,
    LIBRISPEECH_URL,
    fetch_librispeech,
    fetch_librispeech_lm,
)
from espnet_pinch.data.librispeech import SUBSETS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.fetch_librispeech", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets LibriSpeech/SUBSET, or NAME.arpa.gz")
    parser.add_argument("--lm", choices=tuple(LIBRISPEECH_LM_MD5), help="fetch this n-gram model alone")
    parser.add_argument("--base_url", help="a mirror of openslr.org/12, or of openslr.org/11 for --lm")
    args = parser.parse_args()
    if args.lm:
        print(fetch_librispeech_lm(args.out, args.lm, args.base_url or LIBRISPEECH_LM_URL))
    else:
        fetch_librispeech(args.out, list(SUBSETS), args.base_url or LIBRISPEECH_URL)


if __name__ == "__main__":
    run_main(main)
