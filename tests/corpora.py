"""Corpora in the form of each way in, and stage 1 of them, for tests."""

import csv
import dataclasses
import gzip
import json
import shutil
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

from espnet_pinch.bin import check_data, cut_corpus, read_corpus
from espnet_pinch.data.audio import read_audio
from espnet_pinch.data.kaldi_dir import read_data_dir

SETS = ["--train_set", "train_clean_100", "--valid_set", "dev"]
SETS += ["--test_sets", "dev_clean", "dev_other", "test_clean", "test_other", "--splits", "dev=dev_clean,dev_other"]


@dataclasses.dataclass
class Utt:
    id: str
    text: str
    speaker: str
    split: str
    audio: Path


def as_kaldi(rows, out):
    for row in rows:
        (out / row.split).mkdir(parents=True, exist_ok=True)
        for name, value in (("wav.scp", row.audio), ("text", row.text), ("utt2spk", row.speaker)):
            with open(out / row.split / name, "a") as file:
                file.write(f"{row.id} {value}\n")
    return ["--kaldi", out]


def as_segments(rows, out):
    """All utterances of a set one after the other in one recording, with noise before each."""
    noise = np.zeros(800)
    for split in dict.fromkeys(row.split for row in rows):
        at, pieces, segments = 0, [], []
        for row in (row for row in rows if row.split == split):
            samples = soundfile.read(row.audio)[0]
            begin, at = at + len(noise), at + len(noise) + len(samples)
            pieces += [noise, samples]
            segments.append(f"{row.id} rec {begin / 16000!r} {at / 16000!r}\n")
        as_kaldi([row for row in rows if row.split == split], out)
        soundfile.write(out / f"{split}.wav", np.concatenate(pieces), 16000, subtype="PCM_16")
        (out / split / "wav.scp").write_text(f"rec {split}.wav\n")
        (out / split / "segments").write_text("".join(segments))
    return ["--kaldi", out]


def as_archives(rows, out, flac=True):
    as_kaldi(rows, out)
    more = {"write_function": "soundfile", "write_kwargs": {"format": "flac", "subtype": "PCM_16"}} if flac else {}
    for split in dict.fromkeys(row.split for row in rows):
        sound = {row.id: (16000, soundfile.read(row.audio, dtype="int16")[0]) for row in rows if row.split == split}
        kaldiio.save_ark(str(out / split / "data.ark"), sound, scp=str(out / split / "wav.scp"), **more)
    return ["--kaldi", out]


def as_wav_archives(rows, out):
    return as_archives(rows, out, flac=False)


def as_tsv(rows, out):
    out.mkdir()
    with open(out / "table.tsv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\r\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["split", "text", "id", "audio", "speaker", "comment"])
        for row in rows:
            writer.writerow([row.split, row.text.replace(" ", "\t\n "), row.id, row.audio, row.speaker, 'a "b"\tc'])
    return ["--table", out / "table.tsv"]


def as_jsonl(rows, out):
    out.mkdir()
    with gzip.open(out / "manifest.jsonl.gz", "wt") as file:
        for row in rows:
            samples, rate = soundfile.read(row.audio)
            longer = out / f"{row.id}.wav"  # and relative to the table
            soundfile.write(longer, np.concatenate([np.zeros(160), samples, np.zeros(16000)]), rate, subtype="PCM_16")
            values = {"audio_filepath": longer.name, "offset": 0.01, "duration": len(samples) / rate, "text": row.text}
            file.write(json.dumps({**values, "id": row.id, "speaker": row.speaker, "split": row.split}) + "\n\n")
    return ["--table", out / "manifest.jsonl.gz", "--columns", "audio=audio_filepath start=offset"]


def as_common_voice(rows, out):
    (out / "clips").mkdir(parents=True)
    for row in rows:
        shutil.copy(row.audio, out / "clips" / f"{row.id}.flac")
        new = not (out / f"{row.split}.tsv").exists()
        with open(out / f"{row.split}.tsv", "a") as file:
            file.write("client_id\tpath\tsentence\tup_votes\n" if new else "")
            file.write(f"{row.speaker}\t{row.id}.flac\t{row.text}\t2\n")
    (out / "validated.tsv").write_text("client_id\tpath\tsentence\tup_votes\nx\tnone.mp3\tNOTHING\t1\n")
    return ["--hf", out]


def as_audiofolder(rows, out):
    for row in rows:
        (out / row.split).mkdir(parents=True, exist_ok=True)
        shutil.copy(row.audio, out / row.split / f"{row.id}.flac")
        new = not (out / row.split / "metadata.csv").exists()
        with open(out / row.split / "metadata.csv", "a") as file:
            file.write("file_name,transcription,speaker_id\n" if new else "")
            file.write(f'{row.id}.flac,"{row.text}",{row.speaker}\n')
    return ["--hf", out]


def _recording(row):
    samples = soundfile.info(row.audio).frames
    source = {"type": "file", "channels": [0], "source": str(row.audio)}
    known = {"sampling_rate": 16000, "num_samples": samples, "duration": samples / 16000, "channel_ids": [0]}
    return {"id": row.id, "sources": [source], **known}


def _supervision(row, recording):
    times = {"start": 0.0, "duration": recording["duration"], "channel": 0}
    return {"id": row.id, "recording_id": row.id, **times, "text": row.text, "speaker": row.speaker, "language": "en"}


def as_lhotse(rows, out):
    out.mkdir()
    for row in rows:
        recording = _recording(row)
        for kind, value in (("recordings", recording), ("supervisions", _supervision(row, recording))):
            with gzip.open(out / f"toy_{kind}_{row.split}.jsonl.gz", "at") as file:
                file.write(json.dumps(value) + "\n")
    return ["--lhotse", out]


def as_cuts(rows, out):
    for row in rows:
        (out / row.split).mkdir(parents=True, exist_ok=True)
        recording = _recording(row)
        cut = {"id": f"{row.id}-9", "start": 0.0, "duration": recording["duration"], "channel": 0, "type": "MonoCut"}
        cut = {**cut, "supervisions": [_supervision(row, recording)], "recording": recording}
        with open(out / row.split / "cuts.jsonl", "a") as file:
            file.write(json.dumps(cut) + "\n")
    return ["--lhotse", out]


def saved_set(audio: list, **texts: list[str]):
    """A data set of the library datasets, made without its encoder."""
    datasets, pa = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    paths = isinstance(audio[0], str)
    features = {"audio": datasets.Value("string") if paths else datasets.Audio(decode=False)}
    features |= {name: datasets.Value("string") for name in texts}
    kind = pa.string() if paths else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"audio": pa.array(audio, kind), **texts})
    table = table.replace_schema_metadata(datasets.Features(features).arrow_schema.metadata)
    return datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint="0123456789abcdef")


def as_saved(rows, out):
    datasets = pytest.importorskip("datasets")
    sets = {}
    for row in rows:
        found = sets.setdefault(row.split, {"audio": [], "sentence": [], "id": [], "client_id": []})
        held = {"bytes": row.audio.read_bytes(), "path": row.audio.name}
        for name, value in (("audio", held), ("sentence", row.text), ("id", row.id), ("client_id", row.speaker)):
            found[name].append(value)
    datasets.DatasetDict({name: saved_set(**values) for name, values in sets.items()}).save_to_disk(str(out))
    return ["--hf", out]


FORMS = [as_kaldi, as_segments, as_archives, as_wav_archives, as_tsv, as_jsonl, as_common_voice, as_audiofolder]
FORMS += [as_lhotse, as_cuts, as_saved]


def run(monkeypatch, program, *arguments):
    monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments)])
    program.main()


def prepare(monkeypatch, data, *options, sets=SETS):
    """Stage 1 of a corpus by a way in."""
    run(monkeypatch, read_corpus, *options, *sets, "--out", data)
    run(monkeypatch, cut_corpus, *options, *sets, "--out", data, "--nj", 2)
    names = sets[sets.index("--test_sets") + 1 :]
    names = (
        [sets[1], sets[3], *(name for name in names[: names.index("--splits")])] if "--splits" in names else sets[1::2]
    )
    run(monkeypatch, check_data, "--data", data, "--sets", *names, "--nj", 2)


def contents(data: Path) -> dict:
    """Of every set its utterances, with the samples in the place of the audio."""
    return {
        path.parent.name: [
            (u.id, u.text, u.speaker, u.samples, u.rate, read_audio(u.audio).tobytes())
            for u in read_data_dir(path.parent)
        ]
        for path in data.glob("*/wav.scp")
    }


def tone(seconds=1.5, rate=16000, pitch=440.0):
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


def write_table(folder: Path, rows: list[dict]) -> list:
    folder.mkdir(exist_ok=True)
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--table", folder / "t.jsonl"]


THREE = ["--train_set", "train", "--valid_set", "dev", "--test_sets", "test"]


def stage_1(monkeypatch, data, *options):
    prepare(monkeypatch, data, *options, sets=THREE)


def in_all(rows):
    """The rows in the training set, and one of them in each of the other two."""
    rows = [{"split": "train", "text": "A", **row} for row in rows]
    return rows + [{**rows[0], "split": name} for name in ("dev", "test")]


ROWS = [{"audio": "a.wav", "id": f"u{i}", "text": "A", "split": s} for i, s in enumerate(("train", "dev", "test"))]


def raw(text, name="t.tsv", options=()):
    def make(folder):
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return ["--table", folder / name, *options]

    return make
