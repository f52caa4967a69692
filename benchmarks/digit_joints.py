"""Write the true times of the words of the connected digits, as CTM: the program that joins the recordings knows them.

The corpus is made by a program ``make_corpus.py`` beside its ``recordings.tar.xz``. This one runs that program's own
functions with the same seed, and notes where each recording begins and ends. A recording may have silence at its edges,
so that times of words are expected to lie within it.
"""

import argparse
import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path

from espnet_pinch.files import write_text
from espnet_pinch.transcript.format import all_formats
from espnet_pinch.transcript.words import Transcript, Word


def joined(make, archive: Path, passes: int, seed: int) -> Iterator[Transcript]:
    """The utterances in the order in which they are made.

    Args:
        make: the program, imported.
        passes, seed: its options.
    """
    rng = random.Random(seed)
    recordings = make.read_recordings(archive)
    for place, subset in enumerate(make.SUBSETS):
        for speaker, everything in sorted(recordings.items()):
            items = [r for r in everything if make.subset_of(speaker, r[1]) == subset]
            if not items:
                continue
            reader = make.SPEAKERS[speaker]
            rounds = passes if subset.startswith("train") else 2
            for i, digits in enumerate(make.utterances(items, rounds, rng)):
                pauses = _pauses(make.RATE, len(digits) + 1, rng)
                words, at = [], 0
                for (digit, _, samples), pause in zip(digits, pauses):
                    at += pause
                    end = at + len(samples)
                    words.append(Word(make.WORDS[digit], at / make.RATE, end / make.RATE, 1.0))
                    at = end
                text = " ".join(word.text for word in words)
                name = f"{reader}-{reader * 10 + place}-{i:04d}"
                yield Transcript(name, text, (at + pauses[-1]) / make.RATE, tuple(words))


def _pauses(rate: int, count: int, rng: random.Random) -> list[int]:
    """The lengths of an utterance's pauses in samples. Takes from ``rng`` what the program takes."""
    rng.randrange(1 << 30)
    return [int(rate * rng.uniform(0.03, 0.18)) for _ in range(count)]


def main(arguments: list[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--make_corpus", type=Path, required=True, help="the program, beside recordings.tar.xz")
    made.add_argument("--out", type=Path, required=True, help="CTM to write")
    made.add_argument("--passes", type=int, default=3, help="as given to the program [3]")
    made.add_argument("--seed", type=int, default=0, help="as given to the program [0]")
    args = made.parse_args(arguments)
    spec = importlib.util.spec_from_file_location("make_corpus", args.make_corpus)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    rows = list(joined(make, args.make_corpus.with_name("recordings.tar.xz"), args.passes, args.seed))
    write_text(args.out, "".join(map(all_formats()["ctm"].write, rows)))
    print(f"{len(rows)} utterances, {sum(len(row.words) for row in rows)} words, in {args.out}")


if __name__ == "__main__":
    main()
