"""Downloads that resume after a break and are checked before use. An archive's folder appears when it is complete."""

import hashlib
import http.client
import lzma
import os
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path

from espnet_pinch.errors import UserError
from espnet_pinch.files import disk_errors, whole_folder
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
LIBRISPEECH_LM_URL = "https://www.openslr.org/resources/11"
# MD5 of LibriSpeech's n-gram models at openslr.org/11, as other recipes state them (sdrobert/pytorch-database-prep).
LIBRISPEECH_LM_MD5 = {
    "3-gram.pruned.3e-7": "8f67ec741827742eee05799ab7605b50",
    "3-gram.pruned.1e-7": "9a0f1325bcaf3a0f7b7be4be10823c2a",
    "3-gram": "74cbb837e582378c26c602e1c8cbcb9c",
    "4-gram": "6abdcd5b055bd482e4f9defe91d40408",
}
CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte


class Refused(OSError):
    """A server answered with an error instead of a file.

    Attributes:
        url: the address that answered, after redirects.
        status: HTTP status, such as 404.
        code: the Hugging Face hub's name for the error (``X-Error-Code``); None from other servers.
    """

    def __init__(self, url: str, error: urllib.error.HTTPError):
        super().__init__(f"{url}: the server answers {error.code} {error.reason}")
        self.url, self.status, self.code = error.url or url, error.code, error.headers.get("X-Error-Code")


def fetch(
    url: str,
    path: str | os.PathLike,
    sha256: str | None = None,
    *,
    size: int | None = None,
    git_blob: str | None = None,
    md5: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Download ``url`` to ``path``. An interrupted download leaves ``path.part``, and the next call continues it.

    ``path.etag`` holds the version of the file on the server. If that has changed, the download starts again.

    Args:
        sha256, size, git_blob, md5: as for ``check_file``.
        headers: headers of the request. ``Authorization`` goes only to the host of ``url``, not to other hosts that
            it redirects to.

    Raises:
        Refused: the server answers with an error; what has arrived is kept.
        OSError: the network or the disk fails; what has arrived is kept.
        UserError: the size or a checksum is wrong; the file is deleted.
    """
    path = Path(path)
    part, etag = (path.with_name(path.name + end) for end in (".part", ".etag"))
    if not path.is_file():
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(url, part, etag, headers or {}, size)
            os.replace(part, path)
            etag.unlink(missing_ok=True)
    try:
        check_file(path, sha256, size=size, git_blob=git_blob, md5=md5)
    except UserError as error:
        path.unlink()
        raise UserError(f"{error}: deleted, fetch it again") from None


def check_file(
    path: str | os.PathLike,
    sha256: str | None = None,
    *,
    size: int | None = None,
    git_blob: str | None = None,
    md5: str | None = None,
) -> None:
    """Compare a file with its known size and checksums; None means not known.

    Args:
        sha256: SHA-256 in hexadecimal.
        size: size in bytes.
        git_blob: SHA-1 under which git stores the content, in hexadecimal.
        md5: MD5 in hexadecimal.

    Raises:
        UserError: the file differs; the message says in what.
    """
    found = os.path.getsize(path)
    if size is not None and found != size:
        raise UserError(f"{path} has {found} bytes, expected {size}")
    if sha256 is not None and (digest := sha256_of(path)) != sha256:
        raise UserError(f"{path} has SHA-256 {digest}, expected {sha256}")
    if git_blob is not None and (digest := _digest(path, hashlib.sha1(b"blob %d\0" % found))) != git_blob:
        raise UserError(f"{path} has the git blob id {digest}, expected {git_blob}")
    if md5 is not None and (digest := _digest(path, hashlib.md5(usedforsecurity=False))) != md5:
        raise UserError(f"{path} has MD5 {digest}, expected {md5}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """urllib's redirects, but a redirect within one host keeps the token: the hub redirects a renamed model."""

    def redirect_request(self, request, fp, code, msg, headers, newurl):
        new = super().redirect_request(request, fp, code, msg, headers, newurl)
        token = request.unredirected_hdrs.get("Authorization")
        if new is not None and token and _host(new.full_url) == _host(request.full_url):
            new.add_unredirected_header("Authorization", token)
        return new


def _host(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


def _download(url: str, part: Path, etag: Path, more: Mapping[str, str], size: int | None) -> None:
    have = part.stat().st_size if part.is_file() else 0
    version = etag.read_text(encoding="utf-8") if have and etag.is_file() else None
    headers = {"Range": f"bytes={have}-"} if have else {}
    if version:
        headers["If-Range"] = version  # if the version has changed, the server sends the whole file
    request = urllib.request.Request(url, headers=headers)
    for name, value in more.items():
        request.add_unredirected_header(name.capitalize(), value)
    try:
        with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as response:
            if response.status != 206:
                have = 0  # the server sends the whole file
            elif not _begins_at(response.headers.get("Content-Range"), have):
                raise OSError(f"{url}: the server sends another part of the file than requested")
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else size
            if total is not None:
                _need(total - have, part)
            if not have:
                part.unlink(missing_ok=True)
                found = response.headers.get("ETag") or ""
                etag.write_text("" if found.startswith("W/") else found, encoding="utf-8")  # weak: bytes may differ
            bar = progress_bar(desc=f"fetching {part.stem}", initial=have, total=total, unit="B", unit_scale=True)
            with open(part, "ab") as file, bar:
                while chunk := response.read1(CHUNK):
                    file.write(chunk)
                    file.flush()  # a kill then loses no bytes that have arrived
                    bar.update(len(chunk))
        if total is not None and part.stat().st_size != total:
            raise OSError(f"the connection ended after {part.stat().st_size} of {total} bytes; run again to resume")
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise Refused(url, error) from None
        if error.headers.get("Content-Range") != f"bytes */{have}":  # otherwise the download is complete
            part.unlink()
            raise OSError(
                f"{url}: the file on the server has changed since this download began; run again to fetch it"
            ) from None
    except urllib.error.URLError as error:
        raise OSError(f"{url}: {error.reason}") from None
    except TimeoutError:
        raise OSError(f"{url}: nothing came for {TIMEOUT} s; run again to resume") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise OSError(f"{url}: the connection broke ({type(error).__name__}); run again to resume") from None


def _begins_at(content_range: str | None, start: int) -> bool:
    """Whether the part that the server sends begins at byte ``start``. Without a Content-Range, this is assumed."""
    return content_range is None or content_range.startswith(f"bytes {start}-")


def _need(size: int, path: Path) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OSError(f"{path.parent} has {free / 1e9:.3f} GB left, but the download needs {size / 1e9:.3f} GB")


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return _digest(path, hashlib.sha256())


def _digest(path: str | os.PathLike, digest) -> str:
    bar = progress_bar(desc=f"checking {Path(path).name}", total=os.path.getsize(path), unit="B", unit_scale=True)
    with open(path, "rb") as file, bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def fetch_librispeech(folder: str | os.PathLike, subsets: list[str], base_url: str = LIBRISPEECH_URL) -> None:
    """Download and unpack subsets of LibriSpeech to ``folder/LibriSpeech/SUBSET``; existing subsets are kept.

    An archive that the user put into ``folder`` is used like a downloaded one. It is deleted after it is unpacked.

    Raises:
        OSError: as in ``fetch``; the message says how to put the archive there by hand.
        UserError: as in ``fetch`` and ``unpack``.
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
        unpack(archive, f"LibriSpeech/{subset}", final)
        archive.unlink()


def fetch_librispeech_lm(folder: str | os.PathLike, name: str, base_url: str = LIBRISPEECH_LM_URL) -> Path:
    """Download one of LibriSpeech's n-gram models, ``LIBRISPEECH_LM_MD5``. Returns its file, which is not unpacked.

    Raises:
        OSError, UserError: as in ``fetch``.
    """
    file = Path(folder) / f"{name}.arpa.gz"
    try:
        fetch(f"{base_url}/{file.name}", file, md5=LIBRISPEECH_LM_MD5[name])
    except OSError as error:
        raise OSError(f"could not fetch {file.name}: {error}. By hand: openslr.org/11 has it") from None
    return file


def unpack(archive: str | os.PathLike, inside: str, final: Path) -> None:
    """Unpack the folder ``inside`` of an archive to ``final``, which appears only when it is complete.

    Raises:
        UserError: the archive does not hold that folder, is damaged, or has a member that would leave the folder or
            is a link.
        OSError: the disk is full or read-only.
    """
    bar = progress_bar(desc=f"unpacking {final.name}", total=os.path.getsize(archive), unit="B", unit_scale=True)
    wanted = Path(inside).parts
    with whole_folder(final) as new, open(archive, "rb") as file, bar:
        try:
            with tarfile.open(fileobj=file, mode="r|*") as tar:
                for member in tar:
                    _check_member(member, archive)
                    parts = Path(member.name).parts  # without "//" and "./"
                    if member.isfile() and parts[: len(wanted)] == wanted and parts[len(wanted) :]:
                        member.name = str(Path(*parts[len(wanted) :]))
                        tar.extract(member, new, set_attrs=False, filter="data")
                    bar.update(file.tell() - bar.n)
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"{archive} cannot be unpacked: {error}") from None
        except OSError as error:
            if error.errno is not None:  # gzip and bzip2 report damaged data by an OSError without errno
                raise
            raise UserError(f"{archive} cannot be unpacked: {error}") from None
        bar.update(bar.total - bar.n)  # the bytes after the last member
        if not any(new.iterdir()):
            raise UserError(f"{archive} does not hold {inside}")


def _check_member(member: tarfile.TarInfo, archive: str | os.PathLike) -> None:
    """Raise UserError unless a member is a file or a folder inside the archive: links could leave the folder."""
    if not (member.isfile() or member.isdir()):
        raise UserError(f"{archive} cannot be unpacked: its member {member.name!r} is neither a file nor a folder")
    if member.name.startswith("/") or ".." in Path(member.name).parts:
        raise UserError(f"{archive} cannot be unpacked: its member {member.name!r} would leave the folder")
