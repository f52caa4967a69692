"""Fetch an upstream from the Hugging Face hub, or from the hub's cache if HF_HUB_OFFLINE is set."""

import contextlib
import dataclasses
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Collection
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, hf_hub_url, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import build_hf_headers

from espnet_pinch.data import download
from espnet_pinch.data.download import Refused, check_file
from espnet_pinch.data.source import CACHE, FILE, HUB, Source, card_licence, commit_of, licence_of, write_record
from espnet_pinch.data.upstream_files import CONFIG, choose
from espnet_pinch.errors import UserError
from espnet_pinch.files import DISK_REASONS, disk_errors

NOTE = ".of"  # ending of the note beside an unfinished file, which holds the checksums of the finished one


@dataclasses.dataclass(frozen=True)
class Repository:
    """One commit of a model, on the hub or in its cache.

    Attributes:
        checks: ``{file name: arguments of check_file}``.
        bring: writes a file to a path, checked.
        commit, licence: for the record; None and {} if not known.
        origin: for the record.
    """

    checks: dict[str, dict]
    bring: Callable[[str, Path], None]
    commit: str | None
    licence: dict[str, str]
    origin: str


def fetch_from_hub(source: Source, folder: Path) -> None:
    """Bring the files of an upstream to ``folder``, which is complete only when all of them have arrived.

    ``folder.part`` holds what has arrived so far, and the next call continues from there. Files that are already in
    ``folder`` are checked and kept.

    Raises:
        OSError: the hub cannot be reached or refuses, or the model lacks a file; the message says what to do.
        UserError: a checksum is wrong, a list of shards is damaged, or HF_ENDPOINT is not an address.
    """
    part = folder.with_name(folder.name + ".part")
    open_repository = _cached if constants.HF_HUB_OFFLINE else _on_hub
    with disk_errors(part):
        part.mkdir(parents=True, exist_ok=True)
        try:
            _fill(source, folder, part, open_repository(source, folder))
        finally:
            with contextlib.suppress(OSError):  # not empty: kept for the next call
                part.rmdir()


def _fill(source: Source, folder: Path, part: Path, repository: Repository) -> None:
    checks = repository.checks

    def bring(name: str) -> Path:
        if (folder / name).is_file():
            try:
                check_file(folder / name, **checks[name])
            except UserError as error:
                raise UserError(f"{error} by {source.name}: remove it, then run stage 0 again") from None
            return folder / name
        _begin(part / name, checks[name])
        repository.bring(name, part / name)
        return part / name

    try:
        names = choose(checks, lambda name: bring(name).read_text(encoding="utf-8"), source.language)
    except FileNotFoundError as error:
        what = "its copy in the hub's cache has" if repository.origin == CACHE else "it has"
        raise FileNotFoundError(_line(source, f"{what} {error}{_others(checks)}")) from None
    except UserError as error:
        raise UserError(f"{source.name}: {error}") from None
    _room(folder, part, {name: checks[name].get("size") or 0 for name in names})
    for name in names:
        bring(name)
    files = {
        name: {"size": (part if (part / name).is_file() else folder).joinpath(name).stat().st_size}
        | {key: value for key, value in checks[name].items() if value is not None}
        for name in names
    }
    record = source.record(commit=repository.commit, origin=repository.origin, **repository.licence, files=files)
    write_record(part, record)
    for path in part.iterdir():
        if path.name not in (*names, FILE):
            path.unlink()
    os.sync()
    if not folder.exists():
        os.rename(part, folder)
        return
    # The weights and then the configuration come last, because they make the folder complete.
    for name in (FILE, *names[1:], CONFIG):
        if (part / name).is_file():
            os.replace(part / name, folder / name)


def _begin(path: Path, checks: dict) -> None:
    """Note which file ``path`` will become; remove what has arrived of it if that was another file."""
    wanted = " ".join(f"{key}={value}" for key, value in sorted(checks.items()))
    note = path.with_name(path.name + NOTE)
    if not (note.is_file() and note.read_text(encoding="utf-8") == wanted):
        for end in ("", ".part", ".etag"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        note.write_text(wanted, encoding="utf-8")


def _room(folder: Path, part: Path, sizes: dict[str, int]) -> None:
    have = sum(path.stat().st_size for path in part.iterdir())
    size = sum(size for name, size in sizes.items() if not (folder / name).is_file()) - have
    free = shutil.disk_usage(part).free
    if size > free:
        raise OSError(f"{part.parent} has {free / 1e9:.3f} GB left, but the download needs {size / 1e9:.3f} GB")


def _others(names: Collection[str]) -> str:
    """For an error line: the files of weights that a model has instead of those that transformers reads."""
    found = [
        name for name in names if name.endswith((".safetensors", ".bin", ".h5", ".msgpack", ".pt", ".pth", ".gguf"))
    ]
    return f"; it has {', '.join(found[:3])}{', ...' if found[3:] else ''}" if found else ""


# ---- The hub


def _on_hub(source: Source, folder: Path) -> Repository:
    endpoint = urllib.parse.urlsplit(constants.ENDPOINT)
    if endpoint.scheme not in ("http", "https") or not re.fullmatch(r"([\w.-]+|\[[\da-f:]+\])(:\d+)?", endpoint.netloc):
        raise UserError(f"HF_ENDPOINT must be an address such as https://huggingface.co, not {constants.ENDPOINT!r}")
    # If a folder has lost a file, its other files come from the commit that its record names.
    revision = commit_of(folder) or source.revision
    repo = _repo(source)
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=download.TIMEOUT)
    except HfHubHTTPError as error:
        headers = error.response.headers
        reason = _refusal(source, error.response.status_code, headers.get("X-Error-Code"))
        raise OSError(_line(source, reason, None if error.response.status_code == 404 else folder)) from None
    except (HTTPError, OSError) as error:
        reason = f"the hub at {constants.ENDPOINT} cannot be reached: {str(error) or type(error).__name__}"
        if _in_cache(source):
            reason += "; the hub's cache on this machine has it: set HF_HUB_OFFLINE=1 to use it"
        raise OSError(_line(source, reason, folder)) from None
    except (ValueError, KeyError, TypeError):
        info = None
    if info is None or not info.sha or info.siblings is None:
        raise OSError(_line(source, f"{constants.ENDPOINT} answers, but not like the hub (is it a proxy?)", folder))
    files = {file.rfilename: file for file in info.siblings}
    checks: dict[str, dict] = {
        name: {
            "size": file.lfs.size if file.lfs else file.size,
            "sha256": file.lfs.sha256 if file.lfs else None,
            "git_blob": None if file.lfs else file.blob_id,
        }
        for name, file in files.items()
    }

    def bring(name: str, path: Path) -> None:
        url = hf_hub_url(repo, name, revision=info.sha)
        try:
            download.fetch(url, path, **checks[name], headers=build_hf_headers())
        except Refused as error:
            elsewhere = urllib.parse.urlsplit(error.url)
            if elsewhere.netloc != endpoint.netloc:
                reason = (
                    f"{elsewhere.hostname}, where the hub keeps {name}, answers {error.status}; run again to resume"
                )
            else:
                reason = _refusal(source, error.status, error.code, name)
            raise OSError(_line(source, reason, folder)) from None
        except OSError as error:
            if error.errno in DISK_REASONS:
                raise
            raise OSError(_line(source, str(error), folder)) from None

    print(f"{source.name}: commit {info.sha}", flush=True)
    return Repository(checks, bring, info.sha, licence_of(info.card_data), HUB)


def _repo(source: Source) -> str:
    """ "owner/name" of a source on the hub."""
    assert source.repo, f"{source.name} is not on the hub"
    return source.repo


def _line(source: Source, reason: str, folder: Path | None = None) -> str:
    line = f"could not fetch {source.name} from the Hugging Face hub: {reason}"
    if folder is None:
        return line
    return (
        f"{line}. By hand: put its config.json, preprocessor_config.json, vocab.json and model.safetensors (or "
        f"pytorch_model.bin) into {folder}"
    )


def _refusal(source: Source, status: int, code: str | None, file: str | None = None) -> str:
    """What the hub's answer means, and what to do about it."""
    terms = f"accept its terms on {constants.ENDPOINT}/{source.repo}"
    token = "HF_TOKEN (or hf auth login)"
    if code == "RevisionNotFound":
        return f"it has no revision {source.revision!r}: no branch, tag or commit of that name"
    if code == "EntryNotFound" or (status == 404 and file):
        return f"it has no file {file}"
    if code == "GatedRepo" or status == 403:
        account = f"with the account of the token in {token}" if get_token() else f"and give your token in {token}"
        return f"the hub answers {status}, access to it has conditions: {terms} {account}"
    if status in (401, 404):
        reason = f"the hub answers {status}: it is misspelt, or "
        if source.revision and status == 404 and code is None:
            reason += f"has no revision {source.revision!r}, or "
        if get_token():
            return f"{reason}private or gated: the token in {token} is not valid or may not read it; {terms}"
        return f"{reason}private or gated: for that, give your token in {token} and {terms}"
    if status == 429:
        return "the hub answers 429, too many requests: wait some minutes and run again"
    return f"the hub answers {status}" + ("; try again later" if status >= 500 else "")


# ---- The hub's cache


def _snapshot(source: Source) -> Path:
    return Path(
        snapshot_download(_repo(source), revision=source.revision, local_files_only=True, allow_patterns=[CONFIG])
    )


def _in_cache(source: Source) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return bool(choose([p.name for p in _snapshot(source).iterdir() if p.is_file()], lambda name: "{}"))
    return False


def _cached(source: Source, folder: Path) -> Repository:
    try:
        snapshot = _snapshot(source)
    except LocalEntryNotFoundError:
        reason = (
            "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and the model is not in the hub's cache "
            f"({constants.HF_HUB_CACHE}); unset the variable to fetch it"
        )
        raise OSError(_line(source, reason, folder)) from None
    checks = {path.name: _check_of(path) for path in snapshot.iterdir() if path.is_file()}

    def bring(name: str, path: Path) -> None:
        print(f"copying {name} from the hub's cache", flush=True)
        shutil.copyfile(snapshot / name, path)
        try:
            check_file(path, **checks[name])
        except UserError:
            path.unlink()
            raise UserError(
                f"the hub's cache is damaged: the checksum of {snapshot / name} differs from its name"
            ) from None

    commit = snapshot.name if re.fullmatch("[0-9a-f]{40}", snapshot.name) else None
    return Repository(checks, bring, commit, card_licence(snapshot), CACHE)


def _check_of(path: Path) -> dict:
    """Arguments of ``check_file``: the cache names a file's content by the checksum that the hub states."""
    name = os.path.basename(os.path.realpath(path))
    kind = {40: "git_blob", 64: "sha256"}.get(len(name)) if re.fullmatch("[0-9a-f]+", name) else None
    return {"size": path.stat().st_size, **({kind: name} if kind else {})}
