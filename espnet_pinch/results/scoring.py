"""Word and character error rates, hypotheses joined to references by utterance id."""

import os
from pathlib import Path

import jiwer

from espnet_pinch.alignment import count_word_errors
from espnet_pinch.data.kaldi_dir import read_table
from espnet_pinch.data.text_changes import read_record
from espnet_pinch.data.text_steps import TextSteps
from espnet_pinch.errors import UserError
from espnet_pinch.results.records import SetScore
from espnet_pinch.results.unit import ERROR, Unit


def join(references: dict[str, str], hypotheses: dict[str, str], where: str) -> list[tuple[str, str]]:
    """Pairs of reference and hypothesis, in the references' order.

    Raises:
        UserError: an utterance is missing on one side, and the message names it; or no reference has a word.
    """
    if not any(references.values()):
        raise UserError(f"{where}: no reference has a word")
    for name, one, other in (
        ("hypothesis", references, hypotheses),
        ("reference", hypotheses, references),
    ):
        missing = [id_ for id_ in one if id_ not in other]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise UserError(f"{where}: utterance {missing[0]} has no {name}{more}")
    return [(text, hypotheses[id_]) for id_, text in references.items()]


def error_rates(pairs: list[tuple[str, str]], unit: Unit = Unit()) -> SetScore:  # noqa: B008  (it is frozen)
    """Error rates of a set, with the counts they are made of.

    Words are counted in sclite's alignment, as in the significance test, characters by their edit distance. Of a
    classifier both are utterances.

    >>> error_rates([("ONE TWO", "ONE TOO"), ("SIX", "SIX")]).errors
    1
    """
    if unit.rate == ERROR:
        wrong, total = sum(reference != label for reference, label in pairs), len(pairs)
        return SetScore(wrong / total, wrong, total, wrong, 0, 0, wrong / total, wrong, total, total)
    words = count_word_errors(pairs)
    references, hypotheses = map(list, zip(*pairs))
    chars = jiwer.process_characters(references, hypotheses)
    return SetScore(
        wer=words.errors / words.words,
        errors=words.errors,
        **vars(words),
        cer=chars.cer,
        char_errors=chars.substitutions + chars.deletions + chars.insertions,
        chars=chars.hits + chars.substitutions + chars.deletions,
        utterances=len(pairs),
    )


def read_texts(reference: str | os.PathLike, *hypotheses: str | os.PathLike) -> list[dict[str, str]]:
    """References and hypotheses, out of Kaldi ``text`` files. All have gone through the steps over the transcripts that
    the references' dump was made with.

    Raises:
        FileNotFoundError, UserError: a file is missing or damaged.
    """
    steps = TextSteps(read_record(Path(reference).absolute().parents[1])["steps"])
    tables = [read_table(path) for path in (reference, *hypotheses)]
    return [{id_: steps(text) for id_, text in table.items()} for table in tables] if steps.names else tables


def score_files(
    reference: str | os.PathLike,
    hypothesis: str | os.PathLike,
    unit: Unit = Unit(),  # noqa: B008  (it is frozen)
) -> SetScore:
    """``error_rates`` of two Kaldi ``text`` files.

    Raises:
        FileNotFoundError, UserError: a file is missing or damaged, or their ids differ.
    """
    references, texts = read_texts(reference, hypothesis)
    return error_rates(join(references, texts, str(hypothesis)), unit)
