"""What an export format is, and all of them by name.

A format is a file in ``espnet_pinch/export/formats``; it registers itself with ``register``. Nothing else lists
formats. Importing such a file is cheap: what a format works with is imported when it works.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from espnet_pinch.errors import UserError
from espnet_pinch.export import formats as package
from espnet_pinch.plugins import import_all

if TYPE_CHECKING:
    from espnet_pinch.asr.model import PruningASRModel
    from espnet_pinch.export.check import Probe


@dataclasses.dataclass(frozen=True)
class Original:
    """The model that is exported.

    Attributes:
        model: folded; formats leave it as it is.
        folded: its folder, as ``write_folded`` leaves it.
        probe: utterances, and the model's logits of them.
        values: what the user wants weights stored as; a format with a choice that has none of them takes its defaults.
    """

    model: PruningASRModel
    folded: Path
    probe: Probe
    values: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far an exported file is from the original.

    Attributes:
        logit_difference: the largest.
        texts_differing: number of transcripts; none but where weights are rounded.
    """

    logit_difference: float
    texts_differing: int = 0


class Format(abc.ABC):
    """A format to export models in. A subclass with a method ``read`` of its own is one to load models from, too.

    Attributes:
        name: in ``--formats`` and export.json.
        title: what a file or folder in this format is called, without an article.
        library: who loads it.
        place: position among the formats in lists and in an export. Asked whether a path is theirs, they answer in the
            opposite order, so that a newcomer is asked before those that take whatever is left.
        default: whether it is written where no formats are named.
        packages: Python packages it needs beside those of every model; the card names their versions.
        extra: the extra of espnet_pinch that installs these; None where it has none.
        values: what it can store weights as, all a user's choice; empty where there is but one way.
        default_values: those of ``values`` that are written where none are named.
        accepts: what a user may give to load, each with its article; empty where it is not for us to load.
        signs: what a folder in this format holds.
        snippet: how to load it, Markdown for the card; ``{folder}``, ``{file}``, ``{rate}`` (Hz) are filled in, other
            braces doubled.
        untested: what nobody has tried with it, a line for the card.
        hub_library: what the Hugging Face hub calls its library, for a folder of this format.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    library: ClassVar[str]
    place: ClassVar[int] = 100
    default: ClassVar[bool] = False
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    values: ClassVar[tuple[str, ...]] = ()
    default_values: ClassVar[tuple[str, ...]] = ()
    accepts: ClassVar[tuple[str, ...]] = ()
    signs: ClassVar[tuple[str, ...]] = ()
    snippet: ClassVar[str]
    untested: ClassVar[str] = ""
    hub_library: ClassVar[str | None] = None

    @abc.abstractmethod
    def write(self, folder: Path, original: Original) -> dict[str, dict]:
        """Write the model into ``folder``, which is there, and is nobody's yet.

        Returns: ``{file in the folder: facts}`` for export.json: ``what`` (the weights in it, in words), and where it
        applies ``bytes`` (where a model is more than that file), ``rounded`` (weights are: true) and ``sizes`` (with
        ``entropy_bound``, bytes).

        Raises:
            UserError: the model does not fit the format.
        """

    @abc.abstractmethod
    def check(self, file: Path, original: Original) -> Comparison:
        """Load a file of ``write`` by the format's library, and compare.

        Raises:
            UserError: it is not the model that was exported.
        """

    def detect(self, path: Path) -> Path | None:
        """Where in ``path``, a file, a folder or nothing, a model of this format is; None where there is none."""
        return None

    def nearly(self, path: Path) -> str | None:
        """What a folder without any model lacks to be of this format; None where it is not meant to be."""
        return None

    def read(self, found: Path) -> PruningASRModel:
        """The model that ``detect`` has found, on the CPU, in eval mode, float32.

        Raises:
            UserError: damaged, incomplete or inconsistent; one line.
        """
        raise UserError(f"{found} is of the kind {self.title!r}: {self.library} loads it, espnet_pinch does not")

    def weight_files(self, found: Path) -> list[Path]:
        """The files with the weights of the model that ``detect`` has found."""
        return [found]

    def info(self, found: Path) -> dict:
        """Figures for ``espnet-pinch info`` that models in other formats do not have."""
        return {}

    def info_lines(self, figures: dict) -> list[str]:
        """``info``'s figures as lines."""
        return []

    def require(self) -> None:
        """Raises UserError where a package is missing that the format needs."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            wanted = f"'espnet_pinch[{self.extra}]'" if self.extra else " ".join(missing)
            raise UserError(
                f"the format {self.name} needs {' and '.join(missing)}, not installed here: pip install {wanted}"
            )


_found: dict[str, Format] = {}


def register(build: type[Format]) -> type[Format]:
    """Decorate a subclass of ``Format`` to register it under its ``name``."""
    missing = [field for field in ("name", "title", "library", "snippet") if not hasattr(build, field)]
    if missing:
        raise TypeError(f"the format {build.__name__} does not say its {', '.join(missing)}")
    _found[build.name] = build()
    return build


def all_formats() -> dict[str, Format]:
    """``{name: format}``, by ``place`` and name."""
    import_all(package)
    return {fmt.name: fmt for fmt in sorted(_found.values(), key=lambda fmt: (fmt.place, fmt.name))}


def choose_formats(names: Sequence[str] = ()) -> list[Format]:
    """The formats of these names, the default ones where there are none; each can be written here.

    Raises:
        UserError: an unknown name, or a package is missing.
    """
    known = all_formats()
    for name in names:
        if name not in known:
            raise UserError(f"unknown format {name!r}; there is: {', '.join(known)}")
    chosen = [fmt for fmt in known.values() if (fmt.name in names if names else fmt.default)]
    for fmt in chosen:
        fmt.require()
    return chosen


def values_of(formats: Iterable[Format]) -> list[str]:
    """What weights can be stored as, in one of the formats or another."""
    return list(dict.fromkeys(value for fmt in formats for value in fmt.values))


def loadable() -> str:
    """What ``espnet_pinch.load`` takes, in words."""
    *most, last = (thing for fmt in all_formats().values() for thing in fmt.accepts)
    return f"{', '.join(most)} or {last}"
