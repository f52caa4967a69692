"""What cannot be used of a corpus: one line that names it, and nothing left."""

import gzip
import json
import os

import pytest
import soundfile
from corpora import ROWS, Utt, _recording, _supervision, as_kaldi, raw, stage_1, tone, write_table

from espnet_pinch.errors import UserError


def with_row(**changes):
    def make(folder):
        return write_table(folder, [*ROWS, {**ROWS[0], "id": "new", **changes}])

    return make


def kaldi(name, text, remove=None):
    def make(folder):
        rows = [Utt(f"u{i}", "A", "s", split, folder / "a.wav") for split in ("train", "dev", "test") for i in range(2)]
        as_kaldi(rows, folder / "k")
        (folder / "k" / "train" / name).write_text(text.format(folder=folder))
        if remove:
            (folder / "k" / "train" / remove).unlink()
        return ["--kaldi", folder / "k"]

    return make


def lhotse(change):
    def make(folder):
        row = Utt("u0", "A", "s", "train", folder / "a.wav")
        cut = {"id": "c", "start": 0, "duration": 1.5, "channel": 0, "type": "MonoCut", "recording": _recording(row)}
        cut["supervisions"] = [_supervision(row, cut["recording"])]
        change(cut)
        for name in ("train", "dev", "test"):
            (folder / f"cuts_{name}.jsonl").write_text(json.dumps(cut))
        return ["--lhotse", folder]

    return make


def folder_of(option, *names):
    def make(folder):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return [option, folder]

    return make


HEAD = "audio\ttext\tsplit\n"
REFUSED = {
    "columns": (
        raw("path\tsentence\na\tb\n"),
        r"no column audio and no column text; it has: path, sentence. .*--columns",
    ),
    "no such column": (raw(HEAD, options=("--columns", "audio=x")), "t.tsv has no utterance"),
    "column of the user": (raw(HEAD + "a\tb\tc\n", options=("--columns", "audio=x")), "has no column 'x'"),
    "columns option": (raw(HEAD, options=("--columns", "sound=x")), "--columns must be like"),
    "twice the column": (raw("audio\ttext\ttext\n"), "the column 'text' is there twice"),
    "no header": (raw("\n"), "has no header line"),
    "empty": (raw(""), "has no header line"),
    "cells": (raw(HEAD + "a.wav\tA\n"), "line 2 has 2 columns, and the header 3"),
    "quote": (raw(HEAD + 'a.wav\t"A\ttrain\n' * 3), r"t.tsv, line 2: .*\(a quotation mark that is part"),
    "not UTF-8": (raw(HEAD.encode() + b"a.wav\t\xff\ttrain\n"), "t.tsv is not UTF-8 text"),
    "ending": (raw(HEAD, "t.xlsx"), "must end in one of .tsv, .tab, .txt, .csv, .jsonl"),
    "JSON": (raw("{]", "t.jsonl"), "line 1 is not JSON"),
    "JSON list": (raw("[1]", "t.jsonl"), "line 1 is not a JSON object"),
    "cut gzip": (raw(gzip.compress(HEAD.encode())[:-9], "t.tsv.gz"), "damaged or cut short|has no header"),
    "damaged gzip": (
        lambda f: raw(_damaged(gzip.compress("".join(f"{i} {i * i}\n" for i in range(999)).encode())), "t.tsv.gz")(f),
        "damaged or cut short",
    ),
    "pipe": (lambda f: os.mkfifo(f / "t.tsv") or ["--table", f / "t.tsv"], "t.tsv is neither a file nor a folder"),
    "some rows": (
        raw('{"audio": "a.wav", "text": "A", "split": "train"}\n{"audio": "a.wav", "id": "x"}\n', "t.jsonl"),
        "t.jsonl, line 2 has no column text",
    ),
    "one id in two splits of a set": (
        lambda f: [*write_table(f, [*ROWS, {**ROWS[0], "split": "more"}]), "--splits", "train=train,more"],
        "t.jsonl, line .: the id u0 is there twice in the set train, see .*t.jsonl, line .: take one of their splits",
    ),
    "folder": (lambda f: ["--table", f], "is a folder; give the table itself"),
    "twice": (with_row(id="u0"), "line 4: the id u0 is there twice"),
    "made twice": (with_row(id="", audio="b/../a.wav"), "missing|does not exist"),
    "id": (with_row(id="a b"), "line 4: the id 'a b' must be one word"),
    "control": (with_row(text="A\x07"), "line 4: a control character in the transcript"),
    "negative": (with_row(start=-1), "line 4: the start -1 s must be 0 or more"),
    "reversed": (with_row(start=2, end=1), "line 4: the end 1 s must be behind the start 2 s"),
    "no number": (with_row(start="soon"), "line 4: start must be a number, not 'soon'"),
    "not finite": (with_row(end="nan"), "line 4: end must be a number, not 'nan'"),
    "late": (with_row(start=9, end=10), "a.wav is 1.500 s long; no utterance can begin at 9 s"),
    "long": (with_row(start=1, end=10), "a.wav is 1.500 s long; no utterance can end at 10 s"),
    "channel": (with_row(channel=1), "a.wav: has 1 channels, and channel 1 .from 0. is asked for"),
    "no such channel": (with_row(channel=1e30), "line 4: the channel 1e[+]30 must be 0 or more, and under 65536"),
    "half a channel": (with_row(channel=0.5), "line 4: channel must be a whole number, not 0.5"),
    "list of words": (with_row(text=["A", "B"]), r"line 4: text must be a text or a number, not \['A', 'B'\]"),
    "no sample": (with_row(start=1, end=1.00001), "a.wav: there is no sample between 1 and 1.00001 s"),
    "missing": (with_row(audio="no.wav"), "line 4: .*no.wav does not exist"),
    "address": (with_row(audio="https://a.b/c.wav"), "line 4: the audio .* is an address"),
    "no audio": (with_row(audio=""), "line 4 names no audio"),
    "no sound": (with_row(audio="t.jsonl"), "line 4: .*t.jsonl: Format not recognised"),
    "some splits": (with_row(split=""), "line 4 has no split, and .* has"),
    "command": (
        kaldi("wav.scp", "u0 cat {folder}/a.wav |\nu1 x\n"),
        r"u0 is a command \('cat .*\|'\); none is run here",
    ),
    "no utt2spk": (kaldi("text", "u0 A\nu1 B\n", "utt2spk"), "train has no file utt2spk; where speakers are not known"),
    "ids": (kaldi("text", "u0 A\n"), "train/text and wav.scp differ in their ids: u1"),
    "order": (kaldi("text", "u1 A\nu0 A\n"), r"train/text, line 2: u0 is not sorted \(LC_ALL=C sort"),
    "twice in Kaldi": (kaldi("text", "u0 A\nu0 A\n"), "train/text, line 2: u0 is there twice"),
    "channel of a segment": (kaldi("segments", "u0 u0 0 1 x\nu1 u1 0 1\n"), r"perhaps a channel \(0, 1 or A, B\), not"),
    "no path": (kaldi("wav.scp", "u0 {folder}/a.wav\nu1\n"), "wav.scp: u1 has no path"),
    "segment": (kaldi("segments", "u0 u0 1\nu1 u1 0 1\n"), "utterance u0 must have a recording, a start and an end"),
    "recording": (
        kaldi("segments", "u0 u0 0 1\nu1 x 0 1\n"),
        "utterance u1 is of the recording x, which wav.scp lacks",
    ),
    "no dirs": (folder_of("--kaldi", "x"), "has no data directories: no SET/wav.scp"),
    "no data set": (folder_of("--hf", "x"), "has neither clips/ and train.tsv, nor metadata.csv"),
    "parquet": (folder_of("--hf", "data/train.parquet"), "train.parquet is Parquet: load it with the library datasets"),
    "other splits": (
        folder_of("--hf", "clips/x", "other.tsv"),
        "has no utterance for the sets train, dev, test; it has the ",
    ),
    "no manifests": (folder_of("--lhotse", "x"), "has no manifests"),
    "half manifests": (folder_of("--lhotse", "recordings_train.jsonl"), "has no supervisions beside it"),
    "lhotse command": (lhotse(lambda c: c["recording"]["sources"][0].update(type="command")), "of the type 'command'"),
    "lhotse transforms": (lhotse(lambda c: c["recording"].update(transforms=[{"name": "Speed"}])), "is changed while"),
    "lhotse channels": (
        lhotse(lambda c: c["recording"]["sources"][0].update(channels=[0, 1, 2]) or c.update(_channels([0, 1]))),
        "is of 2 channels of 3: give one, or all of them",
    ),
    "lhotse address": (
        lhotse(lambda c: c["recording"]["sources"][0].update(source="http://x/a.wav")),
        "the audio http://x/a.wav is an address",
    ),
    "lhotse columns": (lambda f: [*lhotse(lambda c: None)(f), "--columns", "text=x"], "has no columns to name"),
    "lhotse cut": (lhotse(lambda c: c.update(type="MixedCut")), "a cut of the type 'MixedCut' has no recording"),
    "lhotse field": (lhotse(lambda c: c["recording"].pop("sources")), "is not a cut of lhotse, with its recording"),
    "lhotse time": (lhotse(lambda c: c.update(start="soon")), "is not a cut of lhotse, .*'soon'"),
    "lhotse text": (
        lhotse(lambda c: c["supervisions"][0].update(text=["A"])),
        "line 1: text must be a text or a number",
    ),
    "gone": (lambda f: ["--table", f / "gone.tsv"], "--table: .*gone.tsv does not exist"),
    "split_by": (raw(HEAD, options=("--split_by", "x")), "--split_by must be speaker or utterance, not 'x'"),
    "share": (raw(HEAD, options=("--dev_share", "x")), "--dev_share must be a fraction"),
    "few speakers": (
        raw("audio\ttext\tspeaker\n" + "a.wav\tA\ts1\n"),
        "the set dev is empty: the corpus has 1 speakers, and the share of dev holds none of them. Raise --dev_share",
    ),
}


def _channels(numbers):
    return {"channel": numbers, "supervisions": [{"id": "u", "start": 0, "duration": 1, "channel": numbers}]}


def _damaged(data):
    return data[:40] + b"\xff" * 70 + data[110:]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, name):
    make, message = REFUSED[name]
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    options = make(tmp_path)
    with pytest.raises((OSError, UserError), match=message):
        stage_1(monkeypatch, tmp_path / "data", *options)
    assert not list((tmp_path / "data").glob("*/wav.scp"))
    assert not [p for p in (tmp_path / "data").rglob("*") if p.name.startswith(".") or p.suffix == ".ark"]


def test_all_missing_files_are_counted_and_the_first_is_named(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    rows = [*ROWS, *({**ROWS[0], "id": f"x{i}", "audio": f"no{i}.wav"} for i in range(7))]
    with pytest.raises(ValueError, match=r"t.jsonl, line 4: .*no0.wav does not exist \(and 6 more in .*t.jsonl\)"):
        stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path, rows))
