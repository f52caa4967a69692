"""Forced alignment of a given text: the most probable path, in seconds of the file, and texts that do not fit."""

import itertools
import json

import numpy as np
import pytest
import soundfile
import torch
from small_models import TOKENS, make_model
from test_cli import _loud, run  # noqa: F401  (_loud is a fixture)
from test_words import Loudness

from espnet_pinch.asr import forced
from espnet_pinch.asr.decode import transcribe
from espnet_pinch.asr.forced import align_tokens, ids_of
from espnet_pinch.asr.greedy import runs
from espnet_pinch.errors import UserError
from espnet_pinch.export.align_audio import align_file
from espnet_pinch.export.sparse_file import write_sparse


@pytest.mark.parametrize("ids", [[1], [1, 2], [2, 2], [1, 2, 1]])
def test_the_path_is_the_most_probable_one(ids):
    log_probs = torch.randn(6, 3, generator=torch.Generator().manual_seed(len(ids))).log_softmax(-1)
    paths = [p for p in itertools.product(range(3), repeat=6) if runs(torch.tensor(p), 0)[:, 0].tolist() == ids]
    best = max(paths, key=lambda path: sum(float(log_probs[t, token]) for t, token in enumerate(path)))
    spans = align_tokens(ids, log_probs, 0)
    assert [list(span[:3]) for span in spans] == runs(torch.tensor(best), 0).tolist()
    for span in spans:
        assert span.probability == pytest.approx(float(log_probs[span.start : span.end, span.token].max().exp()))


def test_a_text_is_spelled_as_the_vocabulary_spells():
    want = [TOKENS.index(name) for name in ("N", "O", "<space>", "T", "E", "A")]
    assert ids_of("no tea", TOKENS) == ids_of("NO TEA", TOKENS) == want
    with pytest.raises(UserError, match=r"vocabulary lacks '5' \(U\+0035\) 2 times, '!' \(U\+0021\) once"):
        ids_of("NO 55!", TOKENS)


def test_a_text_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(forced, "LARGEST", 99)
    with pytest.raises(UserError, match="20 frames and 2 characters are too many"):
        align_tokens([1, 2], torch.zeros(20, 3), 0)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_words_get_their_times_across_chunks(tmp_path, rate):
    model = Loudness()
    begins = np.arange(0.5, 20, 1.1)
    samples, time = np.zeros(22 * rate, np.float32), np.arange(22 * rate) / rate
    for begin in begins:
        samples[(time >= begin) & (time < begin + 0.4)] = 1
    soundfile.write(tmp_path / "a.wav", 0.5 * samples * np.sin(2 * np.pi * 440 * time), rate)
    text = " ".join("a" * len(begins))
    for chunk in (30, 7):
        found = align_file(model, tmp_path / "a.wav", f"{text}\n", chunk, 2)
        assert np.abs([word.start for word in found.words] - begins).max() <= 0.025 and found.text == text


@pytest.fixture
def aligned(tiny_config, tmp_path):
    model = make_model(tiny_config)
    write_sparse(tmp_path / "m.safetensors", model)
    samples = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    return model, samples, ("align", tmp_path / "m.safetensors", tmp_path / "a.wav")


def test_the_command_takes_words_or_a_file(aligned, tmp_path, capsys, monkeypatch):
    model, samples, command = aligned
    [text] = transcribe(model, [torch.from_numpy(samples)])
    assert " " in text
    (tmp_path / "text.txt").write_text(f"\ufeff{text.lower()}\n", encoding="utf-8")
    status, out, err = run(capsys, monkeypatch, *command, text, "--format", "json")
    [row] = json.loads(out)
    assert (status, err) == (0, "") and row["text"] == text and [w["word"] for w in row["words"]] == text.split()
    status, out, _ = run(capsys, monkeypatch, *command, text)
    assert status == 0 and [line.split()[4] for line in out.splitlines()] == text.split()  # ctm
    status, out, _ = run(capsys, monkeypatch, *command, tmp_path / "text.txt", "--format", "json")
    [again] = json.loads(out)
    assert status == 0 and again["text"] == text.lower()
    assert [w["start"] for w in again["words"]] == [w["start"] for w in row["words"]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("TO 5", "lacks '5' (U+0035) once, which the text has: leave them out of it (TEXT is no file"),
        ("TOAST " * 40, "the audio is too short for the text: it has 100 frames, and the text needs 239"),
        (" ", "the text has no word"),
    ],
)
def test_a_text_that_does_not_fit_gets_one_line(aligned, capsys, monkeypatch, text, message):
    text = text.replace("S", "I")
    status, out, err = run(capsys, monkeypatch, *aligned[2], text)
    [line] = err.splitlines()
    assert (status, out) == (1, "") and line.startswith("error: ") and message in line
