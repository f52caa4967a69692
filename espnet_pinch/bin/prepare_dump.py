"""Stage 2: token list, and the sets as the trainer reads them."""

import argparse
from pathlib import Path

from espnet_pinch.asr.upstream import has_ctc_head, read_config
from espnet_pinch.asr.upstream import read_tokens as read_upstream_tokens
from espnet_pinch.bin import run_main
from espnet_pinch.data.dump import Limits, prepare_set, write_dump
from espnet_pinch.data.kaldi_dir import read_data_dir
from espnet_pinch.data.tokens import tokens_of_texts, write_tokens


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.prepare_dump", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of data directories")
    parser.add_argument("--upstream", required=True, help="its vocabulary is the token list, where it has one")
    parser.add_argument("--out", type=Path, required=True, help="writes OUT/SET and OUT/token_list/char/tokens.txt")
    parser.add_argument("--train_sets", nargs="+", required=True, help="sets to drop unusable utterances from")
    parser.add_argument("--test_sets", nargs="+", required=True)
    parser.add_argument("--audio_format", choices=("flac", "flac.ark"), default="flac")
    parser.add_argument("--min_wav_duration", type=float, default=0.1, help="seconds")
    parser.add_argument("--max_wav_duration", type=float, default=30.0, help="seconds")
    args = parser.parse_args()
    config = read_config(args.upstream)
    sets = {name: read_data_dir(args.data / name) for name in dict.fromkeys([*args.train_sets, *args.test_sets])}
    if has_ctc_head(config):
        tokens, _ = read_upstream_tokens(args.upstream, config)
    else:
        tokens = tokens_of_texts(u.text for u in sets[args.train_sets[0]])
    limits = Limits(args.min_wav_duration, args.max_wav_duration, config.conv_kernel, config.conv_stride)
    for name, utterances in sets.items():
        kept, dropped = prepare_set(utterances, tokens, limits, name in args.train_sets, name)
        write_dump(args.out / name, kept, args.out / "audio" / name if args.audio_format == "flac.ark" else None)
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        print(f"{name}: {len(kept)} utterances" + (f"; dropped: {why}" if why else ""), flush=True)
    write_tokens(args.out / "token_list" / "char" / "tokens.txt", tokens)
    print(f"{len(tokens)} tokens")


if __name__ == "__main__":
    run_main(main)
