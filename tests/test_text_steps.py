"""Steps over transcripts: what they do to many scripts, that all sides go through the same, and what is said of it."""

import json
import re
import unicodedata
from pathlib import Path

import pytest
from conftest import write_results
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_pinch.bin import check_config, prepare_dump
from espnet_pinch.data.kaldi_dir import Utterance, read_table, write_data_dir
from espnet_pinch.data.text_changes import RECORD, TextChanges, write_record
from espnet_pinch.data.text_steps import TextSteps, all_steps
from espnet_pinch.results.records import Results
from espnet_pinch.results.scoring import read_texts, score_files
from espnet_pinch.results.significance import compare_files
from espnet_pinch.results.unit import CER, Unit, choose_unit

# A sentence of each, with its own punctuation, marks and joiners; and the same without punctuation.
SCRIPTS = {
    "Arabic": ("هل أنتَ بخير؟ نعم، شكرًا.", "هل أنتَ بخير نعم شكرًا"),
    "Persian": ("می‌خواهم؛ کتاب‌ها!", "می‌خواهم کتاب‌ها"),  # with joiners
    "Hebrew": ("שָׁלוֹם, צה״ל!", "שָׁלוֹם צה״ל"),
    "Hindi": ("नमस्ते, क्या हाल है? अच्छा है।", "नमस्ते क्या हाल है अच्छा है"),
    "Tamil": ("வணக்கம், எப்படி?", "வணக்கம் எப்படி"),
    "Vietnamese": ("Xin chào, bạn khỏe không?", "Xin chào bạn khỏe không"),
    "Japanese": ("「コーヒー」を、飲みますか。", "コーヒー を 飲みますか"),
    "Chinese": ("你好，世界！", "你好 世界"),
    "Thai": ("สวัสดี (ครับ)", "สวัสดี ครับ"),
    "Korean": ("안녕하세요?", "안녕하세요"),
    "Catalan": ("L'any «col·lecció»…", "L'any col·lecció"),
    "English": ("Don't -- 'stop', well-known!", "Don't stop well known"),
    "Amharic": ("ሰላም፡ዓለም።", "ሰላም ዓለም"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_punctuation_goes_and_every_letter_and_mark_stays(script):
    text, bare = SCRIPTS[script]
    assert TextSteps("no_punctuation")(text) == unicodedata.normalize("NFC", bare)
    marks = [c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c)[0] in "LM"]
    for name in set(all_steps()) - {"nfkc", "lower", "upper", "no_tatweel", "no_brackets"}:
        after = unicodedata.normalize("NFD", TextSteps(name)(text))
        assert [c for c in after if unicodedata.category(c)[0] in "LM"] == marks, name
        assert all(joiner in after for joiner in "\u200c\u200d" if joiner in text), name
    assert TextSteps("lower upper lower")(text) == TextSteps("lower")(text)


@pytest.mark.parametrize(
    "steps, text, result",
    [
        ("", "Any  thing", "Any  thing"),
        ("nfc", "e\u0301", "\u00e9"),
        ("nfkc", "Ａｂ ﬁ ｶﾞ", "Ab fi ガ"),
        ("nfkc no_format", "e\u00ad\u0301", "é"),
        ("lower", "ΣΑΣ STRASSE", "σας strasse"),
        ("lower, no_punctuation", "Hi-Fi, OK?", "hi fi ok"),
        ("upper", "straße", "STRASSE"),
        ("plain_quotes", "‘don’t’ “x” «y»", '\'don\'t\' "x" "y"'),
        ("no_brackets", "a [noise] (b (c)) <unk> {um} d（笑）", "a d"),
        ("no_brackets", "a ) b ( c", "a ) b ( c"),
        ("no_symbols", "♪ la ☺\ufe0f + 5$", "la 5"),
        ("no_symbols", "क्\u200dष \U0001f469\U0001f3fd\u200d\u2764\ufe0f\u200d\U0001f468 1\ufe0f\u20e3", "क्\u200dष 1"),
        ("no_format", "\u200fنعم\u200e a\u00adb \u2066c\u2069 می\u200cخ", "نعم ab c می\u200cخ"),
        ("no_tatweel", "العـــربية", "العربية"),
        ("no_spaces", "今日 は 雨 iPhone を two words 買 う", "今日は雨 iPhone を two words 買う"),
        ("no_spaces", "สวัสดี ครับ", "สวัสดีครับ"),
        ("no_punctuation", "... ?!", ""),
        ("no_punctuation", "rock 'n' roll", "rock n roll"),
    ],
)
def test_steps_do_what_they_say(steps, text, result):
    assert TextSteps(steps)(text) == result
    assert TextSteps(steps)(result) == result


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.sampled_from(sorted(all_steps())))
def test_a_step_leaves_single_spaces_and_composed_letters(text, name):
    once = TextSteps(name)(text)
    assert once == " ".join(once.split()) and unicodedata.is_normalized("NFC", once)
    assert TextSteps(f"nfc {name}")(once) is not None


def test_every_step_has_a_line_of_documentation_and_unknown_ones_are_refused():
    assert all(
        step.about.endswith((".", ")", "】, （...）.")) and "\n" not in step.about for step in all_steps().values()
    )
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.M))
    assert rows == {name: step.about for name, step in all_steps().items()}
    with pytest.raises(ValueError, match="there is no step 'lowercase'; there is: nfc, nfkc, lower, upper"):
        TextSteps("nfc lowercase")
    for wrong in (5, {"lower": True}, ["lower", 1]):
        with pytest.raises(ValueError, match="must be names of steps"):
            TextSteps(wrong)
    assert TextSteps(["lower", "nfc"]).names == ("lower", "nfc") and TextSteps(None).names == ()


# ---- In the recipe


@pytest.fixture
def dump(tmp_path, monkeypatch, ctc_folder, capsys):
    upstream = ctc_folder(tmp_path / "upstream", ["<pad>", "<s>", "</s>", "<unk>", "|", *"DEGHINOST"])
    texts = {"train": ["Don't (uh) go!", "GO."], "dev": ["So?"], "test": ["It's -- HERE", "..."]}
    for name, of_it in texts.items():
        rows = [Utterance(f"{name}-{i}", f"/{name}{i}.flac", text, name, 32000) for i, text in enumerate(of_it)]
        write_data_dir(tmp_path / "data" / name, rows)
    command = ["x", "--data", str(tmp_path / "data"), "--upstream", str(upstream), "--out", str(tmp_path / "dump")]
    command += ["--train_set", "train", "--valid_set", "dev", "--test_sets", "test", "--unknown_characters", "drop"]
    monkeypatch.setattr("sys.argv", [*command, "--text", "lower no_brackets no_punctuation"])
    prepare_dump.main()
    (tmp_path / "said").write_text(capsys.readouterr().out)
    return tmp_path / "dump"


def test_training_text_and_references_go_through_the_same_steps(dump, tmp_path):
    assert read_table(dump / "train" / "text") == {"train-0": "DONT GO", "train-1": "GO"}  # the vocabulary's case
    assert read_table(dump / "test" / "text") == {"test-0": "IT'S HERE", "test-1": ""}
    record = json.loads((dump / RECORD).read_text())
    assert record["steps"] == ["lower", "no_brackets", "no_punctuation"]
    counts = {"lower": 2, "no_brackets": 1, "no_punctuation": 2}
    assert record["sets"]["train"] == {"changed": 2, "emptied": 0, "steps": counts}
    assert (dump / "text_changes" / "train").read_text().splitlines()[0] == "train-0\tDon't (uh) go!\tdon't go"
    said = (tmp_path / "said").read_text()
    assert "test: text: 2 transcripts changed (lower 1, no_punctuation 2); 1 of them are empty now; see " in said


def test_hypotheses_go_through_the_same_steps_before_they_are_scored(dump, tmp_path):
    (tmp_path / "hyp").write_text("test-0 It's, HERE (noise)\ntest-1 .\n")
    assert score_files(dump / "test" / "text", tmp_path / "hyp").errors == 0
    assert read_texts(dump / "test" / "text", tmp_path / "hyp")[1] == {"test-0": "it's here", "test-1": ""}
    assert compare_files(dump / "test" / "text", tmp_path / "hyp", tmp_path / "hyp").errors == 0
    (dump / RECORD).unlink()
    assert score_files(dump / "test" / "text", tmp_path / "hyp").errors == 3


def test_a_yaml_or_an_option_names_the_steps(tmp_path, monkeypatch, capsys):
    conf = tmp_path / "conf.yaml"
    conf.write_text("frontend_conf: {upstream: mini}\ntext: [nfc, lower]\n")

    def steps(*options):
        monkeypatch.setattr("sys.argv", ["x", "--config", str(conf), *options])
        check_config.main()
        return dict(line.partition("=")[::2] for line in capsys.readouterr().out.splitlines())["text"]

    assert steps() == "nfc lower" and steps("--text", "upper") == "upper"
    with pytest.raises(ValueError, match="there is no step 'x'"):
        steps("--text", "x")


# ---- What comes first, words or characters


@pytest.mark.parametrize(
    "texts, rate",
    [
        (["今日は雨が降る", "はい"], "cer"),
        (["你 好 世 界"], "cer"),
        (["สวัสดีครับ"], "cer"),
        (["iPhone を買う"], "wer"),  # more than half of the letters
        (["नमस्ते क्या हाल है"], "wer"),
        (["안녕 하세요", "هل أنتَ", "ONE"], "wer"),
        (["", "..."], "wer"),
    ],
)
def test_scripts_without_spaces_are_scored_by_characters_first(texts, rate):
    assert choose_unit("auto", texts).rate == rate
    assert choose_unit("cer", texts).rate == "cer" and choose_unit("wer", texts).rate == "wer"


def test_a_report_on_characters_counts_characters(tmp_path):
    (tmp_path / "a" / "test").mkdir(parents=True)
    for name, text in (
        ("ref", "u1 今日は雨\nu2 はい\n"),
        ("one", "u1 今日は雪\nu2 はい\n"),
        ("two", "u1 今日雨\nu2 は\n"),
    ):
        (tmp_path / "a" / "test" / name).write_text(text)
    ref, one, two = (tmp_path / "a" / "test" / name for name in ("ref", "one", "two"))
    test = compare_files(ref, one, two, Unit(CER))
    assert (test.words, test.baseline_errors, test.errors) == (6, 1, 2)
    assert compare_files(ref, one, two).words == 2
    score = score_files(ref, two)
    assert score.counts(Unit(CER)) == (2, 6) and score.counts(Unit()) == (2, 2)
    with pytest.raises(ValueError, match="--error_rate must be auto, wer or cer, not 'x'"):
        choose_unit("x", [])


def test_results_of_earlier_releases_are_counted_in_words(tmp_path):
    write_results(tmp_path / "asr_x", "pinch", 0.5, {"test": 10})
    values = json.loads((tmp_path / "asr_x" / "results.json").read_text())
    for key in ("error_rate", "error_rate_why", "text_steps"):
        del values[key]
    (tmp_path / "asr_x" / "results.json").write_text(json.dumps(values))
    assert Results.read(tmp_path / "asr_x" / "results.json").unit == Unit()


def test_no_steps_leave_no_file(tmp_path):
    changes = TextChanges(TextSteps(), tmp_path / "changes")
    rows = [Utterance("a", "/a", "A", "a", 1)]
    assert list(changes.apply(rows)) == rows and not (tmp_path / "changes").exists()
    write_record(tmp_path, TextSteps(), {"train": changes})
    assert json.loads((tmp_path / RECORD).read_text())["sets"]["train"]["changed"] == 0


def test_changes_and_archives_of_an_earlier_dump_are_removed(tmp_path):
    rows = [Utterance("u", "a.wav", "A", "s", 16000)]
    for names in ("lower", ""):
        changes = TextChanges(TextSteps(names), tmp_path / "text_changes" / "train")
        list(changes.apply(rows))
        (tmp_path / "audio" / "train").mkdir(parents=True, exist_ok=True)
        prepare_dump.write_notes(tmp_path, TextSteps(names), {"train": changes}, ark=bool(names))
        assert (tmp_path / "audio").exists() == (tmp_path / "text_changes" / "train").exists() == bool(names)
