"""ESPnet's packed zip: what ``Speech2Text`` loads where espnet_pinch is installed."""

import contextlib
import sys
import tempfile
from pathlib import Path

from espnet2.main_funcs.pack_funcs import pack, unpack

from espnet_pinch.asr.safe_load import tensors_only
from espnet_pinch.export.check import Probe, batch_logits


def write_packed(path: Path, folded: Path) -> None:
    """Pack ``config.yaml`` and ``model.pth`` of a folded model, under these names."""
    # pack() keeps the paths as they are seen from the current folder, and prints.
    path = path.absolute()
    with contextlib.chdir(folded), contextlib.redirect_stdout(sys.stderr):
        pack(files={"asr_model_file": "model.pth"}, yaml_files={"asr_train_config": "config.yaml"}, outpath=path)


def check_packed(path: Path, probe: Probe) -> float:
    """Unpack with ESPnet's ``unpack``, load and decode with its ``Speech2Text``.

    ESPnet's beam search need not agree with greedy search: it has only to run, the logits are what is compared.

    Returns: the largest difference of logits.

    Raises:
        ValueError: as ``Probe.compare``.
    """
    from espnet2.bin.asr_inference import Speech2Text

    import espnet_pinch.asr.task  # noqa: F401  (registers frontend and model with ESPnet)

    with tempfile.TemporaryDirectory() as folder, tensors_only():
        speech2text = Speech2Text(**unpack(path, folder), ctc_weight=1.0, lm_weight=0.0, beam_size=1)
    speech2text(probe.audio[0])
    return probe.compare("Speech2Text", [batch_logits(speech2text.asr_model, [a])[0] for a in probe.audio])
