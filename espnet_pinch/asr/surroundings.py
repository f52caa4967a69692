"""Import ESPnet and torch sooner, on a machine without a network, or as a user without a name; they expect both."""

import getpass
import importlib
import importlib.util
import os
import sys
import tempfile
import types


def name_torchs_cache() -> None:
    """Set torch's cache folder if the user has no name (a container with ``--user 1234``): torch would use the name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}")


class _UntilUsed(types.ModuleType):
    """Stands for a module, which is imported when its ``G2p`` is used. ESPnet uses nothing else of it."""

    def __getattr__(self, name: str):
        if name != "G2p":  # code that searches all modules must not import it
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} until its G2p is used")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__).G2p


def put_off_g2p() -> None:
    """Make ``import g2p_en`` do nothing until ``g2p_en.G2p`` is used, unless it is already imported.

    ESPnet imports g2p_en for phonemes, and that import downloads data. If the network drops packets, this takes minutes
    at the start of every program. Character tokens need no phonemes.
    """
    name = "g2p_en"
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None:
        module = _UntilUsed(name)
        module.__spec__, module.__file__, module.__path__ = spec, spec.origin, spec.submodule_search_locations
        sys.modules[name] = module


_UNCHECKED = ("espnet2", "inflect")


def _unchanged(function):
    return function


def leave_out_type_checks() -> None:
    """Make ``from typeguard import typechecked`` give ESPnet, and inflect, which it imports, an idle decorator.

    For each function that it decorates, typeguard parses and compiles the whole module again. That took 40 % of the
    time in which a program imports ESPnet. Other modules get typeguard's own decorator.
    """
    if importlib.util.find_spec("typeguard") is None:  # nor is ESPnet there
        return
    import typeguard

    typechecked = vars(typeguard).pop("typechecked", None)
    if typechecked is None:  # done before
        return

    def attribute(name: str):
        if name != "typechecked":
            raise AttributeError(f"module 'typeguard' has no attribute {name!r}")
        importer = sys._getframe(1).f_globals.get("__name__", "")
        return _unchanged if importer.partition(".")[0] in _UNCHECKED else typechecked

    typeguard.__getattr__ = attribute
