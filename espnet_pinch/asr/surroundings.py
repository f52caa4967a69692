"""What ESPnet and torch take for granted of a machine when they are imported: a network, and a user with a name."""

import getpass
import importlib
import importlib.util
import os
import sys
import tempfile
import types


def name_torchs_cache() -> None:
    """Where the user has no name, as in a container with ``--user 1234``, name the cache that torch calls after it."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}")


class _UntilUsed(types.ModuleType):
    """Stands for a module; the module itself is imported when its ``G2p`` is asked for, which is all ESPnet takes."""

    def __getattr__(self, name: str):
        if name != "G2p":  # those who search all modules for something else are not to import it
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} until its G2p is used")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__).G2p


def put_off_g2p() -> None:
    """Have ``import g2p_en`` do nothing until ``g2p_en.G2p`` is used; nothing changes where it is imported already.

    ESPnet imports it for phonemes, and it fetches its data in the middle of that import. Where packets are dropped that
    takes minutes, at the start of every program. Characters need no phonemes.
    """
    name = "g2p_en"
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None:
        module = _UntilUsed(name)
        module.__spec__, module.__file__, module.__path__ = spec, spec.origin, spec.submodule_search_locations
        sys.modules[name] = module
