"""A file made of pieces of another one. libsndfile reads it instead of a container that it would misread."""

import io
from dataclasses import dataclass
from typing import BinaryIO

Piece = bytes | tuple[int, int]  # literal bytes, or the start and end of bytes in the file


@dataclass(frozen=True)
class Part:
    """A stretch of a sound file that libsndfile reads by itself.

    Attributes:
        pieces: what it reads, in order.
        samples: least number of samples in each channel; None if libsndfile knows the number.
        claims: number of bytes that the file pretends to have, if libsndfile guesses the number of samples from it; 0
            for the true number.
    """

    pieces: tuple[Piece, ...]
    samples: int | None = None
    claims: int = 0


class PiecesFile(io.RawIOBase):
    """A readable, seekable file of a part's pieces.

    Attributes:
        error: the error of the underlying file, if reading failed. libsndfile's callbacks cannot raise errors, so it
            sees the end of the file.
    """

    def __init__(self, file: BinaryIO, part: Part):
        self.error: OSError | None = None
        self._file, self._position = file, 0
        self._pieces: list[tuple[int, int, Piece]] = []
        end = 0
        for piece in part.pieces:
            start, end = end, end + (len(piece) if isinstance(piece, bytes) else piece[1] - piece[0])
            self._pieces.append((start, end, piece))
        self._length = max(part.claims, end)
        self._tail = self._length - 256 if part.claims else self._length  # mpg123 looks there for tags and sees zeros

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (0, self._position, self._length)[whence] + offset
        return self._position

    def readinto(self, buffer) -> int:
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view):
            count = self._read_some(view[done:])
            if not count:
                break
            done, self._position = done + count, self._position + count
        return done

    def _read_some(self, view: memoryview) -> int:
        at = self._position
        for start, end, piece in self._pieces:
            if start <= at < end:
                count = min(len(view), end - at)
                if isinstance(piece, bytes):
                    view[:count] = piece[at - start : at - start + count]
                    return count
                try:
                    self._file.seek(piece[0] + at - start)
                    data = self._file.read(count)
                    view[: len(data)] = data
                    return len(data)
                except OSError as error:
                    self.error = error
                    return 0
        if self._tail <= at < self._length:
            count = min(len(view), self._length - at)
            view[:count] = bytes(count)
            return count
        return 0
