"""A recipe of one's own: what setup.sh makes runs, and the check of its data says what does not keep the contract."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_recipe import ROOT, recipe  # noqa: F401  (a fixture)

from espnet_pinch.bin import check_data, cut_corpus, read_corpus
from espnet_pinch.data.check_dir import check_data_dir
from espnet_pinch.data.kaldi_dir import read_data_dir, read_table

WORDS = ("ONE TWO", "THREE", "TWO ONE")


def write_set(folder: Path, name: str, count: int = 4) -> Path:
    """A data directory as a user has it: three files, and the sound that they name."""
    lines: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": []}
    for i in range(count):
        audio = folder / "audio" / f"{name} {i}.wav"
        audio.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(audio, np.random.default_rng(i).normal(0, 0.1, 16000 + i), 16000)
        for file, value in (("wav.scp", audio), ("text", WORDS[i % 3]), ("utt2spk", "ann")):
            lines[file].append(f"ann-{name}-{i} {value}\n")
    (folder / name).mkdir(exist_ok=True)
    for file, rows in lines.items():
        (folder / name / file).write_text("".join(rows))
    return folder / name


@pytest.mark.parametrize("last", ["2", pytest.param("6", marks=pytest.mark.slow)])
def test_a_recipe_that_setup_makes_trains_on_kaldi_directories(recipe, tmp_path, last):  # noqa: F811
    root = recipe.parents[1]
    recipe_name = f"toy{last}"
    made = subprocess.run(["egs/TEMPLATE/setup.sh", recipe_name], cwd=root, capture_output=True, text=True)
    toy = root / "egs" / recipe_name
    assert made.returncode == 0 and f"on {recipe_name};" in (toy / "run.sh").read_text(), made.stderr
    for name in ("train", "dev", "test"):
        write_set(tmp_path, name)

    def run(*options):
        short = ("--asr_args", "--max_epoch 1 --batch_size 2", "--baseline_args", "--max_epoch 1 --batch_size 2")
        command = ["./run.sh", "--upstream", "micro", "--python", sys.executable, *short, *options]
        return subprocess.run(
            command, cwd=toy, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    done = run("--stop_stage", "1")
    asked = (
        "error: give a corpus: --kaldi, --table, --hf, --lhotse (see --help), or write local/data.sh for your corpus\n"
    )
    assert (done.returncode, done.stderr) == (1, asked)
    done = run("--kaldi", str(tmp_path), "--stop_stage", last)
    assert done.returncode == 0, done.stdout + done.stderr
    if last == "6":
        [results] = toy.glob("exp/test_a_recipe*/asr_micro_pinch_*/results.json")
        words = {name: score["words"] for name, score in json.loads(results.read_text())["wer"].items()}
        assert words == dict(dev=7, test=7)
    # a file that has changed since is noticed
    soundfile.write(tmp_path / "audio" / "test 0.wav", np.zeros((8000, 2)), 8000)
    done = run("--kaldi", str(tmp_path), "--stage", "1", "--stop_stage", "1")
    assert done.returncode == 0 and "1 utterances are in" in done.stdout
    assert ".ark:" in next(toy.glob("data/*/test/wav.scp")).read_text()
    (tmp_path / "audio" / "test 0.wav").write_text("no sound")
    done = run("--kaldi", str(tmp_path), "--stage", "1", "--stop_stage", "1")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "utterance ann-test-0: " in done.stderr and "Format not recognised" in done.stderr
    for more, line in {
        ("--test_sets", " "): "error: run.sh must set test_sets, or give --test_sets",
        ("--kaldi", str(toy)): f"error: {toy} has no data directories",
        ("--table", str(toy)): "error: give the corpus by one option, not by several: --kaldi, --table",
        ("--splits", "x=y"): "error: --splits: x is no set of this recipe; it has train, dev, test",
    }.items():
        done = run("--kaldi", str(tmp_path), *more, "--stage", "1")
        assert done.returncode == 1 and done.stderr.startswith(line) and len(done.stderr.splitlines()) == 1
    (toy / "local" / "data.sh").rename(toy / "local" / "gone")
    assert run().stderr == f"error: local/data.sh is missing: egs/TEMPLATE/setup.sh {recipe_name} makes one\n"
    (toy / "local" / "gone").rename(toy / "local" / "data.sh")
    help_text = run("--help").stdout
    for option in ("--kaldi DIR", "--table FILE", "--hf DIR", "--lhotse DIR", "--splits ", "[wav2vec2_base]"):
        assert option in help_text


def test_setup_keeps_what_is_there_and_refuses_a_path(recipe):  # noqa: F811
    root = recipe.parents[1]
    before = (recipe / "run.sh").read_bytes(), (recipe / "local" / "data.sh").read_bytes()
    (recipe / "local" / "sweep.sh").unlink()
    assert subprocess.run(["egs/TEMPLATE/setup.sh", recipe.name], cwd=root, capture_output=True).returncode == 0
    assert ((recipe / "run.sh").read_bytes(), (recipe / "local" / "data.sh").read_bytes()) == before
    assert (recipe / "local" / "sweep.sh").resolve() == root / "local" / "sweep.sh"
    for name in ("../out", "", "-x"):
        done = subprocess.run(["egs/TEMPLATE/setup.sh", name], cwd=root, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("usage: egs/TEMPLATE/setup.sh NAME")


def test_the_check_adds_what_follows_from_the_audio(tmp_path):
    folder = write_set(tmp_path, "train")
    (folder / "utt2gender").write_text("ann f\n")
    (folder / "utt2dur").write_text("ann-train-0 1.0\n")  # Kaldi rounds it
    assert list(check_data_dir(folder)) == [16000, 16001, 16002, 16003]
    rows = read_data_dir(folder)
    assert [u.samples for u in rows] == [16000, 16001, 16002, 16003]
    assert read_table(folder / "spk2utt") == {"ann": " ".join(u.id for u in rows)}
    assert (folder / "utt2gender").exists()


def command(folder):
    replace(folder, "wav.scp", str(folder.parent), f"cat {folder.parent}")
    replace(folder, "wav.scp", ".wav\n", ".wav |\n")


def replace(folder, name, old, new):
    (folder / name).write_text((folder / name).read_text().replace(old, new))


def cut(audio):
    """Half of a FLAC file under the same name: its header states the whole length."""
    samples, rate = soundfile.read(audio)
    soundfile.write(audio, samples, rate, format="FLAC")
    audio.write_bytes(audio.read_bytes()[:12000])


def sound(folder, *arguments):
    soundfile.write(folder.parent / "audio" / "train 1.wav", *arguments)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "text").unlink(), "No such file or directory: '.*train/text'"),
        (lambda f: (f / "segments").touch(), "train/segments: the recipe cuts no audio here"),
        (lambda f: cut(f.parent / "audio" / "train 2.wav"), "ann-train-2: .*train 2.wav .* cut short"),
        (
            lambda f: replace(f, "text", "ann-train-2 TWO ONE\n", ""),
            "text and wav.scp differ in their ids: ann-train-2",
        ),
        (lambda f: [replace(f, n, "train-0", "train-9") for n in ("text", "wav.scp", "utt2spk")], "is not sorted"),
        (lambda f: replace(f, "text", "ONE TWO", "ONE  TWO"), "ann-train-0 must have single spaces only"),
        (lambda f: replace(f, "utt2spk", "ann\n", "ann b\n"), "the speaker 'ann b' of utterance 'ann-train-0'"),
        (command, r"ann-train-0: .* is a command; the recipe runs none.* \(and 3 more in .*/train\)"),
        (lambda f: sound(f, np.zeros(8000), 8000), "ann-train-1: .*audio/train 1.wav has 8000 Hz"),
        (lambda f: sound(f, np.zeros((8000, 2)), 16000), "has 2 channels; the recipe needs mono"),
        (lambda f: sound(f, np.zeros(0), 16000), "train 1.wav holds no audio"),
        (lambda f: (f.parent / "audio" / "train 1.wav").write_text("no sound"), "train 1.wav cannot be read"),
        (lambda f: (f.parent / "audio" / "train 1.wav").unlink(), "train 1.wav does not exist"),
        (lambda f: [(f / n).write_text("") for n in ("text", "wav.scp", "utt2spk")], "train has no utterance"),
    ],
)
def test_data_that_breaks_the_contract_is_named(tmp_path, damage, message):
    folder = write_set(tmp_path, "train")
    damage(folder)
    with pytest.raises((OSError, ValueError), match=message):
        check_data_dir(folder)
    assert not (folder / "utt2num_samples").exists()
    with pytest.raises(FileNotFoundError, match="test does not exist: local/data.sh must leave it"):
        check_data_dir(tmp_path / "test")


def test_transcripts_are_composed(tmp_path):
    folder = write_set(tmp_path, "train")
    replace(folder, "text", "THREE", "TRE\u0301S")
    check_data_dir(folder)
    assert read_table(folder / "text")["ann-train-1"] == "TR\u00c9S"


def prepare(monkeypatch, source, out, *sets):
    options = ["--kaldi", str(source), "--train_set", "train", "--valid_set", sets[0], "--test_sets", *sets]
    for program in (read_corpus, cut_corpus):
        monkeypatch.setattr(sys, "argv", ["x", *options, "--out", str(out)])
        program.main()


def test_directories_from_elsewhere_are_taken_whole_and_those_that_have_gone_go(tmp_path, monkeypatch):
    for name in ("train", "dev", "test"):
        write_set(tmp_path / "in", name)
    (tmp_path / "out" / "kept").mkdir(parents=True)
    prepare(monkeypatch, tmp_path / "in", tmp_path / "out", "dev", "test")
    check_data_dir(tmp_path / "out" / "test")
    prepare(monkeypatch, tmp_path / "in", tmp_path / "out", "dev")
    assert {p.name for p in (tmp_path / "out").glob("*") if p.is_dir()} == {"train", "dev", "kept", "audio"}
    assert {p.name for p in (tmp_path / "out" / "train").iterdir()} == {"wav.scp", "text", "utt2spk"}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "train" / "utt2spk").unlink(), "train has no file utt2spk"),
        (lambda f: (f / "train" / "segments").touch(), "train/text and segments differ in their ids"),
        (shutil.rmtree, "--kaldi: .* does not exist"),
        (lambda f: replace(f / "train", "text", "ann-train-2 TWO ONE\n", ""), "differ in their ids: ann-train-2"),
    ],
)
def test_directories_that_cannot_be_taken_leave_the_old_ones(tmp_path, monkeypatch, damage, message):
    write_set(tmp_path / "in", "train")
    write_set(tmp_path / "in", "test")
    prepare(monkeypatch, tmp_path / "in", tmp_path / "out", "test")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    damage(tmp_path / "in")
    with pytest.raises((OSError, ValueError), match=message):
        prepare(monkeypatch, tmp_path / "in", tmp_path / "out", "test")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_audio_of_the_training_set_in_a_test_set_is_said(tmp_path, monkeypatch, capsys):
    write_set(tmp_path, "train")
    replace(write_set(tmp_path, "test"), "wav.scp", "test 1.wav", "train 1.wav")
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path), "--sets", "train", "test", "test"])
    check_data.main()
    printed = capsys.readouterr()
    assert "warning: test has 1 sound files of the training set\n" in printed.err
    assert re.findall(r"^(\w+): 4 utterances, 0.00 hours", printed.out, re.M) == ["train", "test"]


@pytest.mark.parametrize("name", ["librispeech_100", "mini"])
def test_the_recipes_share_their_scripts(name):
    folder = ROOT / "egs" / name
    for link in ("path.sh", "conf", "utils", "local/pinch.sh", "local/sweep.sh", "local/run_comparison.sh"):
        assert (folder / link).is_symlink() and ROOT in (folder / link).resolve().parents
    for own in ("run.sh", "cmd.sh", "local/data.sh"):
        assert not (folder / own).is_symlink() and os.access(folder / own, os.X_OK)
