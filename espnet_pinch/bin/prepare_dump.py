"""Stage 2: write the token list, and the data sets as the trainer reads them."""

import argparse
import dataclasses
import functools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from espnet_pinch.asr.family import find_family
from espnet_pinch.asr.upstream import has_head, read_config, require_head
from espnet_pinch.asr.vocabulary import read_tokens
from espnet_pinch.bin import run_main
from espnet_pinch.data import subwords
from espnet_pinch.data.audio import is_archived
from espnet_pinch.data.dump import Limits, check_test_set, prepare_training_set, spelled, write_dump
from espnet_pinch.data.kaldi_dir import Utterance, iterate_data_dir, read_lines
from espnet_pinch.data.spelling import POLICIES, Spelling, UnknownCharacters, describe
from espnet_pinch.data.text_changes import TextChanges, write_record
from espnet_pinch.data.text_steps import TextSteps, all_steps
from espnet_pinch.data.tokens import are_subwords, by_frequency, frames_needed, tokens_of_texts, write_tokens
from espnet_pinch.errors import UserError
from espnet_pinch.files import whole_file, write_json, write_text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that stage 2 has for all tasks."""
    parser.add_argument("--data", type=Path, required=True, help="folder of data directories")
    parser.add_argument("--upstream", required=True, help="where its outputs have names, they are the token list")
    parser.add_argument(
        "--own_baseline", action="store_true", help="the upstream is its own baseline: refuse one without a head"
    )
    parser.add_argument("--out", type=Path, required=True, help="writes OUT/SET and OUT/token_list")
    parser.add_argument("--train_set", required=True, help="unusable utterances are dropped from it")
    parser.add_argument("--valid_set", required=True, help="likewise, if it is not a test set")
    parser.add_argument("--test_sets", nargs="+", required=True)
    parser.add_argument("--text", default="", help=f"steps over every transcript: {', '.join(all_steps())}")
    parser.add_argument("--audio_format", choices=("flac", "flac.ark"), default="flac")
    parser.add_argument("--min_wav_duration", type=float, default=0.1, help="seconds")
    parser.add_argument("--max_wav_duration", type=float, default=30.0, help="seconds")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.prepare_dump", description=__doc__)
    add_options(parser)
    parser.add_argument(
        "--unknown_characters",
        default=UnknownCharacters.policy,
        help=f"what to do with characters of the training set that the vocabulary lacks: {', '.join(POLICIES)}",
    )
    parser.add_argument(
        "--token_type", choices=("char", "bpe"), default="char", help="of an upstream without a CTC head"
    )
    parser.add_argument("--nbpe", type=int, default=30, help="number of subwords, of bpe")
    args = parser.parse_args()
    unknown = UnknownCharacters(args.unknown_characters)
    config = read_config(args.upstream)
    if args.own_baseline:
        require_head(args.upstream, config)
    steps = TextSteps(args.text)
    train_set, names = args.train_set, dict.fromkeys((args.train_set, args.valid_set, *args.test_sets))
    changes = {name: TextChanges(steps, args.out / "text_changes" / name) for name in names}
    added: Counter[str] = Counter()
    model, name_of_type = b"", "char"  # the model is sentencepiece's, where the tokens are subwords
    if has_head(args.upstream, config):
        tokens, _ = read_tokens(args.upstream, config)
        if args.token_type != "char":
            print(
                f"note: {args.upstream} has a CTC head and keeps its own {len(tokens)} tokens, not bpe of {args.nbpe}"
            )
        if are_subwords(tokens):
            model, name_of_type = _own_model(args.upstream, tokens, unknown), "bpe"
        added = unknown.added((steps(u.text) for u in iterate_data_dir(args.data / train_set)), tokens)
        tokens += by_frequency(added)
    elif args.token_type == "bpe":
        model = subwords.train((steps(u.text) for u in iterate_data_dir(args.data / train_set)), args.nbpe)
        tokens, name_of_type = subwords.tokens_of(model), f"bpe_unigram{args.nbpe}"
    else:
        tokens = tokens_of_texts(steps(u.text) for u in iterate_data_dir(args.data / train_set))
    spelling = Spelling(tokens)
    unknown.check(spelled(stepped(args.data / train_set, steps), spelling), spelling, train_set)
    frames_of = functools.partial(find_family(config.model_type).frames_of, config)
    tokenize = functools.partial(subwords.encode, model) if model else list
    limits = Limits(args.min_wav_duration, args.max_wav_duration, frames_of, lambda text: frames_needed(tokenize(text)))
    ark = args.audio_format == "flac.ark" or any(has_archives(args.data / name) for name in names)
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*names, "all")}
    seen: set[int] = set()  # hashes of ids: an utterance in two sets, a validation and a test set, is counted once
    for name in names:
        rows = spelled(changes[name].apply(iterate_data_dir(args.data / name)), spelling)
        rows = _counted(rows, spelling, counts[name], counts["all"], seen)
        dropped: Counter[str] = Counter()
        treatment = "kept in the references"
        if name == train_set or (name == args.valid_set and name not in args.test_sets):
            rows = prepare_training_set(rows, spelling, limits, unknown, dropped)
            treatment = unknown.treatment
        else:
            rows = check_test_set(rows, limits, name)
        count = write_dump(args.out / name, rows, args.out / "audio" / name if ark else None)
        why = ", ".join(f"{number} {reason}" for reason, number in dropped.items())
        print(f"{name}: {count} utterances" + (f"; dropped: {why}" if why else ""), flush=True)
        if counts[name]:
            print(f"{name}: not in the vocabulary: {describe(counts[name])}; {treatment}", flush=True)
        if changes[name].counts:
            print(f"{name}: {changes[name].said}", flush=True)
    write_json(args.out / "unknown_characters.json", {"policy": unknown.policy, "added": added, "characters": counts})
    write_notes(args.out, steps, changes, ark)
    place = args.out / "token_list" / name_of_type
    write_tokens(place / "tokens.txt", tokens)
    if model:
        with whole_file(place / subwords.FILE) as new:
            new.write_bytes(model)
    write_text(args.out / "token_type", f"{name_of_type}\n")
    print(f"{len(tokens)} tokens ({name_of_type})" + (f"; added to the vocabulary: {describe(added)}" if added else ""))


def _own_model(upstream: str, tokens: list[str], unknown: UnknownCharacters) -> bytes:
    """The sentencepiece model of an upstream whose own tokens are subwords.

    Raises:
        UserError: it has none, or another one; or its vocabulary is to be extended.
    """
    model = subwords.read(upstream)
    if not model or subwords.tokens_of(model) != tokens:
        raise UserError(
            f"{upstream} has a vocabulary of subwords, and {'another' if model else 'no'} {subwords.FILE} for them: "
            "take one that was exported here"
        )
    if unknown.policy == "extend":
        raise UserError(f"{upstream} has a vocabulary of subwords, which unknown_characters: extend cannot extend")
    return model


def write_notes(out: Path, steps: TextSteps, changes: dict[str, TextChanges], ark: bool) -> None:
    """What later stages need to know of a dump. Archives of an earlier one, which nothing names now, are removed."""
    if not ark:
        shutil.rmtree(out / "audio", ignore_errors=True)
    write_record(out, steps, changes)
    write_text(out / "audio_type", "kaldi_ark\n" if ark else "sound\n")  # as ESPnet names them


def stepped(folder: Path, steps: TextSteps) -> Iterator[Utterance]:
    """The utterances of a data directory, their transcripts after the steps."""
    return (dataclasses.replace(u, text=steps(u.text)) for u in iterate_data_dir(folder))


def has_archives(folder: Path) -> bool:
    """Whether a data directory names audio in archives."""
    return any(is_archived(audio) for _, audio in read_lines(folder / "wav.scp"))


def _counted(
    utterances: Iterable[Utterance], spelling: Spelling, counts: Counter[str], total: Counter[str], seen: set[int]
) -> Iterator[Utterance]:
    """The utterances; counts the characters that are not tokens, in ``total`` only those of ids not in ``seen``."""
    for u in utterances:
        found = spelling.unknown([u.text]) if not spelling.known.issuperset(u.text) else None
        if found:
            counts.update(found)
        if hash(u.id) not in seen:
            seen.add(hash(u.id))
            total.update(found or {})
        yield u


if __name__ == "__main__":
    run_main(main)
