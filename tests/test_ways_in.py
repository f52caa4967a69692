"""A corpus by every way in: the same data as through LibriSpeech's layout, whatever the files; and what is refused."""

import csv
import dataclasses
import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch

from espnet_pinch.bin import (
    asr_train,
    check_data,
    cut_corpus,
    fetch_upstream,
    prepare_dump,
    prepare_librispeech,
    read_corpus,
)
from espnet_pinch.corpus import audio
from espnet_pinch.corpus.splits import Splits, point
from espnet_pinch.corpus.way import Asked, all_ways
from espnet_pinch.data.audio import as_float, read_audio
from espnet_pinch.data.kaldi_dir import read_data_dir, read_table
from espnet_pinch.errors import UserError
from espnet_pinch.explain import explain

ROOT = Path(__file__).parents[1]
SUBSETS = ("train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other")
SETS = ["--train_set", "train_clean_100", "--valid_set", "dev"]
SETS += ["--test_sets", "dev_clean", "dev_other", "test_clean", "test_other", "--splits", "dev=dev_clean,dev_other"]
WORDS = ("ONE TWO", "THREE", "TWO ONE", "THREE TWO")


@dataclasses.dataclass
class Utt:
    id: str
    text: str
    speaker: str
    split: str
    audio: Path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A tiny corpus in LibriSpeech's layout: noise."""
    root = tmp_path_factory.mktemp("a corpus") / "LibriSpeech"
    rng = np.random.default_rng(0)
    for number, subset in enumerate(SUBSETS):
        folder = root / subset / f"{number}" / "7"
        folder.mkdir(parents=True)
        lines = []
        for i in range(3):
            samples = rng.normal(0, 0.1, 16000 + 160 * i + number)
            soundfile.write(folder / f"{number}-7-{i}.flac", samples, 16000, subtype="PCM_16")
            lines.append(f"{number}-7-{i} {WORDS[(i + number) % 4]}\n")
        (folder / f"{number}-7.trans.txt").write_text("".join(lines))
    return root.parent


def utterances(corpus: Path) -> list[Utt]:
    found = []
    for path in sorted(corpus.rglob("*.trans.txt")):
        for id_, text in read_table(path).items():
            split = path.relative_to(corpus).parts[1].replace("-", "_")
            found.append(Utt(id_, text, id_.rpartition("-")[0], split, path.with_name(f"{id_}.flac")))
    return found


# ---- The corpus in the form of each way


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


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    """What LibriSpeech's own layout gives."""
    data = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, prepare_librispeech, "--corpus", corpus, "--out", data)
        run(patch, check_data, "--data", data, "--sets", *(s.replace("-", "_") for s in SUBSETS), "dev")
    return data


def contents(data: Path) -> dict:
    """Of every set its utterances, with the samples in the place of the audio."""
    return {
        path.parent.name: [
            (u.id, u.text, u.speaker, u.samples, u.rate, read_audio(u.audio).tobytes())
            for u in read_data_dir(path.parent)
        ]
        for path in data.glob("*/wav.scp")
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_corpus_is_the_same_by_every_way_in(corpus, expected, tmp_path, monkeypatch, form):
    options = form(utterances(corpus), tmp_path / "in")
    prepare(monkeypatch, tmp_path / "data", *options)
    assert contents(tmp_path / "data") == contents(expected)
    if form in (as_kaldi, as_tsv, as_lhotse, as_cuts):  # whole files stay where they are
        for name in ("dev", "test_other"):
            assert (tmp_path / "data" / name / "wav.scp").read_text() == (expected / name / "wav.scp").read_text()
        assert not list((tmp_path / "data" / "audio").glob("*.ark"))
    left = [p for p in (tmp_path / "data").rglob("*") if p.name.startswith(".")]
    assert not left


def test_the_dump_is_the_same_by_every_way_in(corpus, expected, tmp_path, monkeypatch, ctc_folder):
    upstream = ctc_folder(tmp_path / "upstream", ["<pad>", "<s>", "</s>", "<unk>", "|", *"ehnortw"])
    options = as_segments(utterances(corpus), tmp_path / "in")
    prepare(monkeypatch, tmp_path / "data", *options)
    dumps = []
    for data, packing in ((expected, "flac"), (tmp_path / "data", "flac"), (expected, "flac.ark")):
        out = tmp_path / f"dump{len(dumps)}"
        more = ("--upstream", upstream, "--out", out, "--audio_format", packing, "--unknown_characters", "drop")
        run(monkeypatch, prepare_dump, "--data", data, *more, *SETS[: SETS.index("--splits")])
        dumps.append(out)
        assert (out / "audio_type").read_text() == ("sound\n" if out == dumps[0] else "kaldi_ark\n")
    tokens = [(out / "token_list" / "char" / "tokens.txt").read_text() for out in dumps]
    assert contents(dumps[0]) == contents(dumps[1]) == contents(dumps[2]) and len(set(tokens)) == 1
    # an archive that stage 1 has made is not copied
    assert "/data/audio/" in (dumps[1] / "dev" / "wav.scp").read_text()


@pytest.mark.slow
def test_trained_weights_are_bitwise_the_same_by_every_way_in(corpus, expected, tmp_path, monkeypatch):
    run(monkeypatch, fetch_upstream, "--upstream", "micro", "--out", tmp_path / "micro")

    def trained(data: Path) -> dict:
        dump = data.parent / f"dump of {data.name}"
        sets = SETS[: SETS.index("--splits")]
        run(monkeypatch, prepare_dump, "--data", data, "--upstream", tmp_path / "micro", "--out", dump, *sets)
        options = ["--config", ROOT / "conf" / "micro_baseline.yaml", "--output_dir", data / "exp", "--max_epoch", 1]
        options += ["--token_list", dump / "token_list" / "char" / "tokens.txt"]
        options += ["--frontend_conf", f"upstream={tmp_path / 'micro'}"]
        sound = (dump / "audio_type").read_text().strip()
        for mode, name in (("train", "train_clean_100"), ("valid", "dev")):
            options += [f"--{mode}_data_path_and_name_and_type", f"{dump / name}/wav.scp,speech,{sound}"]
            options += [f"--{mode}_data_path_and_name_and_type", f"{dump / name}/text,text,text"]
            options += [f"--{mode}_shape_file", dump / name / "utt2num_samples"]
        asr_train.main([str(option) for option in options])
        return torch.load(data / "exp" / "1epoch.pth")

    first = trained(expected)
    for form in FORMS:
        prepare(monkeypatch, tmp_path / form.__name__, *form(utterances(corpus), tmp_path / f"in {form.__name__}"))
        weights = trained(tmp_path / form.__name__)
        assert weights.keys() == first.keys(), form
        assert all(torch.equal(value, first[name]) for name, value in weights.items()), form


# ---- Audio

FORMATS = [
    ("8k.wav", 8000, 2, {"subtype": "PCM_16"}),
    ("24.wav", 16000, 1, {"subtype": "PCM_24"}),
    ("f.wav", 48000, 3, {"subtype": "FLOAT"}),
    ("a.mp3", 44100, 2, {}),
    ("a.ogg", 22050, 1, {}),
    ("a.opus", 48000, 1, {"format": "OGG", "subtype": "OPUS"}),
    ("a.aiff", 11025, 1, {}),
    ("a.flac", 96000, 1, {"subtype": "PCM_24"}),
]


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


def test_audio_of_any_format_becomes_16_khz_mono(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    rows = []
    for name, rate, channels, how in FORMATS:
        soundfile.write(tmp_path / "in" / name, np.stack([tone(rate=rate)] * channels, 1), rate, **how)
        rows.append({"audio": name, "id": name})
    stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path / "in", in_all(rows)))
    found = {u.id: u for u in read_data_dir(tmp_path / "data" / "train")}
    assert set(found) == {name for name, *_ in FORMATS}
    for name, u in found.items():
        samples = read_audio(u.audio)
        assert abs(len(samples) / 16000 - 1.5) < 0.06 and len(samples) == u.samples  # encoders add some at the ends
        spectrum = np.abs(np.fft.rfft(samples[4000:20000]))
        assert spectrum.argmax() == 440 and 0.45 < np.abs(samples[4000:20000]).max() < 0.55, name
    assert found["24.wav"].audio == str(tmp_path / "in" / "24.wav") and ".ark:" in found["8k.wav"].audio
    assert "audio: 1 files stay where they are, 7 utterances are in" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg")
def test_mpeg_4_is_read_by_ffmpeg(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", np.stack([tone(), tone(pitch=880)], 1), 16000)
    subprocess.run(["ffmpeg", "-i", "a.wav", "a.m4a"], cwd=tmp_path / "in", check=True, capture_output=True)
    rows = [{"audio": "a.m4a", "id": "a"}, {"audio": "a.m4a", "id": "right", "channel": 1}]
    stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path / "in", in_all(rows)))
    right = read_audio(read_data_dir(tmp_path / "data" / "train")[1].audio)
    assert np.abs(np.fft.rfft(right[:16000])).argmax() == 880


def test_segments_may_overlap_and_channels_are_mixed_or_taken(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    samples = (rng.normal(0, 0.1, (400_000, 2)) * 32768).round().astype(np.int16)  # several blocks of the reader
    soundfile.write(tmp_path / "in" / "talk.wav", samples, 16000)
    times = {"a": (0.5, 10.0), "b": (9.0, 24.5), "c": (9.0, 9.25), "end": (20.0, None), "over": (24.0, 25.4)}
    rows = [{"audio": "talk.wav", "id": name, "start": a, "end": b} for name, (a, b) in times.items()]
    rows += [{"audio": "talk.wav", "id": "left", "start": 1, "end": 2, "channel": 0}]
    rows += [{"audio": "talk.wav", "id": "all", "channel": 1}]
    stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path / "in", in_all(rows)))
    found = {u.id: read_audio(u.audio) for u in read_data_dir(tmp_path / "data" / "train")}
    mixed = samples.astype(np.float32).mean(1) / 32768
    for name, (start, end) in times.items():
        wanted = mixed[int(start * 16000) : int(end * 16000) if end else None]
        assert found[name].shape == wanted.shape and np.abs(found[name] - wanted).max() <= 0.5 / 32768
    assert np.array_equal(found["left"], samples[16000:32000, 0] / np.float32(32768))
    assert np.array_equal(found["all"], samples[:, 1] / np.float32(32768))
    for folder in THREE[1::2]:
        (tmp_path / "k" / folder).mkdir(parents=True)
        names, segments = ("wav.scp", "segments", "text", "utt2spk"), "a r 1 2 1\nb r 1 2 A\nc r 1 2\n"
        lines = (f"r {tmp_path}/in/talk.wav\n", segments, "a A\nb A\nc A\n", "a s\nb s\nc s\n")
        for name, text in zip(names, lines):
            (tmp_path / "k" / folder / name).write_text(text)
    stage_1(monkeypatch, tmp_path / "kaldi", "--kaldi", tmp_path / "k")
    found = {u.id: read_audio(u.audio) for u in read_data_dir(tmp_path / "kaldi" / "train")}
    for name, channel in (("a", 1), ("b", 0)):
        assert np.array_equal(found[name], samples[16000:32000, channel] / np.float32(32768))
    assert np.abs(found["c"] - mixed[16000:32000]).max() <= 0.5 / 32768
    assert "1 utterances ended behind their recording" in capsys.readouterr().out


def test_samples_in_archives_are_of_any_width_and_no_numbers_are_refused(tmp_path, monkeypatch):
    loud = np.round(tone() * 127) / 128
    floats = {"write_function": "soundfile", "write_kwargs": {"format": "wav", "subtype": "FLOAT"}}
    kinds = {"u1": (loud * 128 + 128, {}), "i2": (loud * 32768, {}), "f4": (loud, floats)}
    rows = []
    for kind, (samples, how) in kinds.items():
        of_it = {"u": (16000, samples.astype(kind))}
        kaldiio.save_ark(str(tmp_path / f"{kind}.ark"), of_it, scp=str(tmp_path / kind), **how)
        rows.append({"id": kind, "audio": (tmp_path / kind).read_text().split()[1]})
    stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path / "in", in_all(rows)))
    for u in read_data_dir(tmp_path / "data" / "train"):
        assert np.array_equal(read_audio(u.audio), loud.astype(np.float32)), u.id
    assert np.array_equal(as_float(np.array([-(2**31), 2**30], "i4")), [-1.0, 0.5])
    kaldiio.save_ark(str(tmp_path / "f4.ark"), {"u": (16000, np.array([0.0, np.nan], "f4"))}, **floats)
    with pytest.raises(UserError, match="f4.ark:.* holds samples that are no numbers"):
        stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path / "in", in_all(rows)))


def test_an_archive_that_is_gone_is_named_and_made_again(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", tone(0.2, 8000), 8000)
    options = write_table(tmp_path / "in", in_all([{"audio": "a.wav", "id": "u"}]))
    stage_1(monkeypatch, tmp_path / "data", *options)
    [archive] = (tmp_path / "data" / "audio").glob("*.ark")
    archive.unlink()
    with pytest.raises(
        UserError, match=f"{archive} is gone: remove {tmp_path}/data/prepare.done and run stage 1 again"
    ):
        run(monkeypatch, check_data, "--data", tmp_path / "data", "--sets", "train")
    stage_1(monkeypatch, tmp_path / "data", *options)
    assert archive.is_file()


def test_an_archive_that_cannot_be_written_is_not_the_fault_of_a_sound_file(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", tone(0.2, 8000), 8000)

    def refuse(*_):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(audio, "append", refuse)
    with pytest.raises(OSError) as error:
        stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path / "in", in_all([{"audio": "a.wav", "id": "u"}])))
    assert (
        explain(error.value) == f"{tmp_path}/data cannot be written: the file system does not allow a file of that size"
    )


def test_what_was_made_before_a_kill_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MEAN", 1)
    (tmp_path / "in").mkdir()
    for i in range(6):
        soundfile.write(tmp_path / "in" / f"{i}.wav", tone(0.2 + i / 10, 8000), 8000)
    options = write_table(tmp_path / "in", in_all([{"audio": f"{i}.wav", "id": f"u{i}"} for i in range(6)]))
    run(monkeypatch, read_corpus, *options, *THREE, "--out", tmp_path / "data")
    cut, opened = audio._cut, []

    def killed(recording, way):
        opened.append(Path(recording.audio).name)
        if len(opened) == 5:
            raise KeyboardInterrupt
        return cut(recording, way)

    monkeypatch.setattr(audio, "_cut", killed)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, cut_corpus, *options, *THREE, "--out", tmp_path / "data", "--nj", 1)
    folder = tmp_path / "data" / "audio"
    assert {p.stem for p in folder.glob("*.ark")} == {p.stem for p in folder.glob("*.json")}  # nothing half-written
    done, before = len(list(folder.glob("*.ark"))), list(opened)
    assert done >= 1 and not (tmp_path / "data" / "train").exists()
    run(monkeypatch, cut_corpus, *options, *THREE, "--out", tmp_path / "data", "--nj", 1)
    again = opened[len(before) :]
    assert len(again) == 6 - done and before[4] in again and not set(again) & set(before[:4])
    first = contents(tmp_path / "data") if (tmp_path / "data" / "train" / "utt2dur").exists() else None
    # another file alone is made again where it has changed, and what belongs to nothing goes
    soundfile.write(tmp_path / "in" / "5.wav", tone(0.3, 8000), 8000)
    opened.clear()
    opened.extend([""] * 10)
    run(monkeypatch, cut_corpus, *options, *THREE, "--out", tmp_path / "data", "--nj", 2)
    assert opened[10:] == ["5.wav"] and len(list(folder.glob("*.ark"))) == 6 and first is None
    assert read_table(tmp_path / "data" / "train" / "wav.scp").keys() == {f"u{i}" for i in range(6)}


def test_a_large_corpus_has_some_hundred_archives():
    assert [audio._mean(total) for total in (10, 16_000, 17_000, 1_000_000, 10**9)] == [256, 256, 512, 4096, 4096]
    cuts = [audio.Cut(f"{i}.wav", 0.0, audio.WHOLE, audio.ALL) for i in range(20_000)]
    groups = list(audio._shards(cuts, 256))
    assert 60 < len(groups) < 110 and [cut for g in groups for r in g for cut in r.cuts] == cuts
    one_more = list(audio._shards([cuts[0], audio.Cut("0a.wav", 0.0, audio.WHOLE, audio.ALL), *cuts[1:]], 256))
    assert sum(group not in groups for group in one_more) <= 2
    long = [audio.Cut("talk.wav", float(i), i + 1.0, audio.ALL) for i in range(3000)]
    assert [len(group) for group in audio._shards([*long, cuts[1]], 256)] == [1, 1]


# ---- Splits


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


def test_columns_may_have_spaces_in_their_names(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    table = "Audio File\tFull Text\tsplit\n" + "".join(f"a.wav\tA {s}\t{s}\n" for s in THREE[1::2])
    options = raw(table, options=("--columns", "audio='Audio File' \"text=Full Text\""))(tmp_path)
    stage_1(monkeypatch, tmp_path / "data", *options)
    assert list(read_table(tmp_path / "data" / "dev" / "text").values()) == ["A dev"]


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


# ---- What is refused


ROWS = [{"audio": "a.wav", "id": f"u{i}", "text": "A", "split": s} for i, s in enumerate(("train", "dev", "test"))]


def with_row(**changes):
    def make(folder):
        return write_table(folder, [*ROWS, {**ROWS[0], "id": "new", **changes}])

    return make


def raw(text, name="t.tsv", options=()):
    def make(folder):
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return ["--table", folder / name, *options]

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


def test_speakers_and_audio_in_two_given_splits_are_said(tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    soundfile.write(tmp_path / "b.wav", tone(), 16000)
    rows = [{**ROWS[0], "speaker": "s"}, {**ROWS[1], "speaker": "s", "audio": "b.wav"}, ROWS[2]]
    stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path, rows))
    said = capsys.readouterr().out
    assert "train and dev have 1 speakers and 0 sound files in common" in said
    assert "train and test have 0 speakers and 1 sound files in common" in said


def test_odd_ids_texts_and_speakers_are_right(tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "a b.wav", tone(rate=8000), 8000)
    row = {"audio": "a b.wav", "split": "train", "text": "A"}
    rows = [{**row, "id": "../x/y"}, {**row, "speaker": "Ann B"}, {**row, "start": 0.5, "end": 1, "text": ""}]
    rows += [{**row, "id": "nl", "text": " B\r\n\tC  "}, *ROWS[1:]]
    rows = [{**r, "audio": "a b.wav"} for r in rows]
    stage_1(monkeypatch, tmp_path / "data", *write_table(tmp_path, rows))
    texts = {"../x/y": "A", "Ann_B-a_b": "A", "a_b-00000500-00001000": "", "nl": "B C"}
    assert read_table(tmp_path / "data" / "train" / "text") == texts
    said = capsys.readouterr().out
    for line in (
        "1 of 6 utterances have an empty",
        "1 of 6 utterances had tabs",
        "1 of 6 utterances have a speaker with",
    ):
        assert line in said


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError) as error:
        stage_1(monkeypatch, tmp_path / "data", "--hf", tmp_path)
    assert explain(error.value).startswith("the package datasets is not installed: run pip install -e '.[hf]'")


def test_a_data_set_that_names_its_files_is_read_without_its_library_decoding_them(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    soundfile.write(tmp_path / "a.wav", tone(), 16000)
    saved_set(["a.wav", str(tmp_path / "b.wav")], text=["A", "B"]).save_to_disk(str(tmp_path / "paths"))
    rows = list(all_ways()["hf"].rows(Asked(tmp_path / "paths")))
    assert [row.audio for row in rows] == [str(tmp_path / "paths" / "a.wav"), str(tmp_path / "b.wav")]
    held = [
        {"bytes": None, "path": str(tmp_path / "a.wav")},
        {"bytes": (tmp_path / "a.wav").read_bytes(), "path": None},
    ]
    saved_set(held, text=["A", "B"]).save_to_disk(str(tmp_path / "saved"))  # takes the file in
    rows = list(all_ways()["hf"].rows(Asked(tmp_path / "saved")))
    assert [(row.text, row.id, row.recording) for row in rows] == [("A", "", "a.wav"), ("B", "", rows[1].audio)]
    for row in rows:
        with all_ways()["hf"].sound_file(row.audio) as path:
            assert Path(path).read_bytes() == (tmp_path / "a.wav").read_bytes()
        assert all_ways()["hf"].file_of(row.audio) == str(tmp_path / "saved" / "state.json")


def test_labels_that_a_saved_data_set_numbers_are_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    held = saved_set(["a.wav"] * 3, speaker=["s"] * 3)
    held = held.add_column("label", [1, 0, -1]).cast_column("label", datasets.ClassLabel(names=["no", "yes please"]))
    held.save_to_disk(str(tmp_path / "saved"))
    rows = all_ways()["hf"].rows(Asked(tmp_path / "saved", {"text": "label"}))
    assert [row.text for row in rows] == ["yes please", "no", ""]


def test_every_way_in_has_what_help_needs():
    assert list(all_ways()) == ["kaldi", "table", "hf", "lhotse"]
    for way in all_ways().values():
        assert way.summary and way.takes in ("DIR", "FILE") and max(map(len, way.summary.splitlines())) <= 80
