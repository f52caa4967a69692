"""Transcripts in a vocabulary's spelling, and the characters that it lacks."""

import json
import unicodedata
from collections import Counter

import pytest

from espnet_pinch.bin import prepare_dump
from espnet_pinch.data.kaldi_dir import Utterance, read_table, write_data_dir
from espnet_pinch.data.spelling import Spelling, UnknownCharacters, describe

ACUTE, TILDE, DOT, CIRCUMFLEX = "\u0301", "\u0303", "\u0323", "\u0302"


@pytest.mark.parametrize(
    "tokens, text, spelled",
    [
        (["<blank>", "<space>", "a", "b"], "AB BA", "ab ba"),
        (["<blank>", "<space>", "A", "'"], "On a'", "ON A'"),
        ("aA", "On", "On"),
        ("abcDEF", "ABCdef", "abcDEF"),  # letters of both cases, each in one alone
        ("ABC", "STRAßE", "STRASSE"),
        ("σςα", "ΣΑΣ", "σας"),
        ("aÉ", "aÉ", "aÉ"),  # matches as it is, in a vocabulary whose letters are of two cases
        (["e", "a", ACUTE], "\u00e9a", "e" + ACUTE + "a"),  # a vocabulary with combining marks
        (["\u00e9", "a"], "e" + ACUTE + "a", "\u00e9a"),
        (["\u095c", "\u0915"], "\u0921\u093c\u0915", "\u095c\u0915"),  # a letter that NFC takes apart
        (["\u095c", "x"], "\u095cxy", "\u095cxy"),  # and beside a character that the vocabulary lacks
        (["\u00ea", DOT], "\u1ec7", "\u00ea" + DOT),  # marks in another order than the canonical one
        (["\u1eb9", CIRCUMFLEX], "\u1ec7", "\u1eb9" + CIRCUMFLEX),
        (["\u212b"], "\u00c5", "\u212b"),  # the sign for the unit
        (["K", "\u212a"], "K\u212a", "K\u212a"),
        (["K", "x"], "\u212ax", "Kx"),
        (["\u1112", "\u1161", "\u11ab"], "\ud55c", "\u1112\u1161\u11ab"),  # Hangul by its letters
        (["\ud55c"], "\u1112\u1161\u11ab", "\ud55c"),
    ],
)
def test_a_text_takes_the_vocabularys_spelling(tokens, text, spelled):
    assert Spelling(tokens)(text) == spelled
    assert Spelling(tokens)(spelled) == spelled


def test_a_text_that_matches_is_never_changed():
    for tokens in (["\u095c"], ["e", ACUTE], ["\u00e9", "e", ACUTE], ["\u212b", "\u00c5"], ["İ", "i"]):
        for text in ("".join(tokens), " ".join(tokens)):
            assert Spelling(tokens)(text) == text


def test_what_fits_no_token_stays_composed_and_is_counted():
    spelling = Spelling("abc")
    assert spelling("A\u0301B") == "\u00e1b"
    assert spelling.unknown(["\u00e1b\u00e1", "c!"]) == Counter({"\u00e1": 2, "!": 1})
    assert describe(Counter({"\u00e1": 1200, "!": 1})) == "'\u00e1' (U+00E1) 1,200 times, '!' (U+0021) once"
    assert describe(Counter("abcdefgh")).endswith("'f' (U+0066) once and 2 more characters")
    assert unicodedata.is_normalized("NFC", spelling("z" + TILDE + "a"))


def test_a_policy_that_is_none_is_refused():
    with pytest.raises(ValueError, match="unknown_characters must be one of error, drop, unknown, extend, not 'skip'"):
        UnknownCharacters("skip")
    with pytest.raises(ValueError, match="not \\['drop'\\]"):
        UnknownCharacters(["drop"])


# ---- Stage 2


TEXTS = {
    "train": ["DON'T GO", "IT'S", "''", "GO"],
    "dev": ["GO ON'", "GO"],
    "test": ["NO\u00cbL DON'T", "GO"],
}


@pytest.fixture
def prepare(tmp_path, monkeypatch, ctc_folder):
    """Runs stage 2 on three sets, with an upstream whose vocabulary has no apostrophe."""
    upstream = ctc_folder(tmp_path / "upstream", ["<pad>", "<s>", "</s>", "<unk>", "|", *"dogints"])
    for name, texts in TEXTS.items():
        rows = [Utterance(f"{name}-{i}", f"/{name}{i}.flac", text, name, 32000) for i, text in enumerate(texts)]
        write_data_dir(tmp_path / "data" / name, rows)

    def run(policy: str, *more: str):
        sets = ("--train_set", "train", "--valid_set", "dev", "--test_sets", "test", *more)
        command = ["x", "--data", str(tmp_path / "data"), "--upstream", str(upstream), "--out", str(tmp_path / policy)]
        monkeypatch.setattr("sys.argv", [*command, "--unknown_characters", policy, *sets])
        prepare_dump.main()
        tables = {name: read_table(tmp_path / policy / name / "text") for name in TEXTS}
        tokens = (tmp_path / policy / "token_list" / "char" / "tokens.txt").read_text().splitlines()
        return tables, tokens, json.loads((tmp_path / policy / "unknown_characters.json").read_text())

    return run


def test_a_training_set_with_unknown_characters_is_refused_with_what_to_do(prepare, tmp_path):
    with pytest.raises(
        ValueError, match=r"train: .* lacks \"'\" \(U\+0027\) 4 times; first in utterance train-0.*drop"
    ):
        prepare("error")
    assert not (tmp_path / "error").exists()


def test_unknown_characters_are_left_out_of_training_and_kept_in_the_references(prepare, capsys):
    tables, tokens, counts = prepare("drop")
    assert tables["train"] == {"train-0": "dont go", "train-1": "its", "train-3": "go"}
    assert tables["dev"] == {"dev-0": "go on", "dev-1": "go"}
    assert tables["test"] == {"test-0": "no\u00ebl don't", "test-1": "go"}
    assert len(tokens) == 12 and counts["characters"]["train"] == {"'": 4} and counts["policy"] == "drop"
    said = capsys.readouterr().out
    assert "train: 3 utterances; dropped: 1 without a character of the vocabulary\n" in said
    assert 'train: not in the vocabulary: "\'" (U+0027) 4 times; left out\n' in said
    kept = (
        "test: not in the vocabulary: \"'\" (U+0027) once, 'l' (U+006C) once, '\u00eb' (U+00EB) once; kept in the ref"
    )
    assert kept in said


def test_unknown_characters_are_kept_for_espnets_unk_where_asked_for(prepare):
    tables, tokens, _ = prepare("unknown")
    assert tables["train"]["train-0"] == "don't go" and len(tables["train"]) == 4 and "'" not in tokens


def test_the_vocabulary_is_extended_by_what_the_training_set_has(prepare, capsys):
    tables, tokens, counts = prepare("extend")
    assert tokens[-1] == "'" and len(tokens) == 13 and tables["train"]["train-2"] == "''"
    assert counts["added"] == {"'": 4} and "'l' (U+006C) once" in capsys.readouterr().out
    assert tables["dev"]["dev-0"] == "go on'" and tables["test"]["test-0"] == "no\u00ebl don't"


def test_a_letter_of_a_test_set_alone_does_not_stop_the_recipe(prepare, tmp_path):
    for name in ("train", "dev"):
        rows = [Utterance(f"{name}-0", f"/{name}.flac", "GO ON", name, 32000)]
        write_data_dir(tmp_path / "data" / name, rows)
    tables, _, counts = prepare("error")
    assert tables["test"]["test-0"] == "no\u00ebl don't" and counts["characters"]["test"]["'"] == 1


def test_a_validation_set_that_is_scored_too_keeps_its_references(prepare):
    tables, _, _ = prepare("drop", "dev")
    assert tables["dev"]["dev-0"] == "go on'"
