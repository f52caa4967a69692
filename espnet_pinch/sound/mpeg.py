"""MPEG audio (MP3, MP2, MP1), frame by frame. libsndfile guesses the length of a file without a Xing or Info frame."""

import dataclasses
from typing import BinaryIO

from espnet_pinch.errors import UserError
from espnet_pinch.sound.pieces import Part
from espnet_pinch.sound.tags import SLACK, read_at, tag_length

ENDINGS = (".mp1", ".mp2", ".mp3", ".mpa", ".mpga", ".m1a", ".m2a")
_KBITS = {  # (whether MPEG-1, layer): kilobits per second for the header's index, from 1
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_KBITS[False, 3] = _KBITS[False, 2]
_RATES = (44100, 48000, 32000)  # Hz, of MPEG-1; halved in MPEG-2, and again in MPEG-2.5
_HEAD = 64  # bytes of a frame that are parsed: header, side information, the beginning of a Xing frame
_LEAD = 1 << 16  # most bytes before the first frame: the recording of a stream may begin within a frame
_CLAIM = 1 << 40  # bytes: so large that libsndfile's guess of the number of samples is no limit


@dataclasses.dataclass(frozen=True)
class _Frame:
    size: int  # bytes
    samples: int
    kind: tuple[int, int]  # version and layer, rate: they cannot change within a part
    side: int  # bytes of side information after the header; -1 if the layer has none


@dataclasses.dataclass(frozen=True)
class _Info:
    """The position of a Xing, Info or VBRI frame in the file, and of its two numbers in the frame.

    Attributes:
        size_at: None in a VBRI frame, which libsndfile decodes as sound; 0 if the frame does not state the number.
    """

    start: int
    end: int
    frames_at: int = 0
    size_at: int | None = None


@dataclasses.dataclass
class _Run:
    """Frames that belong together, and what a Xing, Info or VBRI frame before them states."""

    kind: tuple[int, int]
    ranges: list[list[int]] = dataclasses.field(default_factory=list)
    count: int = 0
    samples: int = 0
    frames: int | None = None  # stated
    size: int | None = None  # bytes, stated
    info: _Info | None = None

    def add(self, at: int, frame: _Frame) -> None:
        if self.ranges and self.ranges[-1][1] == at:
            self.ranges[-1][1] += frame.size
        else:
            self.ranges.append([at, at + frame.size])
        self.count, self.samples = self.count + 1, self.samples + frame.samples

    def all_bytes(self) -> bool:
        there = sum(end - start for start, end in self.ranges) + (self.info.end - self.info.start if self.info else 0)
        return self.size is not None and there >= self.size


def is_mpeg(file: BinaryIO, start: int) -> bool:
    """Whether two frames follow each other from ``start``."""
    return _begins(read_at(file, start, _HEAD), lambda size: read_at(file, start + size, 4))


def mpeg_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """The parts of a file between two positions, one for each file that was joined into it, without their tags.

    A part keeps its Xing or Info frame, which tells libsndfile how many samples the encoder has added.

    Raises:
        UserError: the file ends within a frame, has no or fewer frames than it states, or has other bytes between them.
    """
    runs: list[_Run] = []
    at = start
    while at < end:
        head = read_at(file, at, min(_HEAD, end - at))
        frame = _frame(head)
        if frame is None:
            skipped = tag_length(file, at, end) or (0 if runs else _lead(file, at, end))
            if not skipped and runs and head[0] != 0xFF and end - at <= SLACK:
                break
            if not skipped:
                cut = len(head) < 4 and head[0] == 0xFF
                raise UserError("cut short: its last frame is not whole" if cut else f"damaged at byte {at}")
            at += skipped
            continue
        if at + frame.size > end:
            raise UserError(f"cut short: its last frame lacks {at + frame.size - end} bytes")
        stated = _stated(head, frame, at)
        if stated:
            runs.append(_Run(frame.kind, frames=stated[0], size=stated[1], info=stated[2]))
        else:
            if not runs or runs[-1].kind != frame.kind or (runs[-1].frames or -1) == runs[-1].count:
                runs.append(_Run(frame.kind))
            runs[-1].add(at, frame)
        at += frame.size
    if not runs:
        raise UserError("holds no MPEG frame")
    for before, run in list(zip(runs, runs[1:])):
        if run.count == 1 and run.info is None and run.kind == before.kind:  # mpg123 cannot read a file of one frame
            before.ranges, before.samples = before.ranges + run.ranges, before.samples + run.samples
            before.count, run.count = before.count + 1, 0
    return [_part(file, run) for run in runs if run.count or run.frames]


def _part(file: BinaryIO, run: _Run) -> Part:
    ranges = [(start, end) for start, end in run.ranges]
    if run.frames is None or run.info is None or run.info.size_at is None:
        part = Part(tuple(ranges), run.samples, _CLAIM)
    else:
        info = bytearray(read_at(file, run.info.start, run.info.end - run.info.start))
        there = len(info) + sum(end - start for start, end in ranges)
        info[run.info.frames_at : run.info.frames_at + 4] = run.count.to_bytes(4, "big")
        if run.info.size_at:
            info[run.info.size_at : run.info.size_at + 4] = there.to_bytes(4, "big")  # else mpg123 warns on stderr
        part = Part((bytes(info), *ranges))
    # Some encoders also count the frame that states the number. Then all stated bytes are there.
    if run.frames and (run.count + 1 < run.frames or (run.count < run.frames and not run.all_bytes())):
        raise UserError(f"cut short: {run.count} of its {run.frames} frames are there")
    return part


def _frame(head: bytes) -> _Frame | None:
    """The frame that a header describes; None if the bytes are not a header."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)  # version: 3 for MPEG-1, 2 for MPEG-2, 0 for MPEG-2.5
    index, rate_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or index == 15 or rate_index == 3:
        return None
    if index == 0:
        raise UserError("MPEG audio with a free bit rate cannot be read: convert it to another format")
    rate = _RATES[rate_index] >> (0, 1, 2)[(3, 2, 0).index(version)]
    bits = 1000 * _KBITS[version == 3, layer][index - 1]
    mono = head[3] >> 6 == 3
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    size = (12 * bits // rate + padding) * 4 if layer == 1 else samples // 8 * bits // rate + padding
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return _Frame(size, samples, (head[1] & 0x1E, rate), side if layer == 3 else -1)


def _stated(head: bytes, frame: _Frame, at: int) -> tuple[int | None, int | None, _Info] | None:
    """Numbers of frames and bytes that a Xing, Info or VBRI frame states, and its position; None for other frames."""
    if frame.side < 0:
        return None
    for tag in (4 + frame.side, 6 + frame.side):  # the second if a checksum follows the header
        if head[tag : tag + 4] in (b"Xing", b"Info") and len(head) >= tag + 16:
            has_frames, has_size = head[tag + 7] & 1, head[tag + 7] & 2
            frames_at, size_at = tag + 8, tag + 8 + 4 * has_frames
            frames = _number(head, frames_at) if has_frames else 0
            size = _number(head, size_at) if has_size else 0
            return frames or None, size or None, _Info(at, at + frame.size, frames_at, size_at if has_size else 0)
    if head[36:40] == b"VBRI":
        return _number(head, 50) or None, _number(head, 46) or None, _Info(at, at + frame.size)
    return None


def _number(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 4], "big")


def _begins(head: bytes, then) -> bool:
    try:
        frame = _frame(head)
        second = frame and _frame(then(frame.size))
    except UserError:  # a free bit rate: the frame does not state its size
        return False
    return bool(frame and second and second.kind == frame.kind)


def _lead(file: BinaryIO, start: int, end: int) -> int:
    """Number of bytes before the first frame; 0 if no frame begins within ``_LEAD`` bytes."""
    data = read_at(file, start, min(_LEAD, end - start))
    for at in range(1, len(data)):
        if data[at] == 0xFF and _begins(data[at : at + _HEAD], lambda size, at=at: data[at + size : at + size + 4]):
            return at
    return 0
