"""Data preparation: the mini corpus, LibriSpeech's layout and what can be wrong with it, data directories, tokens."""

import dataclasses
import hashlib
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile

from espnet_pinch.data.audio import read_audio
from espnet_pinch.data.dump import Limits, check_test_set, pack_audio, prepare_training_set
from espnet_pinch.data.kaldi_dir import Utterance, read_data_dir, write_data_dir
from espnet_pinch.data.librispeech import SUBSETS, find_root, read_subset
from espnet_pinch.data.spelling import Spelling, UnknownCharacters
from espnet_pinch.data.tokens import frames_needed, tokens_of_texts


def make_chapter(root, subset="dev-clean", texts=("ONE TWO", "THREE"), rate=16000, seconds=0.5):
    folder = root / subset / "19" / "198"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, _ in enumerate(texts):
        soundfile.write(folder / f"19-198-{i:04d}.flac", rng.normal(0, 0.1, int(rate * seconds)), rate)
    lines = [f"19-198-{i:04d} {text}\n" for i, text in enumerate(texts)]
    (folder / "19-198.trans.txt").write_text("".join(lines))
    return folder


def test_a_subset_is_read(tmp_path):
    make_chapter(tmp_path)
    rows = read_subset(tmp_path, "dev-clean")
    assert [(u.id, u.text, u.speaker, u.samples) for u in rows] == [
        ("19-198-0000", "ONE TWO", "19-198", 8000),
        ("19-198-0001", "THREE", "19-198", 8000),
    ]


def break_truncated(folder):
    data = (folder / "19-198-0001.flac").read_bytes()
    (folder / "19-198-0001.flac").write_bytes(data[: len(data) // 2])


def break_rate(folder):
    soundfile.write(folder / "19-198-0001.flac", np.zeros(4000), 8000)


def break_stereo(folder):
    soundfile.write(folder / "19-198-0001.flac", np.zeros((4000, 2)), 16000)


def break_text(folder, text):
    (folder / "19-198.trans.txt").write_text(text)


@pytest.mark.parametrize(
    "damage, message",
    [
        (break_truncated, "19-198-0001.flac.*cut short"),
        (break_rate, "has 8000 Hz"),
        (break_stereo, "2 channels"),
        (lambda f: (f / "19-198-0001.flac").unlink(), "utterance 19-198-0001 has no audio"),
        (lambda f: (f / "19-198-0001.flac").write_bytes(b""), "cannot be read"),
        (lambda f: shutil.copy(f / "19-198-0001.flac", f / "19-198-0002.flac"), "0002.flac has no transcript"),
        (lambda f: break_text(f, "19-198-0000 ONE\n19-198-0001 \n"), "19-198-0001 has an empty transcript"),
        (lambda f: break_text(f, "19-198-0000 ONE\n19-198-0000 ONE\n"), "19-198-0000 is there twice"),
        (lambda f: break_text(f, "19-198-0000 ONE\n\n19-198-0001 A\n"), "line 2 is empty"),
        (lambda f: (f / "19-198.trans.txt").write_bytes(b"19-198-0000 \xff\n"), "not UTF-8"),
    ],
)
def test_a_damaged_subset_is_refused_by_name(tmp_path, damage, message):
    damage(make_chapter(tmp_path))
    with pytest.raises(ValueError, match=message):
        read_subset(tmp_path, "dev-clean")


def test_a_missing_subset_is_named(tmp_path):
    make_chapter(tmp_path / "LibriSpeech")
    with pytest.raises(FileNotFoundError, match="lacks train-clean-100, dev-other, test-clean, test-other"):
        find_root(tmp_path)
    assert find_root(tmp_path, ["dev-clean"]) == tmp_path / "LibriSpeech"
    assert find_root(tmp_path / "LibriSpeech", ["dev-clean"]) == tmp_path / "LibriSpeech"


def utterance(id_="a-1-0", text="A B", samples=16000, **more):
    return Utterance(id_, f"/audio/{id_}.flac", text, "a-1", samples, **more)


def test_a_data_directory_comes_back_as_written(tmp_path):
    rows = [utterance("b-1-0"), utterance("a-1-0"), utterance("B-1-0", "X Y Z")]
    write_data_dir(tmp_path / "d", rows)
    assert read_data_dir(tmp_path / "d") == sorted(rows, key=lambda u: u.id)
    assert (tmp_path / "d" / "spk2utt").read_text() == "a-1 B-1-0 a-1-0 b-1-0\n"
    assert (tmp_path / "d" / "utt2dur").read_text().startswith("B-1-0 1.0\n")
    write_data_dir(tmp_path / "d", rows[:1])
    assert len(read_data_dir(tmp_path / "d")) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_data_directory_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a-1-0 is there twice"):
        write_data_dir(tmp_path / "d", [utterance(), utterance()])
    with pytest.raises(ValueError, match="no utterance"):
        write_data_dir(tmp_path / "d", [])
    assert not list(tmp_path.iterdir())
    write_data_dir(tmp_path / "d", [utterance("a-1-0"), utterance("a-1-1")])
    (tmp_path / "d" / "text").write_text("a-1-0 A\n")
    with pytest.raises(ValueError, match="text and wav.scp differ in their ids: a-1-1"):
        read_data_dir(tmp_path / "d")


def test_tokens_are_the_special_ones_and_characters_by_frequency():
    assert tokens_of_texts(["BAA A", "B'"]) == ["<blank>", "<s>", "<sos/eos>", "<unk>", "<space>", "A", "B", "'"]


def test_ctc_needs_a_frame_for_each_character_and_a_blank_between_equal_ones():
    assert frames_needed("HELLO") == 6


DROP = UnknownCharacters("drop")


def test_training_sets_lose_what_ctc_cannot_align_and_test_sets_nothing():
    limits = Limits(0.1, 2.0, lambda samples: samples // 320)
    rows = [
        utterance("ok"),
        utterance("short", samples=1000),
        utterance("long", samples=40000),
        utterance("dense", "A" * 40),
    ]
    spelling = Spelling(["A", "B"])
    dropped = Counter()
    kept = prepare_training_set(rows, spelling, limits, UnknownCharacters(), dropped)
    assert [u.id for u in kept] == ["ok"]
    assert dropped == {"too short": 1, "too long": 1, "more tokens than frames": 1}
    assert list(check_test_set(rows, limits, "test")) == rows
    with pytest.raises(ValueError, match="too few for one frame"):
        list(check_test_set([utterance(samples=50)], limits, "test"))
    with pytest.raises(ValueError, match="no utterance of the set can be used: 1 too short; the first is short"):
        list(prepare_training_set([utterance("short", samples=800)], spelling, limits, UnknownCharacters(), Counter()))
    dropped = Counter()
    kept = prepare_training_set([utterance("ok", "A C"), utterance("c", "CC")], spelling, limits, DROP, dropped)
    assert [(u.id, u.text) for u in kept] == [("ok", "A")] and dropped == {"without a character of the vocabulary": 1}


def test_packed_audio_is_the_same_audio(tmp_path):
    folder = make_chapter(tmp_path)
    rows = read_subset(tmp_path, "dev-clean")
    packed = list(pack_audio(rows, tmp_path / "packed"))
    assert all(".ark:" in u.audio for u in packed)
    for before, after in zip(rows, packed):
        assert np.array_equal(read_audio(before.audio), read_audio(after.audio))
        assert dataclasses.replace(after, audio=before.audio) == before
    (folder / "19-198-0000.flac").write_bytes(b"x")
    with pytest.raises(OSError, match="cannot be read"):
        read_audio(rows[0].audio)


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE"])
def test_packed_fractions_are_the_same_audio_and_what_is_clipped_is_said(tmp_path, capsys, kind):
    samples = np.round(0.4 * np.sin(np.arange(1600)) * 32768) / 32768
    samples[:3] = 1.5
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype=kind)
    [packed] = pack_audio([Utterance("a", str(tmp_path / "a.wav"), "A", "s", 1600)], tmp_path / "packed")
    assert np.array_equal(read_audio(packed.audio)[3:], samples[3:].astype("f"))
    assert np.all(read_audio(packed.audio)[:3] > 0.999)
    assert "packed: 3 samples were too large for 16 bits: clipped" in capsys.readouterr().out


def test_the_mini_corpus_has_librispeechs_layout_and_is_the_same_every_time(tmp_path):
    digests = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "espnet_pinch.bin.make_mini_corpus", "--scale", "0.02"]
        subprocess.run([*command, "--out", str(tmp_path / name)], check=True, capture_output=True)
        root = find_root(tmp_path / name)
        files = sorted(p for p in root.rglob("*") if p.is_file())
        digests.append([(p.relative_to(root), hashlib.md5(p.read_bytes()).digest()) for p in files])
    assert digests[0] == digests[1]
    speakers = {subset: {u.speaker.split("-")[0] for u in read_subset(root, subset)} for subset in SUBSETS}
    assert speakers["test-clean"] <= speakers["train-clean-100"]
    assert not speakers["test-other"] & speakers["train-clean-100"]
