"""FLAC (RFC 9639): each joined file is a part. Reading a part shows whether its header states the true length."""

import struct
from typing import BinaryIO

from espnet_pinch.errors import UserError
from espnet_pinch.sound.pieces import Part
from espnet_pinch.sound.tags import read_at, tag_length

MAGIC = b"fLaC"
_BEGINNING = MAGIC + b"\0\0\0\x22"  # STREAMINFO, 34 bytes, is the first block of metadata
_LAST = MAGIC + b"\x80\0\0\x22"  # STREAMINFO is also the last block of metadata
_BLOCK = 1 << 20


def flac_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """The FLAC files between two positions in a file, each with the number of samples removed from its header.

    Then libsndfile reads to the end. It stops neither at the stated number of samples nor at a tag.

    Raises:
        UserError: a header is cut short, or the first block is not STREAMINFO.
    """
    begins = _find(file, start, end)
    if not begins or begins[0] != start:
        raise UserError("damaged: its first block is not STREAMINFO")
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
    """Length in bytes of the ID3v2 tag (of the next joined file) that ends at ``end``; 0 if there is none."""
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
