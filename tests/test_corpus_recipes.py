"""Recipes on a corpus by a way in, as a user runs them; the recipes of spoken digits and of Hindi."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import unicodedata

import numpy as np
import pytest
import soundfile
from test_recipe import ROOT, recipe, run  # noqa: F401  (a fixture)

from espnet_pinch.bin import fetch_archive
from espnet_pinch.corpus.way import all_ways
from espnet_pinch.data.kaldi_dir import read_data_dir, read_table
from espnet_pinch.data.librispeech import SUBSETS, list_subset
from espnet_pinch.data.mini_corpus import LANGUAGES, make_mini_corpus

DIGITS = [f"{digit}_{name}_{take}.wav" for digit in (0, 7) for name in ("ann", "bob") for take in (0, 4, 5, 9, 10, 30)]


@pytest.fixture
def recordings(tmp_path):
    """A tiny copy of the digits' layout: noise, 8 kHz."""
    folder = tmp_path / "some digits" / "recordings"
    folder.mkdir(parents=True)
    for i, name in enumerate(DIGITS):
        soundfile.write(folder / name, np.random.default_rng(i).normal(0, 0.1, 3000 + i), 8000, subtype="PCM_16")
    return folder


def data_sh(recipe, *options):  # noqa: F811
    command = ["bash", "local/data.sh", "--python", sys.executable, *options]
    return subprocess.run(
        command, cwd=recipe, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )


def test_the_digits_become_sets_by_their_takes(recipe, recordings, tmp_path):  # noqa: F811
    fsdd = recipe.parent / "fsdd"
    options = ("--stage", "1", "--stop_stage", "1", "--data", str(tmp_path / "data"), "--fsdd", str(recordings))
    done = data_sh(fsdd, *options)
    assert done.returncode == 0, done.stderr
    texts = {name: read_table(tmp_path / "data" / name / "text") for name in ("train", "dev", "test")}
    assert {name: len(table) for name, table in texts.items()} == {"train": 8, "dev": 8, "test": 8}
    assert texts["test"]["bob-7-04"] == "SEVEN" and texts["train"]["ann-0-30"] == "ZERO"
    with open(tmp_path / "data" / "table.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 24 and all(row["audio"].startswith(str(recordings)) for row in rows)
    assert data_sh(fsdd, *options).stdout.count("done before, nothing changed") == 3
    (recordings / "x.wav").write_bytes(b"")
    done = data_sh(fsdd, *options)
    assert done.returncode == 1 and "x.wav: the name is not DIGIT_SPEAKER_TAKE.wav" in done.stderr
    done = data_sh(fsdd, "--stage", "1", "--stop_stage", "1", "--data", str(tmp_path / "data"))
    assert done.stderr == "error: downloads/fsdd/recordings is missing: run stage 0 first (./run.sh --stage 0)\n"


def test_an_archive_is_checked_and_one_folder_of_it_unpacked(recordings, tmp_path, monkeypatch):
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(recordings, "digits-1.0/recordings")
        tar.add(recordings / DIGITS[0], "digits-1.0/other.wav")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()

    def fetch(sha256):
        options = ["--url", "http://127.0.0.1:9/x", "--archive", str(archive), "--inside", "digits-1.0/recordings"]
        options += ["--by_hand", "give --fsdd", "--out", str(tmp_path / "out"), "--sha256", sha256]
        monkeypatch.setattr(sys, "argv", ["x", *options])
        fetch_archive.main()

    fetch(digest)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(DIGITS) and not archive.exists()
    fetch(digest)  # it is there
    (tmp_path / "out").rename(tmp_path / "gone")
    with pytest.raises(OSError, match="could not fetch http://127.0.0.1:9/x: .* put it there as .*, or give --fsdd"):
        fetch(digest)
    archive.write_bytes(b"x")
    with pytest.raises(ValueError, match="has SHA-256"):
        fetch(digest)


@pytest.mark.slow
def test_a_table_without_splits_goes_through_librispeechs_recipe(recipe, recordings, tmp_path):  # noqa: F811
    rows = [{"audio": name, "text": f"Digit, {name[0]}!", "speaker": f"s{i}"} for i, name in enumerate(DIGITS)]
    (recordings / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--table", str(recordings / "t.jsonl"), "--upstream", "micro", "--dev_share", "0.25")
    options += ("--test_share", "0.25", "--text", "lower no_punctuation", "--stop_stage", "3", "--nj", "2")
    done = run(recipe, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    [dump] = (recipe / "dump").glob("t.jsonl_*/micro/raw")
    sets = {path.parent.name: read_data_dir(path.parent) for path in dump.glob("*/wav.scp")}
    assert set(sets) == {"train", "dev", "test"} and sum(map(len, sets.values())) == 24
    assert {u.text for u in sets["train"]} == {"digit 0", "digit 7"}
    assert (dump / "audio_type").read_text() == "kaldi_ark\n"
    done = run(recipe, *options)
    assert done.stdout.count("done before, nothing changed") == 5
    done = run(recipe, *options, "--splits", "dev=train:0.3")
    assert (
        done.stderr.startswith("error: the corpus names no splits: leave --splits out")
        and len(done.stderr.splitlines()) == 1
    )
    done = run(recipe, "--table", "no.tsv")
    assert done.stderr == "error: --table: " + str(recipe / "no.tsv").replace(f"{recipe}/", "") + " does not exist\n"
    done = run(recipe, *options, "--text", "lowercase")
    assert done.stderr.startswith("error: text: there is no step 'lowercase'; there is: nfc, ")


def test_hindi_is_spoken_in_its_own_script(tmp_path):
    make_mini_corpus(tmp_path, 0.01, language="hi")
    rows = [row for subset in SUBSETS for row in list_subset(tmp_path / "LibriSpeech", subset)]
    words = {word for row in rows for word in row.text.split()}
    known = {unicodedata.normalize("NFC", word) for word in LANGUAGES["hi"].words}
    assert words <= known and len(words) > 15
    assert all("DEVANAGARI" in unicodedata.name(char) for word in known for char in word)
    assert any(unicodedata.category(char) == "Mc" for word in known for char in word)


def test_the_documents_name_every_way_in():
    for page in ("README.md", "docs/data.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert all(f"--{name}" in text for name in all_ways()), page


@pytest.mark.parametrize("name", ["fsdd", "mini_hindi"])
def test_the_recipes_share_their_scripts(name):
    folder = ROOT / "egs" / name
    for link in ("path.sh", "conf", "utils", "local/pinch.sh", "local/sweep.sh", "local/run_comparison.sh"):
        assert (folder / link).is_symlink() and ROOT in (folder / link).resolve().parents
    for own in ("run.sh", "cmd.sh", "local/data.sh"):
        assert not (folder / own).is_symlink() and os.access(folder / own, os.X_OK)
