"""FLAC (RFC 9639): files that were joined are parts; whether a header states the true length is seen by reading."""

import struct
from typing import BinaryIO

from espnet_pinch.errors import UserError
from espnet_pinch.sound.pieces import Part
from espnet_pinch.sound.tags import read_at, tag_length

MAGIC = b"fLaC"
_BEGINNING = MAGIC + b"\0\0\0\x22"  # and STREAMINFO, 34 bytes, which comes first
_LAST = MAGIC + b"\x80\0\0\x22"  # no other block of metadata behind it
_BLOCK = 1 << 20


def flac_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """The FLAC files between two places in a file, each without the number of samples that it states of itself.

    libsndfile then reads to the end, and stops neither before frames that are not stated nor at a tag.

    Raises:
        ValueError: it ends within the header.
    """
    begins = _find(file, start, end)
    if not begins or begins[0] != start:
        raise UserError("damaged: its first block is no STREAMINFO")
    parts = []
    for begin, stop in zip(begins, [*begins[1:], end]):
        head = read_at(file, begin, 42)
        if len(head) < 42:
            raise UserError("cut short: its header is not whole")
        [samples] = struct.unpack(">Q", head[18:26])
        samples &= (1 << 36) - 1
        while begin < stop and (tag := _tag_before(file, begin, stop)):
            stop -= tag
        patched = head[:21] + bytes([head[21] & 0xF0]) + bytes(4) + head[26:]
        parts.append(Part((patched, (begin + 42, stop)), samples or None))
    return parts


def _tag_before(file: BinaryIO, begin: int, end: int) -> int:
    """Bytes of an ID3v2 tag, as a file that was joined has it in front, that ends at ``end``; 0 if none does."""
    start = max(begin, end - _BLOCK)
    at = read_at(file, start, end - start).rfind(b"ID3")
    return end - start - at if at >= 0 and tag_length(file, start + at, end) == end - start - at else 0


def _find(file: BinaryIO, start: int, end: int) -> list[int]:
    """Where FLAC files begin."""
    found, overlap = set(), len(_BEGINNING) - 1
    for block in range(start, end, _BLOCK):
        data = read_at(file, block, min(_BLOCK + overlap, end - block))
        for signature in (_BEGINNING, _LAST):
            at = data.find(signature)
            while at >= 0:
                found.add(block + at)
                at = data.find(signature, at + 1)
    return sorted(found)
