"""Which sets utterances belong to: by a hash of the speaker, or by the splits that a corpus names."""

import numpy as np
import pytest
import soundfile
from corpora import ROWS, THREE, stage_1, tone, write_table

from espnet_pinch.corpus.splits import Splits, point
from espnet_pinch.data.kaldi_dir import read_table


def test_sets_are_made_by_speaker_and_a_new_speaker_moves_no_other(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", tone(0.2), 16000)
    rows = [{"audio": "a.wav", "id": f"{s}-{i}", "text": "A", "speaker": f"s{s}"} for s in range(60) for i in range(2)]
    shares = ("--dev_share", "0.2", "--test_share", "0.1")
    found = []
    for count in (110, 120):
        stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path / "in", rows[:count]), *shares)
        sets = {name: set(read_table(tmp_path / "data" / name / "utt2spk").values()) for name in THREE[1::2]}
        assert not sets["train"] & sets["dev"] and not sets["dev"] & sets["test"] and not sets["train"] & sets["test"]
        assert sum(map(len, sets.values())) == count / 2
        found.append(sets)
    for name, speakers in found[0].items():
        assert speakers == {s for s in found[1][name] if int(s[1:]) < 55}
    assert point("s1") == point("s1") != point("s2") and 0 <= point("") < 1
    for row in rows:
        del row["speaker"]
        row["audio"] = f"{row['id']}.wav"
        (tmp_path / "in" / row["audio"]).hardlink_to(tmp_path / "in" / "a.wav")
    stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path / "in", rows), *shares)
    assert "120 of 120 utterances have no speaker: sets are made by utterance for them" in capsys.readouterr().out
    assert set(read_table(tmp_path / "data" / "dev" / "utt2spk").items()) == {
        (id_, id_) for id_ in read_table(tmp_path / "data" / "dev" / "text")
    }


def test_a_recording_is_in_one_set_whatever_it_is_called_and_however_it_is_cut(tmp_path, monkeypatch, capsys):
    rows = []
    for i in range(30):
        (tmp_path / "in" / f"rec{i}").mkdir(parents=True)
        soundfile.write(tmp_path / "in" / f"rec{i}" / "audio.wav", np.stack([tone(0.4)] * 2, 1), 16000)
        cuts = ({"channel": 0}, {"channel": 1}, {"start": 0.1, "end": 0.3}, {})
        rows += [{"audio": f"rec{i}/audio.wav", "id": f"{i}-{j}", "text": "A", **cut} for j, cut in enumerate(cuts)]
    shares = ("--dev_share", "0.3", "--test_share", "0.3")
    stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path / "in", rows), *shares)
    sets = [{id_.split("-")[0] for id_ in read_table(tmp_path / "data" / s / "text")} for s in THREE[1::2]]
    assert sum(map(len, sets)) == 30 and min(map(len, sets)) > 3
    assert "sound files in common" not in capsys.readouterr().out


def test_a_speaker_is_the_same_however_accents_are_written_and_nan_is_nothing(tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    rows = [{**ROWS[0], "speaker": "Jos\u00e9"}, {**ROWS[0], "id": "v", "speaker": "Jose\u0301"}]
    rows += [{**ROWS[0], "id": "n", "speaker": float("nan"), "text": float("nan")}]
    stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path, [*rows, *ROWS[1:]]))
    assert read_table(tmp_path / "data" / "train" / "utt2spk") == {"u0": "José", "v": "José", "n": "n"}
    assert read_table(tmp_path / "data" / "train" / "text")["n"] == ""
    assert "1 of 5 utterances have an empty transcript" in capsys.readouterr().out


def resolve(given, found, sets=("train", "dev", ["dev", "test"]), **more):
    takes = Splits(*sets, given, **more).resolve(dict.fromkeys(found, "a place"))
    return {name: [(t.split, round(t.low, 3), round(min(t.high, 1), 3)) for t in of] for name, of in takes.items()}


def test_sets_take_the_splits_of_their_names_or_those_that_they_are_told_to():
    whole = {name: [(name, 0, 1)] for name in ("train", "dev", "test")}
    assert resolve("", ["train", "dev", "test", "other"]) == whole
    assert resolve("", ["training", "validation", "test"])["dev"] == [("validation", 0, 1)]
    assert resolve("", ["train", "validation", "dev", "test"])["dev"] == [("dev", 0, 1)]
    assert resolve("train=a,b dev=c test=c", ["a", "b", "c"])["train"] == [("a", 0, 1), ("b", 0, 1)]
    taken = resolve("dev=train:0.1", ["train", "test"])
    assert taken["dev"] == [("train", 0, 0.1)] and taken["train"] == [("train", 0.1, 1)]
    assert resolve("", [""]) == {"train": [("", 0.1, 1)], "dev": [("", 0.05, 0.1)], "test": [("", 0, 0.05)]}
    assert Splits("train_clean_100", "dev", ["dev"]).wants("train-clean-100")
    for given, found, message in (
        ("", ["train", "dev"], 'no split test for the set test; it has: train, dev. .*--splits "test=SPLIT"'),
        ("", ["", "train"], "has no split, and .* has"),
        ("dev=x", ["train", "test"], "no split x for the set dev"),
        ("dev=x", [""], "the corpus names no splits: leave --splits out"),
        ("x=dev", [""], "x is no set of this recipe; it has train, dev, test"),
        ("dev", [""], "must be like"),
        ("dev=train:2", ["train", "test"], "no split train:2"),
        ("dev=a test=b dev=c", ["a", "b"], "the set dev is there twice"),
        ("dev=a:0.7 test=a:0.6", ["a"], "the shares of a are 1.3 together"),
        ("dev=a:0.0", ["a"], "the share of a must be over 0"),
        ('dev="a', ["a"], "--splits: cannot read"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve(given, found)
    with pytest.raises(ValueError, match="names no splits, so that .* one test set"):
        resolve("", [""], ("train_clean_100", "dev", ["dev_clean", "test_clean"]))
    with pytest.raises(ValueError, match="must be fractions"):
        resolve("", [""], dev_share=0.6, test_share=0.5)


def test_speakers_and_audio_in_two_given_splits_are_said(tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    soundfile.write(tmp_path / "b.wav", tone(), 16000)
    rows = [{**ROWS[0], "speaker": "s"}, {**ROWS[1], "speaker": "s", "audio": "b.wav"}, ROWS[2]]
    stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path, rows))
    said = capsys.readouterr().out
    assert "train and dev have 1 speakers and 0 sound files in common" in said
    assert "train and test have 0 speakers and 1 sound files in common" in said
