"""Where an upstream comes from: the meaning of its name, and the record that stage 0 leaves beside its files."""

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
from pathlib import Path

from espnet_pinch.data.upstream_files import check_folder
from espnet_pinch.errors import UserError
from espnet_pinch.files import read_json, write_json

FILE = "source.json"
MADE_HERE = ("mini", "micro")  # espnet_pinch.asr.small_upstreams makes them
# The fields of a record. ``origin`` is one of the texts below; ``upstream`` and ``ASKED`` are what the user named.
ASKED = ("repo", "revision", "language")
KEYS = ("upstream", *ASKED, "commit", "licence", "licence_name", "licence_link", "origin")
HUB, CACHE, BY_HAND, MADE, CHANGED = (
    "the Hugging Face hub",
    "the cache of the Hugging Face hub",
    "put there by hand, not checked",
    "made by espnet_pinch, random weights",
    "changed by hand since it was fetched",
)


# A licence goes into the metadata of another model card, so only values of plain words and links are taken.
_LICENCE = {
    "licence": r"\w[\w.+-]*(, \w[\w.+-]*)*",
    "licence_name": r"\w[\w. +-]*",
    "licence_link": r"https?://[\w./~%?&=+-]+|\w[\w./-]*",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The meaning of an upstream's name: a folder, a model on the hub, or (if neither) a small model made here.

    Attributes:
        name: the name as the user gave it.
        folder: a folder that exists.
        repo: "owner/name" on the hub.
        revision: the branch, tag or commit that the user named; None means the hub's default.
        language: whose adapter weights stage 0 merges into the model; None for a model of one language.
    """

    name: str
    folder: str | None = None
    repo: str | None = None
    revision: str | None = None
    language: str | None = None

    @property
    def folder_name(self) -> str:
        """Name of the folder that stage 0 makes for the upstream; no two have the same, "" if it makes none."""
        if self.folder:
            if not self.language:
                return ""
            path = os.path.abspath(self.folder)
            place = hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
            return f"{re.sub(r'[^A-Za-z0-9._-]', '_', os.path.basename(path))}_{place}~{self.language}"
        if self.repo is None:
            return self.name
        revision = f"@{self.revision.replace('/', '--')}" if self.revision else ""
        return self.repo.replace("/", "--") + revision + (f"~{self.language}" if self.language else "")

    @property
    def place(self) -> str:
        """The name, with an absolute path of a folder."""
        if not self.folder:
            return self.name
        return os.path.abspath(self.folder) + (f":{self.language}" if self.language else "")

    def record(self, **known) -> dict:
        """The content of source.json: ``known`` and what the user named; the other keys are null."""
        asked = {"upstream": self.name, **{key: getattr(self, key) for key in ASKED}}
        return {**dict.fromkeys(KEYS), **asked, **known}


def parse_source(name: str) -> Source:
    """The meaning of "mini", "micro", a folder, "owner/name" or "owner/name@revision", the last three also with a
    language: "owner/name:eng".

    A name that looks like a path but does not exist is an error; the hub is not asked for it.

    Raises:
        FileNotFoundError: the name is such a path.
        UserError: the name is none of these.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if name in MADE_HERE:
        return Source(name)
    if os.path.isdir(name):
        return Source(name, folder=name)
    if os.path.exists(name):
        raise UserError(f"the upstream {name} is a file; an upstream is a folder")
    of, colon, language = name.rpartition(":")
    if colon and of not in MADE_HERE and re.fullmatch(r"\w[\w-]*", language, re.ASCII):
        return dataclasses.replace(parse_source(of), name=name, language=language)
    if re.match(r"\w+://", name):
        raise UserError(f"the upstream {name} is an address: give the model's name alone, owner/name")
    repo, at, revision = name.partition("@")
    first = repo.split("/")[0]
    if name.startswith((".", "/", "~")) or repo.count("/") > 1 or repo.endswith("/"):
        hint = " (~ is not expanded here: write the full path)" if name.startswith("~") else ""
        raise FileNotFoundError(f"the upstream folder {name} does not exist{hint}")
    if "/" not in repo:
        raise UserError(
            f"unknown upstream {name!r}: neither a folder, nor a model of the Hugging Face hub (owner/name or "
            f"owner/name@revision), nor {' or '.join(MADE_HERE)}"
        )
    if os.path.isdir(first):
        raise FileNotFoundError(
            f"the upstream folder {name} does not exist (the folder {first} does; as long as it exists, the hub is not "
            "asked for this name)"
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
    """Whether ``folder`` holds the complete upstream that the user named.

    A folder without a record was put there by hand. It is used as it is, and gets a record that says so.

    Raises:
        UserError: the folder holds another upstream, a file has changed since it was fetched, or the record or the
            list of shards is damaged.
        OSError: a file cannot be read.
    """
    record = _read(folder)
    if record is not None and any(record.get(key) != getattr(source, key) for key in ASKED):
        raise UserError(
            f"{folder} holds the upstream {record.get('upstream')}, as its {FILE} says, not {source.name}: give "
            "another folder, or remove this one"
        )
    if record is not None:
        for name, known in record.get("files", {}).items():
            if not (folder / name).is_file():
                return False
            if (folder / name).stat().st_size != known["size"]:
                raise UserError(
                    f"{folder / name} has changed since it was fetched: remove it to fetch it again, or remove {FILE} "
                    "beside it to use the folder as it is"
                )
    try:
        files = check_folder(folder)
    except FileNotFoundError:
        return False
    if record is None:
        print(f"{source.name}: files put into {folder} by hand are used: {', '.join(files)}", flush=True)
        with contextlib.suppress(PermissionError):  # no record in a folder where this user may not write
            write_record(folder, source.record(origin=BY_HAND))
    return True


def write_record(folder: Path, record: dict) -> None:
    write_json(folder / FILE, record)


def commit_of(folder: Path) -> str | None:
    """The commit that the record of ``folder`` names, even if some of its files are missing."""
    return (_read(folder) or {}).get("commit")


def read_record(folder: str | os.PathLike) -> dict:
    """Where the files of ``folder`` come from: the ``KEYS``, each None if not known.

    Raises:
        UserError: the record is damaged.
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
            logging.warning(f"{folder / name} has changed since it was fetched: its commit is not known")
            return {**known, "commit": None, "origin": CHANGED}
    return known


def _read(folder: Path) -> dict | None:
    """source.json, with its types checked; None if it does not exist or another program wrote it."""
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
        raise UserError(f"{path} is damaged: remove it to use the folder as it is, or the folder to fetch all again")
    return record


def licence_of(card) -> dict[str, str]:
    """The licence in a model card's metadata, and its name and link if the card has them."""
    known = {}
    for key, allowed in _LICENCE.items() if card else ():
        value = card.get(key.replace("licence", "license"))
        value = ", ".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(value, str) and re.fullmatch(allowed, value, re.ASCII):
            known[key] = value
    return known


def card_licence(folder: Path) -> dict[str, str]:
    """The licence that the model card in a folder states; {} if there is no card."""
    from huggingface_hub import metadata_load

    try:
        return licence_of(metadata_load(folder / "README.md"))
    except Exception:  # no card, or a card without metadata: several libraries raise their own errors
        return {}


def named(record: dict, otherwise: str = "a local folder") -> str:
    """A record as text, such as "facebook/wav2vec2-base-100h at commit 1234"; it has no path of this machine."""
    name = record.get("upstream") or otherwise
    commit = record.get("commit")
    if commit:
        return f"{name} at commit {commit}"
    return f"{name} ({record['origin']})" if record.get("origin") else name
