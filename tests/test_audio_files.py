"""Odd sound files: read whole or refused in one line; nothing of a folder is left out in silence."""

import io
import json
import os
import resource
import struct
import threading

import numpy as np
import pytest
import soundfile
from test_cli import _loud, file, run, speech  # noqa: F401  (_loud, file: fixtures)
from test_hostile import chapter

from espnet_pinch.data import audio as data_audio
from espnet_pinch.data.dump import pack_audio, write_dump
from espnet_pinch.data.kaldi_dir import read_data_dir
from espnet_pinch.data.librispeech import read_subset
from espnet_pinch.errors import UserError
from espnet_pinch.export.long_audio import read_chunks
from espnet_pinch.sound import read
from espnet_pinch.sound.find import find_audio
from espnet_pinch.sound.mpeg import _frame
from espnet_pinch.sound.read import open_sound, seconds_of
from espnet_pinch.sound.resample import resample

SAMPLES = speech(2)
ID3V1 = b"TAG" + b"x" * 125
ID3V2 = b"ID3\x03\0\0\0\0\0\x14" + b"x" * 20
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 32 + 12, 1, 0) + bytes(8) + b"item" * 3
APE += b"APETAGEX" + struct.pack("<IIII", 2000, 32 + 12, 1, 0)[:-4] + struct.pack("<I", 1 << 31) + bytes(8)
LIST = b"LIST" + struct.pack("<I", 12) + b"INFOISFTabcd"


def encoded(
    kind: str, subtype: str | None = None, samples: np.ndarray = SAMPLES, rate: int = 16000, **options
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype, **options)
    return buffer.getvalue()


def mp3(rate: int = 16000, mode: str = "VARIABLE", info: bool = False) -> bytes:
    """An MP3 file, without the frame that states its length unless ``info``."""
    samples = np.repeat(SAMPLES, rate // 16000)
    data = encoded("MP3", "MPEG_LAYER_III", samples, rate, bitrate_mode=mode, compression_level=0.5)
    return data if info else data[_frame(data[:64]).size :]


def understated(data: bytes) -> bytes:
    """An MP3 file with one more frame than it states."""
    at = data.index(b"Xing") + 8
    return data[:at] + (int.from_bytes(data[at : at + 4], "big") - 1).to_bytes(4, "big") + data[at + 4 :]


def frames(data: bytes) -> int:
    """Samples in the frames of an MP3 file without tags."""
    at = samples = 0
    while at < len(data):
        frame = _frame(data[at : at + 64])
        at, samples = at + frame.size, samples + frame.samples
    return samples


def wav(stated: int | None = None, data: bytes | None = None, rate: int = 16000, channels: int = 1) -> bytes:
    data = (SAMPLES * 32767).astype("<i2").tobytes() if data is None else data
    size = len(data) if stated is None else stated
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate & 0xFFFFFFFF, 2 * channels & 0xFFFF, 16)
    head = b"RIFF" + struct.pack("<I", min(size + 36, 0xFFFFFFFF)) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", size) + data


def samples_in(path) -> np.ndarray:
    with open_sound(path, 16000) as (_, blocks):
        return np.concatenate([*blocks] or [np.empty(0)])


def put(folder, name: str, data: bytes):
    (folder / name).write_bytes(data)
    return folder / name


def no_length(flac: bytes) -> bytes:
    """What an encoder that writes to a pipe leaves: neither number of samples nor MD5."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(20) + flac[42:]


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_an_mp3_that_does_not_state_its_length_is_read_whole(tmp_path, rate, mode):
    data = mp3(rate, mode)
    for name, more in {"bare": data, "id3v1": data + ID3V1, "id3v2": ID3V2 + data, "ape": data + APE + ID3V1}.items():
        path = put(tmp_path, f"{name}.mp3", more)
        assert len(samples_in(path)) == frames(data) > 2 * rate and seconds_of(path) == frames(data) / rate
    assert len(samples_in(put(tmp_path, "late.mp3", data[30:]))) == frames(data) - _frame(data[:64]).samples


def test_joined_files_are_read_to_the_last(tmp_path):
    ogg, opus, flac, other = encoded("OGG"), encoded("OGG", "OPUS"), encoded("FLAC"), encoded("AU")
    bare, stated = mp3(), mp3(info=True)
    for name, data, want in (
        ("a.ogg", ogg * 3, 96000),
        ("b.opus", opus + opus, 64000),
        ("c.flac", flac + flac, 64000),
        ("c2.flac", ID3V2 + flac + ID3V2 + no_length(flac) + ID3V1, 64000),
        ("d.wav", wav() + wav() + LIST, 64000),
        ("e.au", other + other, 64000),
        ("f.mp3", bare + bare, 2 * frames(bare)),
        ("g.mp3", stated + ID3V1 + ID3V2 + stated, 64000),
        ("h.mp3", stated + bare, 32000 + frames(bare)),
        ("j.mp3", understated(stated), 32000),
        ("k.mp3", bare + b"\n", frames(bare)),
        ("l.ogg", ogg + bytes(300), 32000),
        ("m.ogg", ogg + b"\n", 32000),
        ("i.mp3", bare + stated, 32000 + frames(bare)),
    ):
        assert len(samples_in(put(tmp_path, name, data))) == want, name
    put(tmp_path, "z.ogg", ogg + encoded("OGG", rate=8000))
    with pytest.raises(ValueError, match="z.ogg: it is joined from files of 16000 and 8000 Hz"):
        samples_in(tmp_path / "z.ogg")


WHOLE = {
    "wav": lambda: wav(),
    "float.wav": lambda: encoded("WAV", "FLOAT"),
    "adpcm.wav": lambda: encoded("WAV", "MS_ADPCM"),
    "rf64": lambda: encoded("RF64"),
    "aiff": lambda: encoded("AIFF"),
    "au": lambda: encoded("AU"),
    "avr": lambda: encoded("AVR"),
    "sph": lambda: encoded("NIST"),
    "svx": lambda: encoded("SVX"),
    "caf": lambda: encoded("CAF"),
    "w64": lambda: encoded("W64"),
    "ogg": lambda: encoded("OGG"),
    "opus": lambda: encoded("OGG", "OPUS"),
    "flac": lambda: encoded("FLAC"),
    "mp3": lambda: mp3(info=True),
    "bare.mp3": lambda: mp3(mode="CONSTANT")[:-1],
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_that_is_cut_is_an_error_wherever_it_is_cut(tmp_path, kind):
    data = WHOLE[kind]()
    if kind != "bare.mp3":  # which is cut already: between its frames no one can see it
        read = samples_in(put(tmp_path, f"a.{kind}", data))
        assert 32000 <= len(read) < 33100
        for tag in {"mp3": (ID3V1, APE), "flac": (ID3V1,), "ogg": (ID3V1,), "wav": (LIST, ID3V1)}.get(kind, ()):
            assert np.array_equal(samples_in(put(tmp_path, f"b.{kind}", data + tag)), read)
    cuts = [len(data)] if kind == "bare.mp3" else [len(data) // 3, len(data) * 2 // 3, len(data) - 5]
    for cut in cuts:
        path = put(tmp_path, f"cut.{kind}", data[:cut])
        with pytest.raises((ValueError, OSError), match="cut"):
            samples_in(path)


@pytest.mark.parametrize("stated", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFDB, 1 << 31])
def test_a_wav_as_pipes_and_killed_recorders_leave_it_is_read_to_its_end(tmp_path, stated):
    assert len(samples_in(put(tmp_path, "a.wav", wav(stated)))) == 32000
    assert len(samples_in(put(tmp_path, "b.wav", ID3V2 + wav(stated)))) == 32000


def test_what_is_no_pipes_length_is_cut_and_samples_beyond_the_stated_are_an_error(tmp_path):
    assert len(samples_in(put(tmp_path, "empty.wav", wav(data=b"") + LIST))) == 0
    with pytest.raises(ValueError, match="cut short: 64000 of its 3000000000 bytes of samples are there"):
        samples_in(put(tmp_path, "a.wav", wav(3_000_000_000)))
    with pytest.raises(ValueError, match="bytes after its samples"):
        samples_in(put(tmp_path, "b.wav", wav(20000)))


def test_damage_within_ogg_and_mp3_is_an_error(tmp_path):
    ogg, bare = encoded("OGG"), mp3()
    middle = ogg.index(b"OggS", len(ogg) // 2)
    after = ogg.index(b"OggS", middle + 1) if b"OggS" in ogg[middle + 1 :] else len(ogg)
    damaged = bytearray(ogg)
    damaged[middle + 100] ^= 1
    for name, data, reason in (
        ("a.ogg", bytes(damaged), "the checksum of the Ogg page"),
        ("b.ogg", ogg[:middle] + ogg[after:], "missing|cut short"),
        ("c.mp3", bare + b"hello" * 100 + bare, "damaged at byte"),
    ):
        with pytest.raises(ValueError, match=reason):
            samples_in(put(tmp_path, name, data))


@pytest.mark.parametrize("rate, channels", [(160_000_000, 1), (2147483647, 1), (1, 1), (999, 1), (16000, 1000)])
def test_memory_follows_what_a_file_holds_not_what_it_claims(tmp_path, rate, channels):
    path = put(tmp_path, "a.wav", wav(rate=rate, channels=channels))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if channels == 1:
        assert seconds_of(path) == 0
        with pytest.raises(ValueError, match=f"a.wav: states a rate of {rate} Hz"):
            list(read_chunks(path, 16000, 30, 5))
    else:
        [(samples, *_)] = read_chunks(path, 16000, 100_000_000, 5)
        assert len(samples) == 32
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_ugly_rates_keep_length_and_sound():
    for rate in (44099, 767_999, 384_001, 1009):
        time = np.arange(rate // 2)
        tone = np.sin(2 * np.pi * 200 * time / rate).astype(np.float32)
        new = resample(tone, rate, 16000)
        want = np.sin(2 * np.pi * 200 * np.arange(len(new)) / 16000)
        assert len(new) == -(-len(tone) * 16000 // rate) and np.abs(new - want)[800:-800].max() < 0.02


def test_a_folder_is_read_to_its_bottom_and_what_is_left_out_is_said(file, tmp_path, capsys, monkeypatch):  # noqa: F811
    flac, root, names = encoded("FLAC"), tmp_path / "in", ["a.WAVE", "b.sph", "c.wv1", "d.snd", "e.mp2", "noending"]
    (root / "sub").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    for name in names:
        put(root, name, flac)
    put(tmp_path / "far", "f.flac", flac)
    put(root / "sub", "g.flac", flac)
    (root / "sub" / "up").symlink_to("..")
    (root / "A").symlink_to("sub")
    (root / "linked").symlink_to(tmp_path / "far")
    put(root, "._a.wav", b"\0\5\x16\7" + bytes(40))
    put(root, "notes.txt", b"no sound")
    put(root, "h.raw", bytes(3200))
    os.mkfifo(root / "i.wav")
    (root / "j.wav").symlink_to("j.wav")
    put(root, "k.m4a", b"\0\0\0\x20ftypM4A " + bytes(40))
    monkeypatch.setenv("PATH", "/nowhere")
    good = sorted([*names, "linked/f.flac", "sub/g.flac"])
    status, out, err = run(capsys, monkeypatch, "transcribe", file, root)
    assert status == 1 and [line.split("\t")[0] for line in out.splitlines()] == [f"{root}/{name}" for name in good]
    note, *errors, last = err.splitlines()
    assert note == f"note: {root}: 1 files ._* of macOS, which hold no sound, are skipped"
    assert [line.split(": ")[1].removeprefix(f"{root}/") for line in errors] == ["h.raw", "i.wav", "j.wav", "k.m4a"]
    assert "is a named pipe" in errors[1] and "install it" in errors[3] and "8 of 12 files" in last
    for name in ("h.raw", "i.wav", "k.m4a"):
        status, out, err = run(capsys, monkeypatch, "transcribe", file, root / name)
        assert status == 1 and len(err.splitlines()) == 1 and name in err and not out


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    put(tmp_path, "a.flac", encoded("FLAC"))
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("shut"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_audio(tmp_path)
    assert found.files == [tmp_path / "a.flac"]
    assert found.problems == [f"{tmp_path}/shut: Permission denied; the files in this folder are left out"]


def test_names_that_are_no_utf8_or_hold_tabs_stop_nothing(file, tmp_path, capsys, monkeypatch):  # noqa: F811
    for name in (b"\xff.flac", b"a\tb\nc.flac", b"z.flac"):
        with open(os.fsencode(tmp_path) + b"/in_" + name, "wb") as new:
            new.write(encoded("FLAC"))
    with open(os.fsencode(tmp_path) + b"/in_\xfe.wav", "wb"):
        pass
    paths = sorted(p for p in find_audio(tmp_path).files if p.name.startswith("in_"))
    status, out, err = run(capsys, monkeypatch, "transcribe", file, *paths)
    shown = [line.split("\t")[0].removeprefix(f"{tmp_path}/in_") for line in out.splitlines()]
    assert sorted(shown) == [r"\xff.flac", r"a\tb\nc.flac", "z.flac"] and status == 1 and r"in_\xfe.wav: " in err
    _, out, _ = run(capsys, monkeypatch, "transcribe", file, *paths, "--format", "json")
    rows = json.loads(out.encode())
    assert sorted(row["audio"].rpartition("/in_")[2] for row in rows) == [r"\xff.flac", "a\tb\nc.flac", "z.flac"]


def test_standard_input_and_other_descriptors_are_read_and_their_size_is_bounded(tmp_path, monkeypatch):
    data = encoded("FLAC")

    def piped():
        ours, theirs = os.pipe()
        writer = threading.Thread(target=lambda: (os.write(theirs, data[:60000]), os.close(theirs)))
        writer.start()
        return ours, writer

    for limit, refused in ((1 << 20, False), (1000, True)):
        monkeypatch.setattr(read, "MOST_PIPED", limit)
        ours, writer = piped()
        try:
            if refused:
                with pytest.raises(OSError, match=f"/dev/fd/{ours}: the pipe has more than"):
                    samples_in(f"/dev/fd/{ours}")
            else:
                assert len(samples_in(f"/dev/fd/{ours}")) == 32000
        finally:
            writer.join()
            os.close(ours)
    with open(put(tmp_path, "a.flac", data), "rb") as whole:
        whole.read(10)
        assert len(samples_in(f"/dev/fd/{whole.fileno()}")) == 32000
    with pytest.raises(OSError, match="is a device"):
        samples_in("/dev/zero")


@pytest.mark.parametrize(
    "says, status, reason",
    [
        ("", 0, None),
        ("[mov @ 0x1] [error] moov atom not found", 1, "ffmpeg: moov atom not found"),
        ("[aac @ 0x1] [error] partial file", 0, "ffmpeg: partial file"),
        ("[info]   Duration: 00:00:09.00, start: 0", 0, "cut short: 2.0 of its 9.0 s"),
        ("[info]   Duration: 00:00:02.10, start: 0", 0, None),
        ("", 3, "exit status 3"),
    ],
)
def test_what_ffmpeg_reads_is_taken_and_what_it_complains_of_is_an_error(tmp_path, monkeypatch, says, status, reason):
    put(tmp_path, "samples", SAMPLES.tobytes())
    program = f"#!/bin/sh\n/bin/cat '{tmp_path}/samples'\necho '{says}' >&2\nexit {status}\n"
    put(tmp_path, "ffmpeg", program.encode()).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    path = put(tmp_path, "a.m4a", b"\0\0\0\x20ftypM4A " + bytes(40))
    if reason:
        with pytest.raises(ValueError, match=f"a.m4a: .*{reason}"):
            samples_in(path)
    else:
        assert np.array_equal(samples_in(path), SAMPLES)


def test_a_flac_of_unstated_length_is_counted_packed_and_read(tmp_path):
    folder = chapter(tmp_path, b"19-198-0 A B\n", ["19-198-0"])
    audio = next(folder.glob("*.flac"))
    whole = soundfile.read(audio, dtype="int16")[0]
    audio.write_bytes(no_length(audio.read_bytes()))
    [row] = read_subset(tmp_path, "dev-clean")
    assert row.samples == len(whole)
    assert np.array_equal(data_audio.read_audio(row.audio), (whole / 32768).astype(np.float32))
    [packed] = pack_audio([row], tmp_path / "packed")
    assert np.array_equal(data_audio.read_audio(packed.audio), (whole / 32768).astype(np.float32))
    write_dump(tmp_path / "dump", [row], None)
    [copied] = read_data_dir(tmp_path / "dump")  # ESPnet reads it so
    assert np.array_equal(soundfile.read(copied.audio, dtype="int16")[0], whole) and copied.audio != row.audio
    audio.write_bytes(audio.read_bytes()[:-9])
    with pytest.raises(ValueError, match=str(audio)):
        read_subset(tmp_path, "dev-clean")


def sphere(**fields):
    rows = {"sample_count": len(SAMPLES), "channel_count": 1, "sample_n_bytes": 2, "sample_rate": 16000} | fields
    text = "NIST_1A\n   1024\n" + "".join(f"{name} -i {value}\n" for name, value in rows.items())
    text += "sample_byte_format -s2 01\nsample_coding -s3 pcm\nend_head\n"
    return text.encode().ljust(1024, b" ") + (SAMPLES * 32767).astype("<i2").tobytes()


@pytest.mark.parametrize("fields", [{"sample_count": -512}, {"sample_n_bytes": -2}, {"sample_count": -100}])
def test_a_negative_size_is_an_error_and_does_not_hang(tmp_path, fields):
    assert len(samples_in(put(tmp_path, "whole.sph", sphere()))) == len(SAMPLES)
    with pytest.raises(UserError, match="a.sph: damaged: its SPHERE header states a negative size"):
        samples_in(put(tmp_path, "a.sph", sphere(**fields)))


def test_joined_mpeg_4_files_and_avi_are_left_to_ffmpeg_or_refused(tmp_path, monkeypatch):
    put(tmp_path, "samples", SAMPLES.tobytes())
    put(tmp_path, "ffmpeg", f"#!/bin/sh\n/bin/cat '{tmp_path}/samples'\n".encode()).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    one = b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\x0cmdat\1\2\3\4"
    assert len(samples_in(put(tmp_path, "a.m4a", one))) == len(SAMPLES)
    with pytest.raises(UserError, match="b.m4a: files were joined to it"):
        samples_in(put(tmp_path, "b.m4a", one + one))
    assert len(samples_in(put(tmp_path, "a.avi", b"RIFF\0\1\0\0AVI LIST" + bytes(300)))) == len(SAMPLES)
