"""Word and character error rates, hypotheses joined to references by utterance id."""

import os

import jiwer

from espnet_pinch.data.kaldi_dir import read_table


def join(references: dict[str, str], hypotheses: dict[str, str], where: str) -> list[tuple[str, str]]:
    """Pairs of reference and hypothesis, in the references' order.

    Raises:
        ValueError: an utterance is missing on one side; the message names it.
    """
    for name, one, other in (
        ("hypothesis", references, hypotheses),
        ("reference", hypotheses, references),
    ):
        missing = [id_ for id_ in one if id_ not in other]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise ValueError(f"{where}: utterance {missing[0]} has no {name}{more}")
    return [(text, hypotheses[id_]) for id_, text in references.items()]


def error_rates(pairs: list[tuple[str, str]]) -> dict:
    """Error rates of a set as fractions, with the counts they are made of.

    Returns: ``wer, errors, words, substitutions, deletions, insertions, cer, char_errors, chars, utterances``.

    >>> error_rates([("ONE TWO", "ONE TOO"), ("SIX", "SIX")])["errors"]
    1
    """
    references, hypotheses = map(list, zip(*pairs))
    words, chars = jiwer.process_words(references, hypotheses), jiwer.process_characters(references, hypotheses)
    return {
        "wer": words.wer,
        "errors": _errors(words),
        "words": words.hits + words.substitutions + words.deletions,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "cer": chars.cer,
        "char_errors": _errors(chars),
        "chars": chars.hits + chars.substitutions + chars.deletions,
        "utterances": len(pairs),
    }


def _errors(output) -> int:
    return output.substitutions + output.deletions + output.insertions


def score_files(reference: str | os.PathLike, hypothesis: str | os.PathLike) -> dict:
    """``error_rates`` of two Kaldi ``text`` files.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or their ids differ.
    """
    return error_rates(join(read_table(reference), read_table(hypothesis), str(hypothesis)))
