"""Every benchmark runs, at a size that says nothing, and prints the table that it promises."""

import importlib
import io
import logging
import sys
import warnings
from pathlib import Path

import pytest
import torch

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
    assert [row[0] for row in rows][:2] == ["dense", "pinch-penalty"] and len(rows) == 6
    assert rows[0][3] == rows[0][5] == "1.000"
    memory = {row[0]: float(row[5]) for row in rows}
    assert memory["pinch-on-target"] < 1.05 < memory["autograd-gate"] < memory["l0"]


def test_cpu_inference(capsys, monkeypatch):
    rows = run(capsys, monkeypatch, "cpu_inference", "--size tiny --seconds 1 --sparsities 0.9 --repeats 1")
    assert [row[2] for row in rows] == 2 * ["dense float32", "sparse", "auto", "dense bfloat16"]


def test_structured(capsys, monkeypatch):
    options = "--size tiny --seconds 1 --targets 0.5 --repeats 1 --runtimes torch --dtypes float32"
    first, second = run(capsys, monkeypatch, "structured", options)[-2:]
    assert first[0].endswith("/unpruned") and second[0].endswith("/50 % of MACs saved")
    assert first[1:3] == second[1:3] == ["torch", "float32"] and first[-1] == "1.00" and float(second[-1]) > 0


def test_decoding(capsys, monkeypatch):
    rows = run(capsys, monkeypatch, "decoding", "--size tiny --utterances 3 --seconds 2 --batch_sizes 1 2 --repeats 1")
    assert [row[:2] for row in rows] == [["1", "pipeline"], ["1", "ours"], ["2", "pipeline"], ["2", "ours"]]
    assert all(row[5].startswith("3 of 3, ") for row in rows)
    assert int(rows[0][5].split()[-2]) > 20  # characters


def test_export_size(capsys, monkeypatch):
    rows = run(capsys, monkeypatch, "export_size", "--size tiny")
    size = {row[0]: int(row[1].replace(",", "")) for row in rows}
    assert list(size)[4:] == ["sparse fp32", "sparse fp16", "sparse bf16", "sparse int8"]
    assert size["sparse fp16"] < size["sparse fp32"] < size["dense fp32"] and size["dense fp32, gzip -6"] > 1000


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
