"""Every benchmark runs, at a size that says nothing, and prints the table that it promises."""

import importlib
import io
import json
import logging
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_models import make_model

from espnet_pinch.errors import UserError
from espnet_pinch.export.sparse_file import write_sparse
from espnet_pinch.files import write_text
from espnet_pinch.transcript.words import Word

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _restore():
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


def run(capsys, monkeypatch, name: str, arguments: str) -> list[list[str]]:
    """The cells of the last table that a benchmark prints."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    importlib.import_module(name).main([*arguments.split(), "--threads", "1"])
    out = capsys.readouterr().out
    assert "Machine: " in out and "torch 2." in out
    return [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")][2:]


def test_train_step(capsys, monkeypatch):
    rows = run(capsys, monkeypatch, "train_step", "--size tiny --batch 2 --seconds 1 --repeats 2")
    assert [row[0] for row in rows][:2] == ["dense", "pinch-penalty"] and len(rows) == 13
    assert rows[0][3] == rows[0][5] == "1.000"
    memory = {row[0]: float(row[5]) for row in rows}
    assert memory["pinch-on-target"] < 1.05 < memory["autograd-gate"] < memory["l0"]


@pytest.mark.slow
def test_large_table(capsys, monkeypatch):
    options = f"--rows 3000 --files 4 --package {BENCHMARKS.parent}"
    rows = run(capsys, monkeypatch, "large_table", options)
    programs = ["read_corpus", "cut_corpus", "check_data", "prepare_dump"]
    assert [row[0].split(" of ")[0] for row in rows] == [*programs, *programs[2:]]
    assert all(float(row[2]) > 10 for row in rows)


@pytest.mark.slow
def test_runtimes(capsys, monkeypatch):
    options = "--size tiny --seconds 1 --weights --macs 0.5 --int8 --repeats 1 --runtimes onnxruntime"
    rows = run(capsys, monkeypatch, "runtimes", options)[-4:]
    folders, files = (
        ["unpruned", "50 % of MACs saved"],
        ["unpruned/model.int8.onnx", "50 % of MACs saved/model.int8.onnx"],
    )
    assert [row[0] for row in rows] == [*(f"tiny/{name}" for name in folders), *files]
    assert all(row[1:3] == ["onnxruntime", "float32"] and float(row[-1]) > 0 for row in rows)
    assert rows[0][-1] == "1.00"


def test_decoding(capsys, monkeypatch):
    rows = run(capsys, monkeypatch, "decoding", "--size tiny --utterances 3 --seconds 2 --batch_sizes 1 2 --repeats 1")
    assert [row[:2] for row in rows] == [["1", "pipeline"], ["1", "ours"], ["2", "pipeline"], ["2", "ours"]]
    assert all(row[5].startswith("3 of 3, ") for row in rows)
    assert int(rows[0][5].split()[-2]) > 20  # characters


def test_file_sizes(capsys, monkeypatch):
    rows = run(capsys, monkeypatch, "file_sizes", "--size tiny --sparsities 0.65 --repeats 1")
    size = {row[1]: int(row[2].replace(",", "")) for row in rows}
    assert list(size)[4:] == ["fp32", "fp16", "bf16", "int8", "8 bits", "4 bits", "3 bits", "2 bits", "ternary"]
    assert size["ternary"] < size["4 bits"] < size["8 bits"] < size["fp32"] < size["dense fp32"]
    assert size["dense fp32, gzip -6"] > 1000


def test_data_preparation(capsys, monkeypatch, tmp_path):
    rows = run(capsys, monkeypatch, "data_preparation", f"--scale 0.001 --repeats 1 --lhotse {sys.executable} --nj 2")
    names = ["data directories, ours", "manifests, lhotse", "WER of dev and test sets", "MAPSSWE and bootstrap"]
    assert [row[0] for row in rows] == names
    assert all(float(row[1]) >= 0 for row in rows if "not installed" not in row[1])


@pytest.mark.parametrize("name", sorted(p.stem for p in BENCHMARKS.glob("*.py") if "def main" in p.read_text()))
def test_help(capsys, monkeypatch, name):
    monkeypatch.syspath_prepend(BENCHMARKS)
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main(["--help"])
    out = io.StringIO(capsys.readouterr().out)
    assert end.value.code == 0 and "usage:" in next(out)


MAKER = """
import numpy as np
WORDS, RATE, SUBSETS, SPEAKERS = ["ZERO", "ONE"], 1000, ["train-x", "test-x"], {"ann": 7}
def read_recordings(archive):
    return {"ann": [(digit, take, np.ones(100 + 50 * digit + take)) for digit in (0, 1) for take in (0, 1)]}
def subset_of(speaker, take):
    return SUBSETS[take]
def utterances(items, passes, rng):
    for _ in range(passes):
        yield items
def join(digits, rng):  # as the program of the digits does
    noise = np.random.default_rng(rng.randrange(1 << 30))
    pause = lambda: noise.normal(0, 1e-4, int(RATE * rng.uniform(0.03, 0.18)))
    return np.concatenate([part for _, _, audio in digits for part in (pause(), audio)] + [pause()])
"""


def test_the_joints_are_where_the_program_joins(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    joints, times = importlib.import_module("digit_joints"), importlib.import_module("word_times")
    (tmp_path / "make_corpus.py").write_text(MAKER)
    joints.main(["--make_corpus", str(tmp_path / "make_corpus.py"), "--out", str(tmp_path / "a.ctm"), "--seed", "5"])
    found = times.read_ctm(tmp_path / "a.ctm")
    assert list(found) == ["7-70-0000", "7-70-0001", "7-70-0002", "7-71-0000", "7-71-0001"]
    scope: dict = {}
    exec(MAKER, scope)  # noqa: S102
    rng = random.Random(5)
    for words, take in zip(found.values(), (0, 0, 0, 1, 1)):
        loud = scope["join"]([r for r in scope["read_recordings"](None)["ann"] if r[1] == take], rng) > 0.5
        edges = np.flatnonzero(np.diff(loud, prepend=False, append=False)) / 1000
        assert [word.text for word in words] == ["ZERO", "ONE"]
        assert np.allclose([edge for word in words for edge in (word.start, word.end)], edges, atol=1e-6)


def test_errors_of_times_and_of_confidences_are_counted(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    times = importlib.import_module("word_times")
    reference = [Word("A", 0.0, 0.5, 1), Word("B", 0.6, 0.9, 1), Word("C", 1.0, 1.5, 1)]
    found = [Word("A", 0.01, 0.48, 0.9), Word("X", 0.6, 0.9, 0.2), Word("C", 1.03, 1.44, 0.9), Word("D", 2, 3, 0.3)]
    pairs, right = times.same_words(reference, found)
    assert right == [True, False, True, False] and [a.text for a, _ in pairs] == ["A", "C"]
    assert times.errors_of(pairs) == ["20", "28", "+20", "40", "56", "-40"]
    confidence, right = np.array([0.9, 0.2, 0.9, 0.3]), np.array([True, False, True, False])
    assert times.calibration(confidence, right) == ["4", "50.0", "57.5", "17.5", "1.000"]


def test_word_times(capsys, monkeypatch, tmp_path, tiny_config):
    monkeypatch.syspath_prepend(BENCHMARKS)
    write_sparse(tmp_path / "m.safetensors", make_model(tiny_config))
    generator = np.random.default_rng(0)
    soundfile.write(tmp_path / "u.wav", generator.normal(0, 0.1, 32000), 16000, subtype="FLOAT")
    for table, row in (
        ("wav.scp", tmp_path / "u.wav"),
        ("text", "A TEA"),
        ("utt2spk", "u"),
        ("utt2num_samples", 32000),
        ("utt2dur", 2),
    ):
        write_text(tmp_path / "data" / table, f"u {row}\n")
    program = importlib.import_module("word_times")
    program.main(
        ["--model", str(tmp_path / "m.safetensors"), "--data", str(tmp_path / "data"), "--threads", "1"]
        + ["--picture", str(tmp_path / "curve")]
    )
    lines = [
        line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| data")
    ]
    assert [line[1] for line in lines][0] == "forced alignment" and int(lines[1][1]) > 3
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "curve.svg").exists()


def test_epoch_profile(tmp_path, capsys, monkeypatch):
    """Two epochs of 10 batches, two for a step: one whole, one that was killed and resumed in its second half."""
    train = {"iter_time": 0.1, "forward_time": 0.3, "backward_time": 0.2, "optim_step_time": 0.1, "device": "abacus"}
    one = {"train": {**train, "seconds": 7.0, "points": [{"iteration": 10}]}, "valid": {"seconds": 2.0}}
    two = {"train": {**train, "seconds": 3.5, "points": [{"iteration": 20}]}, "valid": {"seconds": 2.0}}
    write_text(tmp_path / "history.json", json.dumps({"1": one, "2": two}))
    write_text(tmp_path / "config.yaml", "accum_grad: 2\n")
    times = {"00,000": "1/2", "10,000": "2/2", "20,000": "2/2"}
    lines = [f"[vm] 2026-11-26 07:30:{t} (trainer:336) INFO: {epoch}epoch started" for t, epoch in times.items()]
    lines.append("[vm] 2026-11-26 07:30:26,000 (trainer:534) INFO: The training was finished at 2 epochs")
    write_text(tmp_path / "train.log", "\n".join(lines).replace("epoch started", "epoch started\nnoise"))
    monkeypatch.syspath_prepend(BENCHMARKS)
    program = importlib.import_module("epoch_profile")
    program.main([str(tmp_path)])
    note, *_, row = capsys.readouterr().out.splitlines()
    assert note == f"{tmp_path.name}: left out, as they were interrupted: epochs 2"
    assert row.strip("| ").split(" | ")[1:] == ["abacus", "1", *"10.0 10.0 30.0 20.0 5.0 5.0 20.0 10.0 25.0".split()]
    write_text(tmp_path / "train.log", "")
    with pytest.raises(UserError, match="no epoch ran from its start to its end"):
        program.main([str(tmp_path)])
