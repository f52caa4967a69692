"""Stage 2: write the token list, and the data sets as the trainer reads them."""

import argparse
import functools
from collections import Counter
from pathlib import Path

from espnet_pinch.asr.family import find_family
from espnet_pinch.asr.upstream import has_ctc_head, read_config, require_ctc_head
from espnet_pinch.asr.vocabulary import read_tokens
from espnet_pinch.bin import run_main
from espnet_pinch.data.dump import Limits, check_test_set, prepare_training_set, spelled, write_dump
from espnet_pinch.data.kaldi_dir import read_data_dir
from espnet_pinch.data.spelling import POLICIES, Spelling, UnknownCharacters, describe
from espnet_pinch.data.tokens import by_frequency, tokens_of_texts, write_tokens
from espnet_pinch.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.prepare_dump", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of data directories")
    parser.add_argument("--upstream", required=True, help="its vocabulary, if it has one, is the token list")
    parser.add_argument(
        "--own_baseline", action="store_true", help="the upstream is its own baseline: refuse one without a CTC head"
    )
    parser.add_argument("--out", type=Path, required=True, help="writes OUT/SET and OUT/token_list/char/tokens.txt")
    parser.add_argument("--train_set", required=True, help="unusable utterances are dropped from it")
    parser.add_argument("--valid_set", required=True, help="likewise, if it is not a test set")
    parser.add_argument("--test_sets", nargs="+", required=True)
    parser.add_argument(
        "--unknown_characters",
        default=UnknownCharacters.policy,
        help=f"what to do with characters of the training set that the vocabulary lacks: {', '.join(POLICIES)}",
    )
    parser.add_argument("--audio_format", choices=("flac", "flac.ark"), default="flac")
    parser.add_argument("--min_wav_duration", type=float, default=0.1, help="seconds")
    parser.add_argument("--max_wav_duration", type=float, default=30.0, help="seconds")
    args = parser.parse_args()
    unknown = UnknownCharacters(args.unknown_characters)
    config = read_config(args.upstream)
    if args.own_baseline:
        require_ctc_head(args.upstream, config)
    sets = {name: read_data_dir(args.data / name) for name in (args.train_set, args.valid_set, *args.test_sets)}
    train = sets[args.train_set]
    added: Counter[str] = Counter()
    if has_ctc_head(args.upstream, config):
        tokens, _ = read_tokens(args.upstream, config)
        added = unknown.added((u.text for u in train), tokens)
        tokens += by_frequency(added)
    else:
        tokens = tokens_of_texts(u.text for u in train)
    spelling = Spelling(tokens)
    sets = {name: spelled(utterances, spelling) for name, utterances in sets.items()}
    unknown.check(sets[args.train_set], spelling, args.train_set)
    frames_of = functools.partial(find_family(config.model_type).frames_of, config)
    limits = Limits(args.min_wav_duration, args.max_wav_duration, frames_of)
    counts: dict[str, Counter[str]] = {}
    for name, utterances in sets.items():
        counts[name] = spelling.unknown(u.text for u in utterances)
        why, treatment = "", "kept in the references"
        if name == args.train_set or (name == args.valid_set and name not in args.test_sets):
            utterances, dropped = prepare_training_set(utterances, spelling, limits, unknown)
            why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            treatment = unknown.treatment
        else:
            check_test_set(utterances, limits, name)
        write_dump(args.out / name, utterances, args.out / "audio" / name if args.audio_format == "flac.ark" else None)
        print(f"{name}: {len(utterances)} utterances" + (f"; dropped: {why}" if why else ""), flush=True)
        if counts[name]:
            print(f"{name}: not in the vocabulary: {describe(counts[name])}; {treatment}", flush=True)
    # By id: an utterance in two sets, such as a validation and a test set, is counted once.
    texts = {u.id: u.text for utterances in sets.values() for u in utterances}
    counts["all"] = spelling.unknown(texts.values())
    write_json(args.out / "unknown_characters.json", {"policy": unknown.policy, "added": added, "characters": counts})
    write_tokens(args.out / "token_list" / "char" / "tokens.txt", tokens)
    print(f"{len(tokens)} tokens" + (f"; added to the vocabulary: {describe(added)}" if added else ""))


if __name__ == "__main__":
    run_main(main)
