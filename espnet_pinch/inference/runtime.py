"""The base class of runtimes, which compute a model, and all runtimes by name.

A runtime is a class in a file of ``espnet_pinch/inference/runtimes``, decorated with ``register``. Nothing else lists
runtimes. Importing such a file must be cheap: it imports the library of the runtime only when it uses it.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import espnet_pinch
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.export.format import Format, Original, all_formats
from espnet_pinch.extras import how_to_install
from espnet_pinch.inference import runtimes as package
from espnet_pinch.inference.cache import kept
from espnet_pinch.plugins import in_order

if TYPE_CHECKING:
    from espnet_pinch.asr.recogniser import Recogniser

FLOAT32 = "float32"
DEVICES = ("cpu", "cuda")
DTYPES = (FLOAT32, "bfloat16", "float16")
MOST_THREADS = 1024  # runtimes crash or hang with far more
_CONVERSION = ("torch", "transformers")  # packages that every conversion depends on


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model is to be computed.

    Attributes:
        threads: of the CPU, 1 to ``MOST_THREADS``; None for as many as torch takes ($OMP_NUM_THREADS, or all cores).
        dtype: one of ``DTYPES``, of weights and products.
        device: one of ``DEVICES``.
        say: is called with each line for the user.

    Raises:
        UserError: a value is not one of these.
    """

    threads: int | None = None
    dtype: str = FLOAT32
    device: str = "cpu"
    say: Callable[[str], None] = to_stderr

    def __post_init__(self):
        if self.threads is not None and (type(self.threads) is not int or not 1 <= self.threads <= MOST_THREADS):
            raise UserError(
                f"the number of threads must be a whole number from 1 to {MOST_THREADS}, not {self.threads!r}"
            )
        if self.dtype not in DTYPES:
            raise UserError(f"the dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.device not in DEVICES:
            raise UserError(f"the device {self.device!r} is not one of {', '.join(DEVICES)}")

    def count_threads(self) -> int:
        import torch

        return self.threads or torch.get_num_threads()


class Runtime(abc.ABC):
    """A library that computes models.

    Attributes:
        name: in ``--runtime``.
        place: position among the runtimes in lists.
        packages: modules that it needs besides those of every model.
        reads: names of the formats that it opens as they are. Models in other formats are compiled into the first.
        on_gpu: whether it also runs on a GPU that torch sees.
    """

    name: ClassVar[str]
    place: ClassVar[int] = 100
    packages: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]]
    on_gpu: ClassVar[bool] = False

    @abc.abstractmethod
    def open(self, file: Path, options: Options) -> Recogniser:
        """A model in a format of ``reads``. ``options`` have been checked.

        Raises:
            UserError: the file is damaged, or not one of our export; the message names it.
        """

    def dtypes(self, device: str = "cpu") -> tuple[str, ...]:
        """The types that it can compute in on this machine; empty if it does not run on the device. It is installed."""
        return (FLOAT32,) if device == "cpu" else ()

    def loads(self, fmt: Format) -> bool:
        """Whether it computes models in a format."""
        return fmt.name in self.reads or bool(fmt.accepts)

    def import_packages(self) -> None:
        """Import what it needs, which ``open`` would do, too."""
        for name in self.packages:
            importlib.import_module(name)

    def missing(self) -> str | None:
        """What to install, in one line; None if nothing is missing."""
        absent = next((name for name in self.packages if importlib.util.find_spec(name) is None), None)
        return absent and how_to_install(absent)

    def check(self, fmt: Format, found: Path, options: Options) -> None:
        """Raise UserError if it is not installed, does not load the model, or cannot compute as ``options`` say."""
        if missing := self.missing():
            raise UserError(missing)
        if not self.loads(fmt):
            raise fmt.refusal(found, self.name)
        try:
            if self.packages:
                self.import_packages()
        except ImportError as error:  # such as a library of the system that is too old
            raise UserError(f"{self.name} is installed, but cannot be imported: {one_line(error)}") from None
        able = self.dtypes(options.device)
        if not able and self.on_gpu:
            raise UserError(f"--device {options.device}: torch sees no GPU here")
        if not able:
            raise UserError(f"the runtime {self.name} runs on a CPU alone, not on the device {options.device}")
        if options.dtype not in able:
            raise UserError(f"the runtime {self.name} computes in {', '.join(able)} here, not in {options.dtype}")

    def load(self, fmt: Format, found: Path, options: Options) -> Recogniser:
        """The model that ``fmt.detect`` has found, compiled if need be.

        Raises:
            UserError: as ``check`` and ``open``; or the model cannot be loaded or compiled.
        """
        self.check(fmt, found, options)
        if fmt.name in self.reads:
            return self.open(found, options)
        folder = self.compiled(fmt, found, options.say)
        target = all_formats()[self.reads[0]]
        [file] = [path for path in sorted(folder.rglob("*")) if target.detect(path)]
        return self.open(file, options)

    def compiled(self, fmt: Format, found: Path, say: Callable[[str], None]) -> Path:
        """A folder with the model in the first format of ``reads``, checked against torch when it is made."""
        target = all_formats()[self.reads[0]]
        target.require()

        def build(folder: Path) -> None:
            from espnet_pinch.export.check import Probe, noise
            from espnet_pinch.export.load import read_finite

            say(f"note: {found} is compiled for {self.name}, once")
            model = read_finite(fmt, found)
            probe = Probe.of(model, noise(2, model.frontend.processing.sampling_rate))
            original = Original(model, folder, probe, target.values[:1])
            [(file, _)] = target.write(folder, original).items()
            target.check(folder / file, original)

        packages = dict.fromkeys([*_CONVERSION, *target.packages])
        versions = [f"{name}{version(name)}" for name in packages]
        return kept(fmt.files(found), self.name, [f"pinch{espnet_pinch.__version__}", *versions], build, say)


_found: dict[str, Runtime] = {}


def register(build: type[Runtime]) -> type[Runtime]:
    """Decorate a subclass of ``Runtime`` to register it under its ``name``."""
    _found[build.name] = build()
    return build


def all_runtimes() -> dict[str, Runtime]:
    """``{name: runtime}``, sorted by ``place`` and name."""
    return in_order(package, _found)


def find_runtime(name: str) -> Runtime:
    """The runtime of that name; raises UserError if there is none."""
    known = all_runtimes()
    if name not in known:
        raise UserError(f"unknown runtime {name!r}; there is: {', '.join(known)}, auto")
    return known[name]


def usual_runtime(fmt: Format) -> Runtime:
    """The first runtime that computes models in a format: torch if it can."""
    return next(runtime for runtime in all_runtimes().values() if runtime.loads(fmt))


def cannot_be_read(file: Path, library: str, error: Exception) -> UserError:
    """The error for a file that a library refuses."""
    return UserError(f"{file} cannot be read by {library}: it is damaged or no such file: {one_line(error)[:200]}")
