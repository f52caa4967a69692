"""``espnet-pinch``: sound files of every kind, long ones in chunks, bad ones in one line; what a model holds."""

import contextlib
import fcntl
import io
import json
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly
from small_models import TOKENS, make_model
from transformers import pipeline

import espnet_pinch
from espnet_pinch import cli
from espnet_pinch.asr.decode import recognise, transcribe
from espnet_pinch.asr.upstream import save_ctc_model
from espnet_pinch.bin import run_main
from espnet_pinch.export.long_audio import read_chunks, transcribe_file
from espnet_pinch.export.sparse_file import write_sparse


@pytest.fixture(autouse=True)
def _loud():
    yield
    logging.disable(logging.NOTSET)  # which quiet() has changed


@pytest.fixture
def file(model, tmp_path):
    write_sparse(tmp_path / "m.safetensors", model)
    return tmp_path / "m.safetensors"


def speech(seconds: float, rate: int = 16000) -> np.ndarray:
    """Noise that changes its colour, for a random model to say something about."""
    generator = np.random.default_rng(1)
    n = int(seconds * rate)
    tones = np.sin(np.cumsum(np.repeat(generator.uniform(0.02, 1.5, n // 800 + 1), 800)[:n]))
    return (0.3 * tones + generator.normal(0, 0.1, n)).astype(np.float32)


def run(capsys, monkeypatch, *arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    monkeypatch.setattr(sys, "argv", ["espnet-pinch", *map(str, arguments)])
    try:
        run_main(cli.main)
        status = 0
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def test_transcripts_are_those_of_our_decoder(file, model, tmp_path, capsys, monkeypatch):
    samples = speech(3)
    (tmp_path / "in" / "ü a").mkdir(parents=True)
    for name in ("b.wav", "ü a/a.FLAC"):
        soundfile.write(tmp_path / "in" / name, samples, 16000)
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    read, _ = soundfile.read(tmp_path / "in" / "b.wav", dtype="float32")
    [want] = transcribe(model, [torch.from_numpy(read)])
    assert len(want) > 5
    paths = [tmp_path / "in" / "b.wav", tmp_path / "in" / "ü a" / "a.FLAC"]
    status, out, err = run(capsys, monkeypatch, "transcribe", file, tmp_path / "in")
    assert (status, out, err) == (0, "".join(f"{path}\t{want}\n" for path in paths), "")
    status, out, _ = run(capsys, monkeypatch, "transcribe", file, *paths, "--format", "json")
    rows = json.loads(out)
    words = [row.pop("words") for row in rows]
    assert rows == [{"audio": str(path), "text": want, "seconds": 3.0} for path in paths] and status == 0
    assert [word["word"] for word in words[0]] == want.split() and words[0] == words[1]
    assert set(words[0][0]) == {"word", "start", "end", "confidence"}


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 44099])
@pytest.mark.parametrize("suffix, channels", [("wav", 1), ("flac", 2), ("ogg", 1), ("mp3", 2)])
def test_any_rate_format_and_number_of_channels(tmp_path, rate, suffix, channels):
    if (suffix, rate) == ("mp3", 44099):
        pytest.skip("no such MP3")
    time = np.arange(5 * rate) / rate
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    sides = np.stack([0.6 * tone, 0.2 * tone], 1)[:, :channels] if channels == 2 else 0.4 * tone
    soundfile.write(tmp_path / f"a.{suffix}", sides, rate)
    pieces = list(read_chunks(tmp_path / f"a.{suffix}", 16000, 4, 1))
    assert [(len(piece), first, last) for piece, first, last in pieces][0] == (64000, True, False)
    assert [last for *_, last in pieces] == [False, True] and not pieces[1][1]
    joined = np.concatenate([pieces[0][0][:48000], pieces[1][0][16000:]])
    want = 0.4 * np.sin(2 * np.pi * 440 * np.arange(len(joined)) / 16000)
    assert abs(len(joined) - 80000) <= 1
    assert np.abs(joined - want)[800:-800].max() < 0.1
    whole = soundfile.read(tmp_path / f"a.{suffix}", dtype="float32", always_2d=True)[0].mean(1)
    divisor = np.gcd(rate, 16000)
    assert np.abs(joined - resample_poly(whole, 16000 // divisor, rate // divisor)).max() < 1e-4  # no seams


def test_a_long_file_is_joined_as_transformers_joins_it(model, tmp_path):
    samples = speech(23.7)
    soundfile.write(tmp_path / "long.wav", samples, 16000, subtype="FLOAT")
    save_ctc_model(tmp_path, model.frontend.upstream, model.ctc.ctc_lo, TOKENS, model.frontend.processing)
    theirs = pipeline("automatic-speech-recognition", model=str(tmp_path))
    for chunk, stride in ((8, 1), (9, 4), (7, 2)):
        ours = transcribe_file(model, tmp_path / "long.wav", chunk, stride)
        text = theirs(samples.copy(), chunk_length_s=chunk, stride_length_s=stride)["text"]
        for token in ("<s>", "</s>", "<unk>"):
            text = text.replace(token, "")
        assert ours.text == " ".join(text.split()) and len(ours.text) > 50
        assert ours.seconds == pytest.approx(23.7)


@pytest.mark.parametrize("seconds", [8.0, 14.0, 20.0, 20.3, 14.01])
def test_a_model_that_looks_at_its_neighbourhood_alone_sees_no_chunks(tiny_config, tmp_path, seconds):
    model = make_model({**tiny_config, "feat_extract_norm": "layer"})
    object.__setattr__(model.frontend.processing, "do_normalize", False)
    with torch.no_grad():
        for name, module in model.frontend.upstream.named_modules():
            if name.endswith("attention.out_proj"):  # what is left looks at the frames that the convolutions see
                module.weight.zero_()
    samples = speech(seconds)
    soundfile.write(tmp_path / "long.wav", samples, 16000, subtype="FLOAT")
    [whole] = recognise(model, [torch.from_numpy(samples)])
    got = transcribe_file(model, tmp_path / "long.wav", 8, 1)
    assert got.text == whole.text and len(got.text) > 30 and got.seconds == pytest.approx(seconds)
    for one, other in zip(got.words, whole.words, strict=True):
        assert (one.start, one.end) == pytest.approx((other.start, other.end))
        assert one.confidence == pytest.approx(other.confidence, rel=1e-3)


def test_a_file_that_does_not_say_how_long_it_is(model, tmp_path):
    soundfile.write(tmp_path / "a.flac", speech(3), 16000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # the number of samples, 36 bits, as an encoder that writes to a pipe leaves it
    data[22:26] = bytes(4)
    (tmp_path / "b.flac").write_bytes(data)
    one, other = (transcribe_file(model, tmp_path / name) for name in ("b.flac", "a.flac"))
    assert one.words == other.words and one.text and one.seconds == other.seconds


def bad_files(folder) -> dict[str, str]:
    """Write files that are no speech; ``{name: what is said about it}``."""
    samples = speech(1)
    soundfile.write(folder / "empty.wav", samples[:0], 16000)
    soundfile.write(folder / "short.wav", samples[:50], 16000)
    soundfile.write(folder / "nan.wav", np.where(np.arange(16000) == 5, np.nan, samples), 16000, subtype="FLOAT")
    soundfile.write(folder / "whole.flac", samples, 16000)
    (folder / "cut.flac").write_bytes((folder / "whole.flac").read_bytes()[:9000])
    (folder / "whole.flac").unlink()
    (folder / "text.wav").write_text("hello " * 100)
    (folder / "zero.wav").touch()
    (folder / "link.wav").symlink_to("/nowhere.wav")
    return {
        "cut.flac": "flac decoder lost sync",
        "empty.wav": "0 samples at 16000 Hz are too few for one frame",
        "link.wav": "does not exist (it is a link to /nowhere.wav, which does not exist)",
        "nan.wav": "has samples that are not finite",
        "short.wav": "50 samples at 16000 Hz are too few for one frame",
        "text.wav": "Format not recognised",
        "zero.wav": "Format not recognised",
    }


def test_bad_audio_is_one_line_and_the_others_go_on(file, tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "none").mkdir()
    said = bad_files(tmp_path / "in")
    soundfile.write(tmp_path / "in" / "good.wav", speech(1), 16000)
    arguments = ("transcribe", file, tmp_path / "gone.wav", tmp_path / "none", tmp_path / "in")
    status, out, err = run(capsys, monkeypatch, *arguments)
    assert status == 1
    assert [line.split("\t")[0] for line in out.splitlines()] == [f"{tmp_path}/in/good.wav"]
    lines = err.splitlines()
    assert lines[0] == f"error: {tmp_path}/gone.wav: does not exist"
    assert lines[1] == f"error: {tmp_path}/none: no sound file in this folder"
    assert lines.pop() == "error: 1 of 8 files were transcribed; the others are named above"
    for line, (name, reason) in zip(lines[2:], said.items(), strict=True):
        assert line.startswith(f"error: {tmp_path}/in/{name}: ") and reason in line
    status, out, _ = run(capsys, monkeypatch, *arguments, "--format", "json")
    assert status == 1 and [row["audio"] for row in json.loads(out)] == [f"{tmp_path}/in/good.wav"]
    status, out, _ = run(capsys, monkeypatch, "transcribe", file, tmp_path / "gone.wav", "--format", "json")
    assert status == 1 and json.loads(out) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["transcribe", "nowhere", "a.wav"], "nowhere does not exist"),
        (["info", "."], ". holds no model"),
        (["info", "text"], "text: Error while deserializing header"),
        (["transcribe", "m.safetensors", "a.wav", "--chunk", "10"], "--chunk 10 must be more than twice --stride 5"),
        (["transcribe", "m.safetensors", "a.wav", "--stride", "0"], "--stride 0, which is at least 1"),
        (["transcribe", "m.safetensors", "a.wav", "--device", "cuda"], "torch sees no GPU here"),
    ],
)
def test_a_wrong_call_gets_one_line(file, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "text").write_text("hello " * 10)
    status, out, err = run(capsys, monkeypatch, *arguments)
    [line] = err.splitlines()
    assert status == 1 and line.startswith("error: ") and message in line and not out


def test_info_says_what_is_in_a_model(file, model, tmp_path, capsys, monkeypatch):
    status, out, err = run(capsys, monkeypatch, "info", file, "--format", "json")
    figures = json.loads(out)
    assert status == 0 and err == "" and figures["bytes"] == file.stat().st_size
    zeros = sum(int((layer.weight == 0).sum()) for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    assert figures["pruned"] == zeros and figures["sparsity"] == zeros / 3584
    assert figures["params_kept"] == sum(p.numel() for p in model.parameters()) - zeros
    assert figures["sparse_file"]["entropy_bound"] < figures["bytes"] and len(figures["layers"]) == 12
    weights = figures["sparse_file"]["weights"]
    assert len(weights) == 18 and weights["lm_head.weight"]["bits"] == 32
    save_ctc_model(tmp_path / "hf", model.frontend.upstream, model.ctc.ctc_lo, TOKENS, model.frontend.processing)
    for path, kind in ((file, "sparse file"), (tmp_path / "hf", "Hugging Face folder")):
        _, out, err = run(capsys, monkeypatch, "info", path)
        assert out.splitlines()[0] == f"{path}: {kind}, wav2vec2, 11 tokens" and err == ""
        assert f"({zeros:,} of 3,584 gated weights)" in out and "encoder.layers.1.feed_forward.output_dense" in out
        assert bool(re.search(r"output_dense.weight +16 x 24 +84.90 %  32 bits +\d+ bytes, bound", out)) == (
            path == file
        )


def test_the_program_prints_nothing_but_transcripts(file, tmp_path):
    soundfile.write(tmp_path / "a.wav", speech(1), 16000)
    command = [sys.executable, "-m", "espnet_pinch", "transcribe", str(file), str(tmp_path / "a.wav")]
    done = subprocess.run(command, capture_output=True, text=True)
    [want] = transcribe(espnet_pinch.load(file), [torch.from_numpy(soundfile.read(tmp_path / "a.wav", dtype="f4")[0])])
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{tmp_path}/a.wav\t{want}\n")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    again = subprocess.run(
        [*command, "--chunk", "3", "--stride", "1"], stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    assert again.stdout == done.stdout and "| 1/1 s of audio [" in os.read(ours, 10000).decode()


@contextlib.contextmanager
def standard_input(feed):
    """A pipe as standard input, into which ``feed(write)`` writes from another thread."""
    out, into = os.pipe()
    saved = os.dup(0)
    os.dup2(out, 0)
    os.close(out)

    def run_feed():
        with os.fdopen(into, "wb", buffering=0) as pipe:
            feed(pipe.write)

    thread = threading.Thread(target=run_feed)
    thread.start()
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        thread.join()


def endless_wav(samples: np.ndarray, rate: int) -> bytes:
    """As a program writes it that cannot go back to state the length."""
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format="WAV", subtype="PCM_16")
    whole = data.getvalue()
    return whole[:4] + b"\xff" * 4 + whole[8:40] + b"\xff" * 4 + whole[44:]


def test_a_stream_is_transcribed_while_it_grows(file, tmp_path, capsys, monkeypatch):
    sound = endless_wav(speech(30, 8000), 8000)
    half, read = len(sound) // 2, []
    go_on = threading.Event()

    def feed(write):
        write(sound[:half])
        read.append(go_on.wait(60))  # the second half comes when words of the first have been printed
        write(sound[half:])

    def write_now(text):
        written.append(text)
        go_on.set()

    written: list[str] = []
    monkeypatch.setattr("espnet_pinch.commands.transcribe.write_now", write_now)
    with standard_input(feed):
        status, _, err = run(capsys, monkeypatch, "transcribe", file, "-", "--follow", "--format", "ctm")
    assert status == 0 and read == [True] and "at most 8 s after they are said" in err
    rows = [line.split() for text in written for line in text.splitlines()]
    starts = [float(row[2]) for row in rows]
    assert starts == sorted(starts) and starts[-1] > 15 and {row[0] for row in rows} == {"-"}


@pytest.mark.parametrize(
    "data, arguments, message",
    [
        (b"hello", ["-"], "-: Format not recognised; what is followed must be WAV"),
        (b"", ["-"], "-: .*; what is followed must be WAV"),
        (b"", ["a.wav"], "--follow takes - alone, without --out, and a format of: text, json, ctm"),
        (b"", ["-", "--out", "x"], "--follow takes - alone"),
        (b"", ["-", "--format", "srt"], "--follow takes - alone"),
        (b"", ["-", "--chunk", "4"], "--chunk 4 must be more than twice --stride 2"),
        (b"", ["-", "--chunk", "0"], "--chunk 0 must be more than twice --stride 2"),
    ],
)
def test_a_stream_that_cannot_be_followed_gets_one_line(data, arguments, message, file, capsys, monkeypatch):
    with standard_input(lambda write: write(data)):
        status, out, err = run(capsys, monkeypatch, "transcribe", file, *arguments, "--follow")
    assert status == 1 and out == "" and re.search(f"^error: {message}", err.splitlines()[-1])


def test_subtitles_of_several_files_go_to_a_folder(file, tmp_path, capsys, monkeypatch):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.wav", "deep/a.flac"):
        soundfile.write(tmp_path / "in" / name, speech(2), 16000)
    command = ("transcribe", file, tmp_path / "in", "--format", "srt")
    status, out, err = run(capsys, monkeypatch, *command)
    assert (status, out) == (1, "") and "a file of the format srt holds one recording, not 2: give --out DIR" in err
    status, out, err = run(capsys, monkeypatch, *command, "--out", tmp_path / "out")
    assert (status, out, err) == (0, "", "")
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.srt", "deep/a.srt"]
    _, alone, _ = run(capsys, monkeypatch, "transcribe", file, tmp_path / "in" / "a.wav", "--format", "srt")
    assert (tmp_path / "out" / "a.srt").read_text() == alone and " --> " in alone
    (tmp_path / "in" / "a.flac").symlink_to(tmp_path / "in" / "a.wav")
    status, out, err = run(capsys, monkeypatch, *command, "--out", tmp_path / "other")
    assert status == 1 and "/other/a.srt would be of both" in err and not (tmp_path / "other").exists()
