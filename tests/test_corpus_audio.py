"""The audio of a corpus: formats, channels, segments, archives, and what a kill leaves."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
from corpora import THREE, contents, in_all, run, stage_1, tone, write_table

from espnet_pinch.bin import check_data, cut_corpus, read_corpus
from espnet_pinch.corpus import audio
from espnet_pinch.data.audio import as_float, read_audio
from espnet_pinch.data.kaldi_dir import read_data_dir, read_table
from espnet_pinch.errors import UserError
from espnet_pinch.explain import explain

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
