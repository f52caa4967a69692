"""Read containers that libsndfile does not read, such as MPEG-4 and Matroska, with the program ffmpeg."""

import contextlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from espnet_pinch.errors import UserError
from espnet_pinch.sound.tags import read_at

ENDINGS = {
    f".{name}"
    for name in (
        "m4a m4b m4p m4r mp4 m4v mov qt 3gp 3gpp 3g2 aac adts f4a webm weba mkv mka mk3d wma wmv asf avi flv f4v "
        "mpg mpeg vob ts mts m2ts ogv ogx ogm spx amr awb ac3 eac3 dts mlp thd ra rm rmvb ape tta tak wv mpc mp+ "
        "dsf dff qcp gsm shn alac divx xwma aptx sbc g722 nut mxf dss ofr oma aa3 loas"
    ).split()
}
_MAGICS = (  # (position, bytes) in files of these kinds, for files with another name, such as standard input
    (4, b"ftyp"),
    (8, b"AVI "),
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (0, b"\x30\x26\xb2\x75"),  # ASF, WMA
    (0, b"#!AMR"),
    (0, b"\xff\xf1"),  # AAC in ADTS
    (0, b"\xff\xf9"),
    (0, b"wvpk"),
    (0, b"\x0b\x77"),  # AC-3
)
_DAMAGE = "(?i:corrupt|mismatch|truncat|incomplete|premature|discontinuity|missing|partial)"  # in a warning of ffmpeg
_BLOCK = 1 << 18  # bytes
_SHORTER = 0.05  # fraction of the stated length (at least 1 s) that may be missing: containers round it up


def has_ending(path: Path) -> bool:
    """Whether the file name has an ending of the kinds that ffmpeg reads and libsndfile does not."""
    return path.suffix.lower() in ENDINGS


def has_magic(head: bytes) -> bool:
    """Whether a file begins like those kinds, whatever its name."""
    return any(head[at : at + len(magic)] == magic for at, magic in _MAGICS)


def ffmpeg_blocks(file: BinaryIO, rate: int, channel: int | None = None) -> Iterator[np.ndarray]:
    """The first sound track of a file in blocks (samples,), resampled to ``rate`` Hz.

    Args:
        channel: the one to read, from 0; None mixes all.

    Raises:
        UserError: ffmpeg is missing or reports a problem with the file, or another file was joined to it.
    """
    if _is_joined(file):
        raise UserError("files were joined to it, but ffmpeg reads only the first one: split the file")
    program = shutil.which("ffmpeg")
    if not program:
        raise UserError("left out: ffmpeg reads files of this kind, and it is not on the PATH: install it")
    # Local files only: a playlist in the file could name addresses on the network.
    source = ["-protocol_whitelist", "file", "-i", f"file:/dev/fd/{file.fileno()}"]
    mix = ["-ac", "1"] if channel is None else ["-af", f"pan=mono|c0=c{channel}"]
    sink = ["-map", "0:a:0", *mix, "-ar", str(rate), "-f", "f32le", "pipe:1"]
    command = [program, "-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info", *source, *sink]
    with tempfile.TemporaryFile() as said:
        with _running(command, file.fileno(), said) as process:
            samples = 0
            assert process.stdout  # a pipe was asked for
            while data := process.stdout.read(_BLOCK):
                samples += len(data) // 4
                yield np.frombuffer(data[: len(data) // 4 * 4], "<f4")
            status = process.wait()
        said.seek(0)
        problem = _problem(said.read(1 << 20).decode("utf-8", "replace"), status, samples / rate)
        if problem:
            raise UserError(f"ffmpeg: {problem}")


def _is_joined(file: BinaryIO) -> bool:
    """Whether a second MPEG-4 file begins after the boxes of the first."""
    end, at, begun = os.fstat(file.fileno()).st_size, 0, 0
    while read_at(file, 4, 4) == b"ftyp" and at + 8 <= end:
        size, name = struct.unpack(">I4s", read_at(file, at, 8))
        begun += name == b"ftyp"
        size = int.from_bytes(read_at(file, at + 8, 8), "big") if size == 1 else size
        if size < 8:  # 0: the box goes to the end of the file
            break
        at += size
    return begun > 1


@contextlib.contextmanager
def _running(command: list[str], descriptor: int, said) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, pass_fds=[descriptor]
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # does nothing if it has ended


def _problem(said: str, status: int, seconds: float) -> str | None:
    """What is wrong with a file, from ffmpeg's messages, because most damage leaves exit status 0; None if nothing."""
    wrong = re.search(r"\[(?:error|fatal|panic)\] (.+)", said) or re.search(rf"\[warning\] (.*{_DAMAGE}.*)", said)
    if wrong or status:
        return wrong[1].strip() if wrong else f"exit status {status}"
    length = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", said)
    if length and "Video:" not in said:  # the video may be longer than the sound
        stated = 3600 * int(length[1]) + 60 * int(length[2]) + float(length[3])
        if seconds < stated - max(1.0, _SHORTER * stated):
            return f"cut short: {seconds:.1f} of its {stated:.1f} s are there"
    return None
