"""What to tell the user about an error."""

import re
import sys

from espnet_pinch.errors import UserError, one_line
from espnet_pinch.extras import how_to_install
from espnet_pinch.files import DISK_REASONS
from espnet_pinch.unreadable import permission_reason

_SMALLER = "lower batch_size (and raise accum_grad as much) or max_wav_duration; in decoding, inference_batch_size"
# {pattern in an error message of torch, CUDA, numpy or kaldiio: what is wrong and what to do}
_ADVICE = {
    r"CUDA out of memory|_STATUS_ALLOC_FAILED": f"the GPU's memory is full: {_SMALLER}",
    r"can't allocate memory|Unable to allocate": f"the memory is full: {_SMALLER}",
    r"DataLoader worker .*(killed|exited)|shared memory|Bus error": "a process that loads batches has ended, "
    "perhaps because memory or /dev/shm is full: lower num_workers, or give the container more (docker run --shm-size)",
    r"Not a Kaldi object|Unexpected end of archive": "an audio archive is damaged, or it does not belong to its "
    "wav.scp: prepare the data again",
    r"allow_pickle=False": "a numpy file holds a pickle, which could run code: refused (allow_pickle=False)",
    r"PytorchStreamWriter|inline_container": "a weight file cannot be written: is the disk full?",
}


def explain(error: Exception) -> str | None:
    """One line for an error that the user can cause; None for a fault of the program, which needs its traceback."""
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: {permission_reason(error.filename)}"
    if isinstance(error, OSError) and error.strerror and (error.filename or error.errno in DISK_REASONS):
        reason = DISK_REASONS.get(error.errno, error.strerror[:1].lower() + error.strerror[1:])
        return f"{error.filename}: {reason}" if error.filename else reason
    if isinstance(error, (RuntimeError, ValueError)):
        advice = _advice(error)
        if advice:
            return advice
    if isinstance(error, ModuleNotFoundError):
        return how_to_install(error.name)
    yaml = sys.modules.get("yaml")  # None if nothing has imported it, and then no error is of its type
    if isinstance(error, (UserError, OSError, FloatingPointError, *([yaml.YAMLError] if yaml else []))):
        return one_line(error)
    if isinstance(error, MemoryError):
        return _advice(error) or explain(MemoryError("Unable to allocate"))
    return None


def _advice(error: Exception) -> str | None:
    return next((line for pattern, line in _ADVICE.items() if re.search(pattern, str(error))), None)
