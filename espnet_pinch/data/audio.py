"""Read the audio of a wav.scp entry."""

import re

import kaldiio
import numpy as np
import soundfile


def read_audio(entry: str) -> np.ndarray:
    """Samples (float32, -1..1) of a sound file, or of ``file.ark:offset`` out of a packed archive.

    Raises:
        OSError: the file cannot be read.
    """
    if re.search(r"\.ark:\d+$", entry):
        try:
            samples = kaldiio.load_mat(entry)[1]
        except OSError:
            raise
        except Exception as error:  # a damaged archive shows in many ways
            raise OSError(f"{entry} cannot be read: {error or type(error).__name__}") from None
        return (samples / 32768).astype(np.float32) if samples.dtype == np.int16 else samples.astype(np.float32)
    try:
        return soundfile.read(entry, dtype="float32")[0]
    except soundfile.LibsndfileError as error:
        raise OSError(f"{entry} cannot be read: {error}") from None
