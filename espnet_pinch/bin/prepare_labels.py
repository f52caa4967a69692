"""Stage 2 of classification: write the list of labels, and the data sets as the trainer reads them.

The label of an utterance is its whole transcript. Those of the training set are the classifier's, or those of an
upstream that is a classifier already. Every other label is an error.
"""

import argparse
import functools
from collections import Counter

from espnet_pinch.asr.family import find_family
from espnet_pinch.asr.head import CLASSIFY
from espnet_pinch.asr.heads.labels import labels_of
from espnet_pinch.asr.upstream import has_head, read_config, require_head, require_stock_model
from espnet_pinch.bin import run_main
from espnet_pinch.bin.prepare_dump import add_options, has_archives, stepped, write_notes
from espnet_pinch.data.dump import Limits, check_test_set, usable, write_dump
from espnet_pinch.data.kaldi_dir import iterate_data_dir
from espnet_pinch.data.labels import Labels
from espnet_pinch.data.text_changes import TextChanges
from espnet_pinch.data.text_steps import TextSteps
from espnet_pinch.data.tokens import write_tokens


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.prepare_labels", description=__doc__)
    add_options(parser)
    args = parser.parse_args()
    config = read_config(args.upstream)
    require_stock_model(args.upstream, config, CLASSIFY)
    if args.own_baseline:
        require_head(args.upstream, config, CLASSIFY)
    steps = TextSteps(args.text)
    names = dict.fromkeys((args.train_set, args.valid_set, *args.test_sets))
    if has_head(args.upstream, config, CLASSIFY):
        labels = Labels(labels_of(args.upstream, config), args.upstream)
    else:
        labels = Labels.of(stepped(args.data / args.train_set, steps), args.train_set)
    changes = {name: TextChanges(steps, args.out / "text_changes" / name) for name in names}
    frames_of = functools.partial(find_family(config.model_type).frames_of, config)
    bounds = args.min_wav_duration, args.max_wav_duration
    limits = Limits(*bounds, frames_of, needed=lambda label: 1, empty="without a label")
    ark = args.audio_format == "flac.ark" or any(has_archives(args.data / name) for name in names)
    for name in names:
        rows = changes[name].apply(iterate_data_dir(args.data / name))
        dropped: Counter[str] = Counter()
        if name == args.train_set or (name == args.valid_set and name not in args.test_sets):
            rows = usable(rows, limits, dropped)
        else:
            rows = check_test_set(rows, limits, name)
        count = write_dump(args.out / name, labels.check(rows, name), args.out / "audio" / name if ark else None)
        why = ", ".join(f"{number} {reason}" for reason, number in dropped.items())
        print(f"{name}: {count} utterances" + (f"; dropped: {why}" if why else ""), flush=True)
        if changes[name].counts:
            print(f"{name}: {changes[name].said}", flush=True)
    write_notes(args.out, steps, changes, ark)
    write_tokens(args.out / "token_list" / "label" / "tokens.txt", labels.names)
    print(f"{len(labels.names)} labels")


if __name__ == "__main__":
    run_main(main)
