"""Download a corpus: resumed where it was cut, checked before it is used, unpacked before it is called there."""

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from espnet_pinch.progress import progress_bar

LIBRISPEECH_URL = "https://www.openslr.org/resources/12"
# SHA-256 of the archives at openslr.org/12, as torchaudio states them (torchaudio.datasets.LIBRISPEECH).
LIBRISPEECH_SHA256 = {
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
}
CHUNK = 1 << 20


def fetch(url: str, path: str | os.PathLike, sha256: str) -> None:
    """Download ``url`` to ``path``; what an interrupted download left in ``path.part`` is continued.

    Raises:
        OSError: the network or the server fails; what has arrived is kept.
        ValueError: the checksum is wrong; the file is deleted.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, part)
        os.replace(part, path)
    digest = _sha256(path)
    if digest != sha256:
        path.unlink()
        raise ValueError(f"{path} has SHA-256 {digest}, expected {sha256}: deleted, fetch it again")


def _download(url: str, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            if response.status != 206:  # the server sends the whole file
                have = 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            with open(part, "r+b" if have else "wb") as file:
                file.seek(have)
                bar = progress_bar(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True)
                with bar:
                    while chunk := response.read(CHUNK):
                        file.write(chunk)
                        bar.update(len(chunk))
            if total is not None and part.stat().st_size != total:
                raise OSError(f"the connection ended after {part.stat().st_size} of {total} bytes; run again to resume")
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to fetch
            return
        raise OSError(f"{url}: the server answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(f"{url}: {error.reason}") from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_librispeech(folder: str | os.PathLike, subsets: list[str], base_url: str = LIBRISPEECH_URL) -> None:
    """Download and unpack subsets of LibriSpeech to ``folder/LibriSpeech/SUBSET``; a subset that is there is kept.

    An archive put into ``folder`` by hand is taken like a downloaded one. An archive is deleted once unpacked.

    Raises:
        OSError, ValueError: as ``fetch``; the message says how to put the archive there by hand.
    """
    folder = Path(folder)
    for subset in subsets:
        final = folder / "LibriSpeech" / subset
        if final.is_dir():
            continue
        archive = folder / f"{subset}.tar.gz"
        try:
            fetch(f"{base_url}/{archive.name}", archive, LIBRISPEECH_SHA256[subset])
        except OSError as error:
            raise OSError(
                f"could not fetch {subset} of LibriSpeech: {error}. By hand: put {archive.name} from openslr.org/12 "
                f"into {folder}, or give the folder of an unpacked LibriSpeech with --librispeech"
            ) from None
        unpack_subset(archive, subset, final)
        archive.unlink()


def unpack_subset(archive: str | os.PathLike, subset: str, final: Path) -> None:
    """Unpack ``LibriSpeech/SUBSET`` out of an archive; ``final`` takes its name when it is whole.

    Raises:
        ValueError: the archive does not hold the subset, is damaged, or has a member that would leave the folder.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{subset}.") as tmp:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(tmp, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{archive} cannot be unpacked: {error}") from None
        unpacked = Path(tmp) / "LibriSpeech" / subset
        if not unpacked.is_dir():
            raise ValueError(f"{archive} does not hold LibriSpeech/{subset}")
        shutil.move(unpacked, final)
