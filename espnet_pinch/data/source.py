"""Where an upstream comes from: what its name says, and the record that stage 0 leaves beside its files."""

import contextlib
import dataclasses
import logging
import os
import re
from pathlib import Path

from espnet_pinch.data.upstream_files import check_folder
from espnet_pinch.errors import UserError
from espnet_pinch.files import read_json, write_json

FILE = "source.json"
MADE_HERE = ("mini", "micro")  # espnet_pinch.asr.small_upstreams makes them
# What is known of an upstream. ``origin`` is one of those below; ``upstream`` and ``revision`` are what was asked for.
KEYS = ("upstream", "repo", "revision", "commit", "licence", "licence_name", "licence_link", "origin")
HUB, CACHE, BY_HAND, MADE, CHANGED = (
    "the Hugging Face hub",
    "the cache of the Hugging Face hub",
    "put there by hand, not checked",
    "made by espnet_pinch, random weights",
    "changed by hand since it was fetched",
)


# Of a licence only what is a plain word there too becomes a part of another card's metadata.
_LICENCE = {
    "licence": r"\w[\w.+-]*(, \w[\w.+-]*)*",
    "licence_name": r"\w[\w. +-]*",
    "licence_link": r"https?://[\w./~%?&=+-]+|\w[\w./-]*",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """What the name of an upstream means: a folder, a model of the hub, or (neither) a small one made here.

    Attributes:
        name: as it is given.
        folder: a folder that is there.
        repo: "owner/name" on the hub.
        revision: branch, tag or commit that is asked for; None is the hub's default.
    """

    name: str
    folder: str | None = None
    repo: str | None = None
    revision: str | None = None

    @property
    def folder_name(self) -> str:
        """Name of the folder that stage 0 puts it into; no two upstreams have the same."""
        if self.repo is None:
            return self.name
        revision = f"@{self.revision.replace('/', '--')}" if self.revision else ""
        return self.repo.replace("/", "--") + revision

    def record(self, **known) -> dict:
        """What goes into source.json: nulls but for ``known`` and what was asked for."""
        asked = {"upstream": self.name, "repo": self.repo, "revision": self.revision}
        return {**dict.fromkeys(KEYS), **asked, **known}


def parse_source(name: str) -> Source:
    """The meaning of "mini", "micro", a folder, "owner/name" or "owner/name@revision".

    What looks like a path and is not there is a mistyped path, and nothing to ask the hub for.

    Raises:
        FileNotFoundError: such a path.
        ValueError: none of these.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if name in MADE_HERE:
        return Source(name)
    if os.path.isdir(name):
        return Source(name, folder=name)
    if os.path.exists(name):
        raise UserError(f"the upstream {name} is a file; an upstream is a folder")
    if re.match(r"\w+://", name):
        raise UserError(f"the upstream {name} is an address: give the model's name alone, owner/name")
    repo, at, revision = name.partition("@")
    first = repo.split("/")[0]
    if name.startswith((".", "/", "~")) or repo.count("/") > 1 or repo.endswith("/"):
        hint = " (~ stands for nothing here: write the path out)" if name.startswith("~") else ""
        raise FileNotFoundError(f"the upstream folder {name} does not exist{hint}")
    if "/" not in repo:
        raise UserError(
            f"unknown upstream {name!r}: neither a folder, nor a model of the Hugging Face hub (owner/name or "
            f"owner/name@revision), nor {' or '.join(MADE_HERE)}"
        )
    if os.path.isdir(first):
        raise FileNotFoundError(
            f"the upstream folder {name} does not exist (the folder {first} does; as long as it is here, nothing of "
            "that name is asked of the hub)"
        )
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UserError(
            f"the upstream {name!r} is neither a folder that exists nor a name that the hub allows"
        ) from None
    if at and (not re.fullmatch(r"\w[\w./+-]*", revision, re.ASCII) or ".." in revision):
        raise UserError(f"the upstream {name!r}: after @ comes a branch, a tag or a commit")
    return Source(name, repo=repo, revision=revision or None)


def is_there(source: Source, folder: Path) -> bool:
    """Whether ``folder`` holds, whole, the upstream that is asked for.

    A folder without a record has been put there by hand: it is used as it is, and gets a record that says so.

    Raises:
        ValueError: it holds another upstream, a file has changed since it was fetched, or the record is damaged.
    """
    record = _read(folder)
    if record is not None and any(record.get(key) != getattr(source, key) for key in ("repo", "revision")):
        raise UserError(
            f"{folder} holds the upstream {record.get('upstream')}, by its {FILE}, and not {source.name}: give another "
            "folder, or remove that one"
        )
    if record is not None:
        for name, known in record.get("files", {}).items():
            if not (folder / name).is_file():
                return False
            if (folder / name).stat().st_size != known["size"]:
                raise UserError(
                    f"{folder / name} has changed since it was fetched: remove it to have it fetched again, or {FILE} "
                    "beside it to use the folder as it is"
                )
    try:
        files = check_folder(folder)
    except FileNotFoundError:
        return False
    if record is None:
        print(f"{source.name}: files put into {folder} by hand are used: {', '.join(files)}", flush=True)
        with contextlib.suppress(PermissionError):  # of a folder that others keep nothing is recorded
            write_record(folder, source.record(origin=BY_HAND))
    return True


def write_record(folder: Path, record: dict) -> None:
    write_json(folder / FILE, record)


def commit_of(folder: Path) -> str | None:
    """The commit that the record of ``folder`` names, whether or not its files are all there."""
    return (_read(folder) or {}).get("commit")


def read_record(folder: str | os.PathLike) -> dict:
    """What is known of where the files of ``folder`` come from: the ``KEYS``, null where that is not known.

    Raises:
        ValueError: the record is damaged.
    """
    folder = Path(folder)
    record = _read(folder)
    if record is None:
        cached = re.search(r"/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})$", os.path.abspath(folder))
        known = {**dict.fromkeys(KEYS), **card_licence(folder)}
        if not cached:
            return known
        repo = f"{cached[1]}/{cached[2]}"
        return {**known, "upstream": repo, "repo": repo, "commit": cached[3], "origin": CACHE}
    known = {key: record.get(key) for key in KEYS}
    for name, entry in record.get("files", {}).items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != entry["size"]:
            logging.warning(f"{folder / name} has changed since it was fetched: of what commit it is cannot be told")
            return {**known, "commit": None, "origin": CHANGED}
    return known


def _read(folder: Path) -> dict | None:
    """source.json, its types checked; None where there is none, or one that is somebody else's."""
    path = folder / FILE
    try:
        record = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        record = None
    else:
        if not isinstance(record, dict) or not {"repo", "origin"} <= record.keys():
            return None
    files = record.get("files", {}) if isinstance(record, dict) else None
    if (
        not isinstance(files, dict)
        or not all(isinstance(known, dict) and isinstance(known.get("size"), int) for known in files.values())
        or not all(isinstance(record.get(key), (str, type(None))) for key in KEYS)
    ):
        raise UserError(f"{path} is damaged: remove it to use the folder as it is, or the folder to fetch it again")
    return record


def licence_of(card) -> dict[str, str]:
    """``licence``, and its name and link where the licence is "other", of a model card's metadata."""
    known = {}
    for key, allowed in _LICENCE.items() if card else ():
        value = card.get(key.replace("licence", "license"))
        value = ", ".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(value, str) and re.fullmatch(allowed, value, re.ASCII):
            known[key] = value
    return known


def card_licence(folder: Path) -> dict[str, str]:
    """What the model card in a folder says of the licence; nothing where there is none."""
    from huggingface_hub import metadata_load

    try:
        return licence_of(metadata_load(folder / "README.md"))
    except Exception:  # no card, or one without metadata: several libraries' errors
        return {}


def named(record: dict, otherwise: str = "a local folder") -> str:
    """A record for people to read, such as "facebook/wav2vec2-base-100h at commit 1234"; no path of this machine."""
    name = record.get("upstream") or otherwise
    commit = record.get("commit")
    if commit:
        return f"{name} at commit {commit}"
    return f"{name} ({record['origin']})" if record.get("origin") else name
