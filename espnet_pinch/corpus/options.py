"""The options of a corpus that comes by one of the ways in. Programs and ``run.sh`` get all of them from here."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from espnet_pinch.corpus.columns import KNOWN
from espnet_pinch.corpus.splits import SPEAKER, UTTERANCE, Splits, words_of
from espnet_pinch.corpus.way import Way, all_ways
from espnet_pinch.errors import UserError


@dataclasses.dataclass(frozen=True)
class Setting:
    """An option beside the ways in.

    Attributes:
        takes: what it takes, for ``--help``.
        default: as text.
        about: a line for each line of ``--help``.
    """

    takes: str
    default: str
    about: str


SETTINGS: Mapping[str, Setting] = {
    "splits": Setting(
        '"S=X,Y ..."',
        "",
        'the sets take these splits of the corpus; "dev=train:0.05"\ntakes 5 % of the speakers of train',
    ),
    "dev_share": Setting("X", "0.05", "share of the speakers in the validation set, where the corpus\nnames no splits"),
    "test_share": Setting("X", "0.05", "the same of the test set"),
    "split_by": Setting("BY", SPEAKER, f"{SPEAKER} or {UTTERANCE}: what sets and shares are made by"),
    "columns": Setting('"A=B ..."', "", f"names of columns: audio=path 'text=Full Text'; of\n{', '.join(KNOWN)}"),
}


def help_lines() -> list[str]:
    """The lines of ``run.sh --help``."""
    entries = [(f"--{way.name} {way.takes}", way.summary, "") for way in all_ways().values()]
    entries += [(f"--{name} {s.takes}", s.about, s.default) for name, s in SETTINGS.items()]
    lines = []
    for option, about, default in entries:
        first, *rest = about.splitlines()
        lines.append(f"  {option:<24} {first}")
        lines += [f"  {'':<24} {line}" for line in rest]
        if default:
            lines[-1] = f"{lines[-1]:<97} [{default}]"
    return lines


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the ways in, ``SETTINGS`` and the names of the sets."""
    ways = parser.add_mutually_exclusive_group(required=True)
    for way in all_ways().values():
        ways.add_argument(f"--{way.name}", type=Path, metavar=way.takes, help=" ".join(way.summary.split()))
    for name, setting in SETTINGS.items():
        about = f"{' '.join(setting.about.split())} [{setting.default}]".replace("%", "%%")
        parser.add_argument(f"--{name}", default=setting.default, metavar=setting.takes, help=about)
    parser.add_argument("--train_set", required=True)
    parser.add_argument("--valid_set", required=True)
    parser.add_argument("--test_sets", nargs="+", required=True)


def way_of(args: argparse.Namespace) -> tuple[Way, Path]:
    """The way in that was given, and the corpus.

    Raises:
        FileNotFoundError: there is no such file or folder.
        UserError: it is a pipe or a device, which cannot be read again.
    """
    name, source = next((name, getattr(args, name)) for name in all_ways() if getattr(args, name))
    if not source.exists():
        raise FileNotFoundError(f"--{name}: {source} does not exist")
    if not source.is_file() and not source.is_dir():
        raise UserError(f"--{name}: {source} is neither a file nor a folder; write what a pipe gives to a file first")
    return all_ways()[name], source.absolute()


def splits_of(args: argparse.Namespace) -> Splits:
    """The rule from splits to sets.

    Raises:
        UserError: as ``Splits``; or a setting is none.
    """
    shares = {}
    for name in ("dev_share", "test_share"):
        try:
            shares[name] = float(getattr(args, name))
        except ValueError:
            raise UserError(f"--{name} must be a fraction such as 0.05, not {getattr(args, name)!r}") from None
    if args.split_by not in (SPEAKER, UTTERANCE):
        raise UserError(f"--split_by must be {SPEAKER} or {UTTERANCE}, not {args.split_by!r}")
    return Splits(args.train_set, args.valid_set, args.test_sets, args.splits, **shares)


def columns_of(args: argparse.Namespace) -> dict[str, str]:
    """``{name of ours: name in the corpus}``.

    Raises:
        UserError: a word is not of that form.
    """
    found = {}
    for word in words_of("columns", args.columns):
        ours, equals, theirs = word.partition("=")
        if not equals or not theirs or ours not in KNOWN:
            raise UserError(f'--columns must be like "audio=path text=sentence", with {", ".join(KNOWN)}; not {word!r}')
        found[ours] = theirs
    return found
