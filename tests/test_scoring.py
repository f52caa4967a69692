"""Scoring joins by utterance id and counts errors."""

import pytest

from espnet_pinch.asr.greedy import ctc_greedy, to_text
from espnet_pinch.results.confusions import Compared, appendix, confusions, side_by_side
from espnet_pinch.results.scoring import error_rates, score_files


def test_errors_are_counted():
    rates = error_rates([("A B C D", "A X C"), ("E", "E F"), ("G", "")])
    assert (rates.substitutions, rates.deletions, rates.insertions) == (1, 2, 1)
    assert rates.errors == 4 and rates.words == 6 and rates.wer == pytest.approx(4 / 6)
    assert rates.utterances == 3


def test_words_are_counted_as_sclite_counts_them():
    rates = error_rates([("C C D C B", "D B X C")])  # the edit distance is 4, the cheapest weighted alignment has 5
    assert (rates.substitutions, rates.deletions, rates.insertions, rates.errors) == (0, 3, 2, 5)
    assert rates.wer == 1


def test_references_without_a_word_have_no_error_rate(tmp_path):
    (tmp_path / "ref").write_text("u1\n")
    (tmp_path / "hyp").write_text("u1 A\n")
    with pytest.raises(ValueError, match="hyp: no reference has a word"):
        score_files(tmp_path / "ref", tmp_path / "hyp")


def test_files_are_joined_by_id_not_by_line(tmp_path):
    (tmp_path / "ref").write_text("u1 A B\nu2 C\nu3 D\n")
    (tmp_path / "hyp").write_text("u3 D\nu1 A B\nu2\n")
    assert score_files(tmp_path / "ref", tmp_path / "hyp").errors == 1


@pytest.mark.parametrize(
    "hypotheses, message",
    [
        ("u1 A\n", "utterance u2 has no hypothesis"),
        ("u1 A\nu2 B\nu4 X\n", "utterance u4 has no reference"),
        ("u1 A\nu2 B\nu2 B\n", "u2 is there twice"),
    ],
)
def test_missing_extra_and_doubled_hypotheses_are_named(tmp_path, hypotheses, message):
    (tmp_path / "ref").write_text("u1 A\nu2 B\n")
    (tmp_path / "hyp").write_text(hypotheses)
    with pytest.raises(ValueError, match=message):
        score_files(tmp_path / "ref", tmp_path / "hyp")


def test_greedy_search_merges_repeats_and_drops_blanks():
    import torch

    frames = torch.tensor([[1, 1, 0, 1, 2, 2, 0, 0], [0, 3, 3, 3, 0, 0, 2, 2]])
    assert ctc_greedy(frames, torch.tensor([8, 5])) == [[1, 1, 2], [3]]


def test_text_has_no_special_tokens_and_single_spaces():
    tokens = ["<blank>", "<unk>", "<space>", "A", "B", "'"]
    assert to_text([2, 3, 2, 2, 1, 4, 5, 2], tokens) == "A B'"


WORSE = Compared("test u1", "ONE TWO THREE", "ONE TOO THREE", "SIX ONE TOO TOO FREE")
BETTER = Compared("test u2", "FOUR", "FIVE", "FOUR")
BAD = Compared("test u3", "SEVEN EIGHT", "", "SEVEN")


def test_words_stand_under_those_that_they_are_taken_for():
    assert side_by_side(WORSE, "pinch") == [
        "reference  *** ONE *** TWO THREE",
        "baseline   *** ONE *** TOO THREE",
        "pinch      SIX ONE TOO TOO FREE",
    ]
    assert side_by_side(BAD, "run") == ["reference  SEVEN EIGHT", "baseline   ***   ***", "run        SEVEN ***"]


def test_confusions_are_as_many_as_the_errors():
    rows = [WORSE, BETTER, BAD]
    for which in ("baseline", "run"):
        pairs = [(row.reference, getattr(row, which)) for row in rows]
        assert sum(confusions(pairs).values()) == error_rates(pairs).errors


def test_the_appendix_begins_with_what_has_changed_most():
    lines = appendix([BETTER, BAD, WORSE], "pinch")
    table = [line for line in lines if line.startswith("| ")][2:]
    assert "| TWO | TOO | 1 | 1 |" == table[-1]  # what has not changed comes last
    assert {"| FOUR | FIVE | 1 | 0 |", r"| \*\*\* | SIX | 0 | 1 |", r"| SEVEN | \*\*\* | 1 | 0 |"} < set(table)
    heads = [line for line in lines if line.startswith("test u")]
    assert heads == [
        "test u1: errors of the baseline 1, of the run 4",
        "test u3: errors of the baseline 2, of the run 1",
    ]
