"""What to tell the user of an error."""

import re
import sys

from espnet_pinch.errors import UserError, one_line
from espnet_pinch.extras import how_to_install
from espnet_pinch.files import DISK_REASONS
from espnet_pinch.unreadable import permission_reason

_SMALLER = "lower batch_size (and raise accum_grad as much) or max_wav_duration; in decoding, inference_batch_size"
# What torch, CUDA and numpy say when memory ends: what to do.
_ADVICE = {
    r"CUDA out of memory|_STATUS_ALLOC_FAILED": f"the memory of the GPU is full: {_SMALLER}",
    r"can't allocate memory|Unable to allocate": f"the memory is full: {_SMALLER}",
    r"DataLoader worker .*(killed|exited)|shared memory|Bus error": "a process that loads batches has ended, as "
    "happens where memory or /dev/shm is full: lower num_workers, or give the container more (docker run --shm-size)",
    r"Not a Kaldi object|Unexpected end of archive": "an archive of audio is damaged, or is not the one that "
    "its wav.scp was made for: prepare the data again",
    r"allow_pickle=False": "a file of numpy's holds a pickle, which could run code: refused (allow_pickle=False)",
    r"PytorchStreamWriter|inline_container": "a file of weights cannot be written: is the disk full?",
}


def explain(error: Exception) -> str | None:
    """One line for an error that its user can cause; None for a fault of the program, which wants its traceback."""
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: {permission_reason(error.filename)}"
    if isinstance(error, OSError) and error.errno in DISK_REASONS and error.strerror:
        reason = DISK_REASONS[error.errno]
        return f"{error.filename}: {reason}" if error.filename else reason
    if isinstance(error, (RuntimeError, ValueError)):
        advice = _advice(error)
        if advice:
            return advice
    if isinstance(error, ModuleNotFoundError):
        return how_to_install(error.name)
    yaml = sys.modules.get("yaml")  # not there where the core alone is installed, and then no error is of its type
    if isinstance(error, (UserError, OSError, FloatingPointError, *([yaml.YAMLError] if yaml else []))):
        return one_line(error)
    if isinstance(error, MemoryError):
        return _advice(error) or explain(MemoryError("Unable to allocate"))
    return None


def _advice(error: Exception) -> str | None:
    return next((line for pattern, line in _ADVICE.items() if re.search(pattern, str(error))), None)
