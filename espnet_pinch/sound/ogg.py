"""Ogg (RFC 3533): pages are checked. Each file in a chain (a link) is a part; libsndfile alone reads only the first."""

import struct
import zlib
from typing import BinaryIO

from espnet_pinch.errors import UserError
from espnet_pinch.sound.pieces import Part
from espnet_pinch.sound.tags import SLACK, read_at, tag_length

MAGIC = b"OggS"
_HEADER = 27  # bytes of a page before its segment table
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """The links of a chain between two positions in a file.

    Raises:
        UserError: a page is damaged or missing, or the file ends before its streams do.
    """
    links: list[tuple[int, int]] = []
    pages: dict[int, int] = {}  # {serial number of a stream that has not ended: number of its next page}
    begun, at = start, start
    while at < end:
        head = read_at(file, at, _HEADER)
        if not pages and at > start and (at + tag_length(file, at, end) == end or _is_slack(head, end - at)):
            end = at
            break
        if not MAGIC.startswith(head[:4]):
            raise UserError(f"damaged: no Ogg page begins at byte {at}")
        body = read_at(file, at + _HEADER, head[26]) if len(head) == _HEADER else b""
        length = _HEADER + len(body) + sum(body)
        if len(head) < _HEADER or len(body) < head[26] or at + length > end:
            raise UserError("cut short: its last page is not whole")
        page = read_at(file, at, length)
        _, serial, number, checksum = struct.unpack_from("<qIII", page, 6)
        if checksum != _checksum(page):
            raise UserError(f"damaged: the checksum of the Ogg page at byte {at} is wrong")
        first, last = page[5] & 2, page[5] & 4
        if first:
            if not pages and at > start:
                links.append((begun, at))
                begun = at
            pages[serial] = number
        if pages.get(serial) != number:
            raise UserError(f"damaged: Ogg pages before byte {at} are missing")
        pages[serial] += 1
        if last:
            del pages[serial]
        at += length
    if pages:
        raise UserError("cut short: its last page does not end its stream")
    return [Part((link,)) for link in [*links, (begun, end)]]


def _is_slack(head: bytes, left: int) -> bool:
    return left <= SLACK and not MAGIC.startswith(head[:4])


def _checksum(page: bytes) -> int:
    """Ogg's CRC takes the highest bit first, zlib's the lowest: the bits of bytes and result are mirrored."""
    blank = page[:22] + bytes(4) + page[26:]
    mirrored = zlib.crc32(blank.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
