"""Containers that state how many bytes of samples they hold: WAV, RF64, W64, AIFF, SVX, CAF, AU, SPHERE.

libsndfile reads whatever bytes it finds. This module compares their number with the stated one. The two may differ in
one case: a program that writes to a pipe, or is killed, cannot go back to state the length. It leaves 0, or a number
within 64 KiB of the largest value of the field (2 GiB or 4 GiB, or -1 in CAF). Such a file is read to its end. Any
other stated number that is too large means that the file was cut short.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO, TypeGuard

from espnet_pinch.errors import UserError
from espnet_pinch.sound.mpeg import mpeg_parts
from espnet_pinch.sound.pieces import Part
from espnet_pinch.sound.tags import SLACK, end_of_sound, read_at, tag_length

_NEAR = 1 << 16  # bytes
_MPEG = (0x50, 0x55)  # WAV's format codes of MPEG audio
_GUID = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # the end of all chunk names in W64, except "riff"
_SPHERE = b"NIST_1A\n"
_COUNTED = {b"2BIT": 26, b"ALaw": 18}  # AVR and Psion's WVE: the position of the number of samples, 4 bytes


@dataclass(frozen=True)
class _Form:
    """How a container lays out its chunks.

    Attributes:
        first: bytes before the first chunk.
        id_bytes: length of a chunk's name.
        size: struct format of a chunk's size.
        inner: whether the size includes the name and the size itself.
        align: chunks begin at multiples of this.
        samples: names of the chunk with the samples.
        empty: bytes of that chunk that are not samples.
    """

    first: int
    id_bytes: int
    size: str
    inner: bool
    align: int
    samples: tuple[bytes, ...]
    empty: int = 0

    @property
    def head(self) -> int:
        return self.id_bytes + struct.calcsize(self.size)


_WAV = _Form(12, 4, "<I", False, 2, (b"data",))
_FORMS = {
    b"RIFF": _WAV,
    b"RF64": _WAV,
    b"BW64": _WAV,
    b"RIFX": _Form(12, 4, ">I", False, 2, (b"data",)),
    b"FORM": _Form(12, 4, ">I", False, 2, (b"SSND", b"BODY"), 8),
    b"caff": _Form(8, 4, ">q", False, 1, (b"data",), 4),
    b"riff": _Form(40, 16, "<q", True, 8, (b"data" + _GUID,)),
}


def stated_parts(file: BinaryIO, start: int, end: int) -> list[Part] | None:
    """The parts of a file between two positions, one for each file that was joined into it; None if of another kind.

    Raises:
        UserError: a part has fewer bytes than it states, or extra bytes that are not a chunk.
    """
    parts: list[Part] = []
    while True:
        magic = read_at(file, start, 8)
        if magic[:4] in _COUNTED:
            stated = int.from_bytes(read_at(file, start + _COUNTED[magic[:4]], 4), "big")
            return [*parts, Part(((start, end),), stated)]
        read = _au if magic[:4] in (b".snd", b"dns.") else _sphere if magic == _SPHERE else _chunked
        if read is _chunked and magic[:4] not in _FORMS:
            return parts or None
        before = start
        found, start = read(file, start, end)
        parts += found
        if start <= before:
            raise UserError("damaged: its header states that it ends where it begins")
        if start >= end:
            return parts


def _chunked(file: BinaryIO, start: int, end: int) -> tuple[list[Part], int]:
    form = _FORMS[read_at(file, start, 4)]
    at, wide, coding, parts = start + form.first, None, 0, None
    while chunk := _chunk(file, form, at):
        name, body, size = chunk
        if parts and _is_form(file, at):
            return (parts if coding in _MPEG else [Part(((start, at),))]), at
        if name in form.samples:
            if parts:
                raise UserError("has two chunks of samples")
            field = (at + form.id_bytes, form.size, form.head if form.inner else 0)
            if wide and size == 0xFFFFFFFF:
                field, size = (wide, "<Q", 0), int.from_bytes(read_at(file, wide, 8), "little")
            if _unstated(size, form.empty) and not (
                size <= form.empty and _chunks_follow(file, form, body + size, end)
            ):
                part = _patched(start, end, field, end - body)
                return (mpeg_parts(file, body, end) if coding in _MPEG else [part]), end
            if body + size > end:
                raise _cut(end - body, size)
            parts = mpeg_parts(file, body, body + size) if coding in _MPEG else [Part(((start, end),))]
        elif not _fits(chunk, end):
            break
        elif name == b"ds64":
            wide = body + 8  # the size of the samples, after the size of the file
        elif name == b"fmt ":
            coding = int.from_bytes(read_at(file, body, 2), "little")
        at = _next(file, form, start, body + size, end)
    rest = _beside_tags(file, at, end)
    if parts is None:
        raise UserError(f"cut short or damaged: no chunk begins at byte {at}, and no samples come before it")
    if rest > SLACK:
        raise _more(rest)
    return parts, end


def _chunk(file: BinaryIO, form: _Form, at: int) -> tuple[bytes, int, int] | None:
    """Name of the chunk that begins at ``at``, position of its content, and stated size; None at the file's end."""
    head = read_at(file, at, form.head)
    if len(head) < form.head:
        return None
    [size] = struct.unpack(form.size, head[form.id_bytes :])
    return head[: form.id_bytes], at + form.head, size - (form.head if form.inner else 0)


def _fits(chunk: tuple[bytes, int, int] | None, end: int) -> TypeGuard[tuple[bytes, int, int]]:
    """Whether ``chunk`` is a chunk, and ends before ``end``."""
    return chunk is not None and all(32 <= c < 127 for c in chunk[0][:4]) and 0 <= chunk[2] <= end - chunk[1]


def _next(file: BinaryIO, form: _Form, start: int, at: int, end: int) -> int:
    """Where the chunk after ``at`` begins: at a multiple of ``form.align``, but some programs forget that."""
    aligned = start + -(-(at - start) // form.align) * form.align
    if aligned != at and not _fits(_chunk(file, form, aligned), end) and _fits(_chunk(file, form, at), end):
        return at
    return aligned


def _chunks_follow(file: BinaryIO, form: _Form, at: int, end: int) -> bool:
    """Whether there is at least one chunk, and nothing else, between two positions."""
    begun = at
    while _fits(chunk := _chunk(file, form, at), end):
        at = _next(file, form, begun, chunk[1] + chunk[2], end)
    return at > begun and at >= end


def _au(file: BinaryIO, start: int, end: int) -> tuple[list[Part], int]:
    order = ">" if read_at(file, start, 4) == b".snd" else "<"
    head = read_at(file, start + 4, 8)
    if len(head) < 8:
        raise UserError("cut short: its header is not whole")
    offset, size = struct.unpack(f"{order}II", head)
    body = start + offset
    if _unstated(size):
        return [_patched(start, end, (start + 8, f"{order}I", 0), max(0, end - body))], end
    return _one(file, start, end, body, size)


def _sphere(file: BinaryIO, start: int, end: int) -> tuple[list[Part], int]:
    try:
        length = int(read_at(file, start + 8, 8))
        rows = [line.split(None, 2) for line in read_at(file, start, length).decode("ascii", "replace").splitlines()]
        fields = {row[0]: row[2] for row in rows if len(row) == 3}
        numbers = [int(fields[name]) for name in ("sample_count", "channel_count", "sample_n_bytes") if name in fields]
    except ValueError:
        raise UserError("damaged: its SPHERE header cannot be read") from None
    if length < 16 or min(numbers, default=0) < 0:
        raise UserError("damaged: its SPHERE header states a negative size")
    if len(numbers) < 3 or not numbers[0]:
        return [Part(((start, end),))], end
    if "," in fields.get("sample_coding", ""):
        raise UserError(f"has samples in the coding {fields['sample_coding']}: convert it with sph2pipe first")
    return _one(file, start, end, start + length, numbers[0] * numbers[1] * numbers[2])


def _one(file: BinaryIO, start: int, end: int, body: int, size: int) -> tuple[list[Part], int]:
    """A file without chunks: a header, samples, and perhaps the next file."""
    stop = body + size
    if stop > end:
        raise _cut(max(0, end - body), size)
    if _is_form(file, stop):
        return [Part(((start, stop),))], stop
    if _beside_tags(file, stop, end) > SLACK:
        raise _more(end - stop)
    return [Part(((start, stop),))], end


def _unstated(size: int, empty: int = 0) -> bool:
    """Whether a program that did not know the number of bytes leaves this number."""
    return size <= empty or any(abs(size - limit) <= _NEAR for limit in (1 << 31, 1 << 32, 1 << 63, 1 << 64))


def _patched(start: int, end: int, field: tuple[int, str, int], size: int) -> Part:
    """A file with the true size of its samples in its header."""
    at, form, extra = field
    most = (1 << 8 * struct.calcsize(form)) - 1 >> form[-1].islower()
    return Part(((start, at), struct.pack(form, min(size + extra, most)), (at + struct.calcsize(form), end)))


def _is_form(file: BinaryIO, at: int) -> bool:
    """Whether another file begins at ``at``, as in joined files."""
    head = read_at(file, at, 12)
    return (
        (head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:] == b"WAVE")
        or (head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC", b"8SVX", b"16SV"))
        or head[:8] in (b"caff\0\1\0\0", _SPHERE)
        or head[:4] in (b".snd", b"dns.")
        or read_at(file, at, 16) == b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")
    )


def _beside_tags(file: BinaryIO, at: int, end: int) -> int:
    """Number of bytes between two positions that are neither tags nor zeros."""
    end = end_of_sound(file, at, end) if at < end else at
    while at < end and (tag := tag_length(file, at, end)):
        at += tag
    return max(0, end - at)


def _cut(there: int, stated: int) -> UserError:
    return UserError(f"cut short: {there} of its {stated} bytes of samples are there")


def _more(count: int) -> UserError:
    return UserError(f"damaged: {count} bytes after its samples are neither chunks nor tags; are they samples too?")
