"""``espnet-pinch bench``: what it counts, measures, scores, draws and leaves out."""

import json
import logging
import re

import pytest
import soundfile
import torch
from conftest import TINY
from small_models import TOKENS, make_model
from test_cli import run, speech

import espnet_pinch
from espnet_pinch.asr.decode import decode_data_dir
from espnet_pinch.asr.macs import count_by_part, count_macs
from espnet_pinch.asr.upstream import save_ctc_model
from espnet_pinch.bench.machine import peak_bytes
from espnet_pinch.bench.run import Measured, Request, Timing, score, waves
from espnet_pinch.bench.side import Side, Worker, shown
from espnet_pinch.data.kaldi_dir import Utterance, write_data_dir
from espnet_pinch.errors import UserError
from espnet_pinch.export.formats.onnx import write_onnx
from espnet_pinch.export.sparse_file import write_sparse
from espnet_pinch.files import write_text
from espnet_pinch.results.pareto import front
from espnet_pinch.results.scoring import score_files
from espnet_pinch.results.unit import Unit

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _loud():
    yield
    logging.disable(logging.NOTSET)  # which quiet() has changed


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dense model as a Hugging Face folder, a pruned one as an ONNX file, a data directory."""
    root = tmp_path_factory.mktemp("bench")
    torch.manual_seed(0)
    dense, pruned = make_model(TINY, sparsity=0.01, odd=False), make_model(TINY, sparsity=0.9)
    save_ctc_model(root / "hf", dense.frontend.upstream, dense.ctc.ctc_lo, TOKENS, dense.frontend.processing)
    write_sparse(root / "m.safetensors", pruned)
    write_onnx(root / "m.onnx", pruned)
    rows = []
    for i in range(2):
        soundfile.write(root / f"{i}.wav", speech(1 + i), 16000)
        rows.append(Utterance(f"s-{i}", str(root / f"{i}.wav"), "TEN TON", "s", 16000 * (1 + i)))
    write_data_dir(root / "test", rows)
    return root


def test_a_comparison_from_the_command_line(place, capsys, monkeypatch):
    command = ["bench", place / "hf", place / "m.onnx", "--runtimes", "torch", "onnxruntime", "--dtypes", "float32"]
    command += ["--batches", "1", "2", "--seconds", "0.5", "1", "--repeats", "2", "--threads", "1"]
    command += ["--data", place / "test", "--json", place / "b.json", "--plot", place / "b.png"]
    status, out, err = run(capsys, monkeypatch, *command)
    assert status == 0 and all(line.startswith(("bench: ", "note: ")) for line in err.splitlines()), err
    found = json.loads((place / "b.json").read_text())
    sides = {(s["model"].rpartition("/")[2], s["runtime"]): s for s in found["sides"]}
    assert list(sides) == [("hf", "torch"), ("hf", "onnxruntime"), ("m.onnx", "onnxruntime")]
    for side in sides.values():
        assert [(t["batch"], t["seconds"]) for t in side["timings"]] == [(1, 0.5), (1, 1), (2, 0.5), (2, 1)]
        for t in side["timings"]:
            assert len(t["times"]) == 2 and t["best"] == min(t["times"]) and t["faster"] > 0
            assert t["rtf"] == pytest.approx(t["best"] / (t["batch"] * t["seconds"]))
            assert t["peak_bytes"] >= side["held_bytes"] > 10**7
        assert side["load_seconds"] > 0
    assert all(t["faster"] == 1.0 for t in sides["hf", "torch"]["timings"])

    models = [espnet_pinch.load(place / "hf"), espnet_pinch.load(place / "m.safetensors")]
    for model, size in zip(models, found["models"].values()):
        assert size["parameters"] == sum(p.numel() for p in model.parameters())
        assert size["zeros"] == sum(int((p == 0).sum()) for p in model.parameters())
        assert sum(size["macs"].values()) == count_macs(model.frontend.upstream)[""]
    assert found["models"][str(place / "m.onnx")]["bytes"] == (place / "m.onnx").stat().st_size

    scores = []
    for model in models:
        decode_data_dir(model, place / "test", place / "own")
        scores.append(score_files(place / "test" / "text", place / "own" / "text").errors)
    assert [s["wer"]["test"]["errors"] for s in sides.values()] == [scores[0], scores[0], scores[1]]
    assert sides["hf", "onnxruntime"]["texts_differing"] == {"test": 0}
    test = sides["m.onnx", "onnxruntime"]["significance"]["test"]
    assert (test["baseline_errors"], test["errors"]) == tuple(scores) and sides["hf", "torch"]["significance"] == {}

    assert re.fullmatch(r"Machine: .*1 thread\(s\).*; 2 rounds, wall time\.", out.splitlines()[0])
    assert "| bench0/hf | Hugging Face folder |" in out.replace(place.name, "bench0")
    assert f"| {100 * scores[0] / 4:.2f} ({scores[0]}/4) |" in out and "| 1 x 0.5 s | 1 x 1 s | 2 x 0.5 s |" in out
    assert out.splitlines()[-1].endswith("which onnxruntime loads and torch does not") and "Left out:" in out
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        assert (place / f"b{suffix}").read_bytes().startswith(magic)
    assert b"WER of test" in (place / "b.svg").read_bytes() or (place / "b.svg").stat().st_size > 5000


@pytest.mark.parametrize(
    "options, line",
    [
        ("--repeats 0", "numbers of rounds, threads, batches and seconds must be positive"),
        ("--seconds 0", "numbers of rounds, threads, batches and seconds must be positive"),
        ("--json .", ". is a folder, but a file is to be written: give its name"),
        ("--seconds nan", "numbers of rounds, threads, batches and seconds must be positive and finite"),
        ("--json no/b.json", "no is no folder, so b.json cannot be written there"),
        ("--data gone", "gone"),
        ("--dtypes float16", "runs in none of the runtimes: the runtime torch computes in float32, bfloat16 here"),
    ],
)
def test_a_wrong_call_is_one_line(place, options, line, capsys, monkeypatch):
    command = ["bench", place / "hf", "--runtimes", "torch", "--threads", "1", *options.split()]
    status, out, err = run(capsys, monkeypatch, *command)
    *notes, said = err.splitlines()
    assert status == 1 and not out and said.startswith("error: ") and line in said
    assert all(note.startswith("bench: size of") for note in notes)


def test_a_worker_measures_its_own_process_and_says_what_is_wrong(place):
    with Worker(Side(str(place / "m.safetensors"), "torch")) as worker:
        loaded = worker.ask("load")
        assert 10**7 < loaded["bytes"] and loaded["seconds"] > 0
        worker.ask("decode", batch=1, seconds=0.1, clock="cpu")
        short, long = (worker.ask("decode", batch=1, seconds=s, clock="cpu") for s in (0.1, 60))
        assert 0 < short < long
        with pytest.raises(UserError, match="^0.001 s of audio, 16 samples, are too few for one frame$"):
            worker.ask("decode", batch=1, seconds=0.001, clock="cpu")
        with pytest.raises(UserError, match="gone"):  # one line; the worker lives on
            worker.ask("transcribe", data=str(place / "gone"), out=str(place / "out"), batch=1)
        with pytest.raises(RuntimeError, match=r"torch, float32: the process has ended .*(?s:.*)no_such_thing"):
            worker.ask("no_such_thing")
    assert 10**7 < peak_bytes() < 10**11


@pytest.mark.parametrize("name, fields", [("wav2vec2", {}), ("layer norm", {"feat_extract_norm": "layer"})])
def test_multiplications_by_part_are_those_counted_by_hand(name, fields):
    model = make_model({**TINY, **fields}).frontend.upstream
    frames = (16000 - 10) // 10 + 1
    last = (frames - 8) // 32 + 1
    convolutions = 8 * 10 * frames + 8 * 8 * 8 * last + 16 * 8 * 4 * (last + 1)  # the positional one has two groups
    blocks = 2 * last * (4 * 16 * 16 + 2 * 16 * 24)
    parts = count_by_part(model, 16000)
    assert parts["convolutions"] == convolutions and parts["linears"] == 8 * 16 * last + blocks
    assert parts["attention products"] == 2 * 2 * last * last * 16
    assert sum(parts.values()) == count_macs(model, 16000)[""]


def test_sides_go_together_as_memory_allows():
    first, *others = (Measured(Side(str(i), "torch"), 0.0, 0, [Timing(1, 1, peak_bytes=10)]) for i in range(6))
    sizes = [len(group) for group in waves(first, others, 30)]
    assert sizes == [2, 2, 1] and [len(group) for group in waves(first, others, 5)] == [1] * 5
    assert waves(first, [], 30) == []


def test_the_front_is_what_no_point_beats():
    points = [(1.0, 5.0), (2.0, 6.0), (1.5, 7.0), (2.0, 8.0), (0.5, 5.0), (2.0, 6.0)]
    assert front(points) == [(1.0, 5.0), (2.0, 6.0)] and front(points[:1]) == points[:1]


def test_a_side_that_says_nothing_has_deletions(tmp_path):
    """Of one utterance, and of all."""
    references, first = {"a": "ONE TWO", "b": "SIX"}, {"a": "ONE TWO", "b": "SIX"}
    for number, said in enumerate(({"a": "", "b": "SIX"}, {"a": "", "b": ""})):
        data = tmp_path / f"set{number}"
        for place, table in (("", references), ("first", first), ("own", said)):
            rows = "".join(f"{id_} {text}".rstrip() + "\n" for id_, text in table.items())
            write_text(tmp_path / place / data.name / "text", rows)
        measured = Measured(Side("m", "torch"), 0.0, 0, [])
        score(measured, Request([], data=[data]), tmp_path / "own", tmp_path / "first", Unit())
        found, silent = measured.wer[data.name], [id_ for id_ in said if not said[id_]]
        assert (found.deletions, found.errors) == (2 + number, 2 + number) and found.wer == (2 + number) / 3
        assert measured.significance[data.name].errors == 2 + number
        assert measured.texts_differing == {data.name: len(silent)}
        score(
            measured, Request([], data=[data]), tmp_path / "first", tmp_path / "own", Unit()
        )  # the first side says nothing
        assert measured.significance[data.name].baseline_errors == 2 + number


def test_models_of_the_same_name_are_told_apart():
    models = ["runs/a/export/m.onnx", "runs/b/export/m.onnx", "/x/other.onnx", "m.onnx"]
    names = ["a/export/m.onnx", "b/export/m.onnx", "x/other.onnx", "m.onnx"]
    assert [shown(model, models) for model in models] == names
    assert shown("/m.onnx", ["/m.onnx"]) == "/m.onnx" and shown("/runs/a/m.onnx") == "a/m.onnx"
