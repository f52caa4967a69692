"""Tags before, between and after sound: ID3, APE, Lyrics3, and zeros. They hold titles and pictures, no samples."""

from typing import BinaryIO

ID3V1 = 128  # bytes
SLACK = 8  # most bytes at the end of a file that are ignored, such as padding or a line end


def read_at(file: BinaryIO, start: int, count: int) -> bytes:
    """``count`` bytes from ``start``; fewer at the end of the file."""
    file.seek(start)
    return file.read(count)


def tag_length(file: BinaryIO, start: int, end: int) -> int:
    """Length in bytes of the tag, or of the run of zeros, that begins at ``start``; 0 if there is none."""
    head = read_at(file, start, 32)
    length = 0
    if head[:3] == b"ID3" and len(head) > 9 and max(head[6:10]) < 128:
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))
        length = 10 + size + (10 if head[5] & 0x10 else 0)  # flag: a footer follows
    elif head[:4] == b"TAG+":
        length = 227
    elif head[:3] == b"TAG":
        length = ID3V1
    elif head[:8] == b"APETAGEX":
        length = 32 + int.from_bytes(head[12:16], "little")  # the header, and the stated size of items and footer
    elif head[:11] == b"LYRICSBEGIN":
        length = _lyrics_length(read_at(file, start, min(end - start, 1 << 20)))
    elif head[:1] == b"\0":
        length = _zeros(file, start, end)
    return length if start + length <= end else 0


def end_of_sound(file: BinaryIO, start: int, end: int) -> int:
    """Where the tags at the end of a file begin: ID3v1 and APE, whose footer states its size."""
    while True:
        footer = read_at(file, end - 32, 32) if end - 32 >= start else b""
        if end - ID3V1 >= start and read_at(file, end - ID3V1, 3) == b"TAG":
            end -= ID3V1
        elif footer[:8] == b"APETAGEX" and (size := int.from_bytes(footer[12:16], "little")) <= end - start:
            has_header = footer[23] & 0x80
            end -= size + (32 if has_header else 0)
        else:
            return max(start, end)


def _lyrics_length(data: bytes) -> int:
    ends = [at + 9 for at in (data.find(b"LYRICSEND"), data.find(b"LYRICS200")) if at >= 0]
    return min(ends, default=0)


def _zeros(file: BinaryIO, start: int, end: int) -> int:
    at = start
    while at < end:
        block = read_at(file, at, min(1 << 16, end - at))
        rest = block.lstrip(b"\0")
        at += len(block) - len(rest)
        if rest or not block:
            break
    return at - start
