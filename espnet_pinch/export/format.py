"""The base class of export formats, and all formats by name.

A format is a class in a file of ``espnet_pinch/export/formats``, decorated with ``register``. Nothing else lists
formats. Importing such a file must be cheap: it imports the libraries of the format only when it uses them.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from espnet_pinch.asr.head import ASR, find_head
from espnet_pinch.errors import UserError
from espnet_pinch.export import formats as package
from espnet_pinch.plugins import in_order

if TYPE_CHECKING:
    from espnet_pinch.asr.pruned import PrunedModel
    from espnet_pinch.export.check import Probe


OURS = "espnet_pinch.load"  # the loader of files that other libraries do not load


@dataclasses.dataclass(frozen=True)
class Original:
    """The model that is exported.

    Attributes:
        model: folded; formats do not change it.
        folded: its folder, as ``write_folded`` has written it.
        probe: utterances, and the model's logits of them.
        values: types that the user wants weights stored as; a format that has none of them takes its defaults.
    """

    model: PrunedModel
    folded: Path
    probe: Probe
    values: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far an exported file is from the original.

    Attributes:
        logit_difference: the largest difference of logits.
        texts_differing: number of transcripts that differ; 0 unless weights are rounded.
    """

    logit_difference: float
    texts_differing: int = 0


class Format(abc.ABC):
    """A format to export models in. A subclass that overrides ``read`` can also load models.

    Attributes:
        name: in ``--formats`` and export.json.
        title: what a file or folder in this format is called, without an article.
        library: the library that loads it.
        place: position among the formats in lists and in an export. ``detect`` is called in the opposite order, so that
            a new format is asked before those that accept any file.
        default: whether it is written if the user names no formats.
        packages: Python packages that it needs besides those of every model; the card names their versions.
        extra: the extra of espnet_pinch that installs these packages; None if there is none.
        values: types that it can store weights as, the first one exact; the user may choose several. Empty if there is
            only one.
        default_values: those of ``values`` that are written if the user names none.
        accepts: what a user may give to load into torch, each with its article; empty if ``read`` does not.
        signs: what a folder in this format contains.
        snippet: how to load it, in Markdown for the card. ``{folder}``, ``{file}`` and ``{rate}`` (Hz) are filled in;
            other braces are doubled.
        untested: what nobody has tested, one line for the card.
        hub_library: the Hugging Face hub's name of its library, for a folder in this format.
        snippets: ``{task: snippet}`` of the other tasks whose models it takes, too, besides speech recognition.
        own_snippets: ``{task: snippet}`` of files that ``OURS`` alone loads, where ``library`` is another one.
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
    snippets: ClassVar[Mapping[str, str]] = {}
    own_snippets: ClassVar[Mapping[str, str]] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Of the models that it takes."""
        return (ASR, *self.snippets)

    def loading(self, task: str, loader: str) -> str:
        """The snippet for a file of a model of that task, which ``loader`` loads."""
        return (self.own_snippets if loader != self.library else {ASR: self.snippet, **self.snippets})[task]

    @abc.abstractmethod
    def write(self, folder: Path, original: Original) -> dict[str, dict]:
        """Write the model into ``folder``, a temporary folder that exists.

        Returns: ``{file in the folder: facts}`` for export.json. Facts are ``what`` (the weights in it, in words) and,
        if they apply, ``bytes`` (if the model is more than that file), ``rounded`` (True if weights are rounded),
        ``sizes`` (with ``entropy_bound`` in bytes) and ``loader`` (if it is ``OURS`` instead of ``library``).

        Raises:
            UserError: the model does not fit the format.
        """

    @abc.abstractmethod
    def check(self, file: Path, original: Original) -> Comparison:
        """Load a file that ``write`` has written with the format's library, and compare it with the original.

        Raises:
            UserError: it is not the model that was exported.
        """

    def detect(self, path: Path) -> Path | None:
        """Where a model in this format is: ``path`` or a folder in it; None if there is none, or no ``path``."""
        return None

    def nearly(self, path: Path) -> str | None:
        """What a folder without a model lacks to be in this format; None if it does not look like this format."""
        return None

    def read(self, found: Path) -> PrunedModel:
        """The model that ``detect`` has found, on the CPU, in eval mode, float32.

        Raises:
            UserError: the model is damaged, incomplete or inconsistent; the message is one line.
        """
        raise self.refusal(found, "torch")

    def refusal(self, found: Path, runtime: str) -> UserError:
        """The error for a runtime that does not load the model that ``detect`` has found."""
        return UserError(
            f"{found} is of the format {self.name} ({self.title}), which {self.library} loads and {runtime} does not"
        )

    def weight_files(self, found: Path) -> list[Path]:
        """The files with the weights of the model that ``detect`` has found."""
        return [found]

    def files(self, found: Path) -> list[Path]:
        """All files that ``read`` reads, those with the weights first."""
        return self.weight_files(found)

    def info(self, found: Path) -> dict:
        """Figures for ``espnet-pinch info`` that only models in this format have."""
        return {}

    def info_lines(self, figures: dict) -> list[str]:
        """The figures of ``info`` as lines of text."""
        return []

    def layer_lines(self, layers: dict[str, dict], figures: dict) -> list[str]:
        """The layers as lines of text for ``espnet-pinch info``.

        Args:
            layers: what ``espnet_pinch.export.model.count_layers`` returns.
            figures: of ``info``.
        """
        width = max(map(len, layers), default=0)
        return [
            f"{name:{width}}  {' x '.join(map(str, layer['shape'])):>11}  "
            f"{100 * layer['pruned'] / layer['weights']:6.2f} %"
            for name, layer in layers.items()
        ]

    def chosen(self, original: Original) -> list[str]:
        """The types to store weights as: those that the user wants, or the defaults if it has none of them."""
        return [value for value in original.values if value in self.values] or list(self.default_values)

    def require(self) -> None:
        """Raise UserError if a package that the format needs is missing."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            wanted = f"'espnet_pinch[{self.extra}]'" if self.extra else " ".join(missing)
            raise UserError(
                f"the format {self.name} needs {' and '.join(missing)}, which must be installed: pip install {wanted}"
            )


_found: dict[str, Format] = {}


def register(build: type[Format]) -> type[Format]:
    """Decorate a subclass of ``Format`` to register it under its ``name``."""
    missing = [field for field in ("name", "title", "library", "snippet") if not hasattr(build, field)]
    if missing:
        raise TypeError(f"the format {build.__name__} does not define its {', '.join(missing)}")
    _found[build.name] = build()
    return build


def all_formats() -> dict[str, Format]:
    """``{name: format}``, sorted by ``place`` and name."""
    return in_order(package, _found)


def choose_formats(names: Sequence[str] = (), task: str = ASR) -> list[Format]:
    """The formats with these names, or the default ones if no name is given. All can be written on this machine.

    A default format that takes no models of the task is left out, which is said.

    Args:
        task: of the model.

    Raises:
        UserError: a name is unknown, a format takes no models of the task, or a package is missing.
    """
    what = find_head(task).what
    known = all_formats()
    for name in names:
        if name not in known:
            raise UserError(f"unknown format {name!r}; there is: {', '.join(known)}")
    wanted = [fmt for fmt in known.values() if (fmt.name in names if names else fmt.default)]
    refused = [fmt for fmt in wanted if task not in fmt.tasks]
    if names and refused:
        raise UserError(f"the format {refused[0].name} ({refused[0].title}) takes no {what}")
    for fmt in refused:
        print(f"note: the format {fmt.name} ({fmt.title}) takes no {what}: it is left out", flush=True)
    chosen = [fmt for fmt in wanted if task in fmt.tasks]
    for fmt in chosen:
        fmt.require()
    return chosen


def values_of(formats: Iterable[Format]) -> list[str]:
    """All types that at least one of the formats can store weights as."""
    return list(dict.fromkeys(value for fmt in formats for value in fmt.values))


def loadable() -> str:
    """What ``espnet_pinch.load`` accepts, in words."""
    *most, last = (thing for fmt in all_formats().values() for thing in fmt.accepts)
    return f"{', '.join(most)} or {last}"
