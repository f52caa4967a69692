"""The Hugging Face folder: a dense model for transformers, with its processor and vocabulary."""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCTC, AutoProcessor, pipeline

from espnet_pinch.export.check import Probe


def copy_hugging_face(folded: Path, folder: Path) -> None:
    """Copy the Hugging Face folder of a folded model into ``folder``, which is there."""
    shutil.copytree(folded / "hf", folder, dirs_exist_ok=True)


@torch.inference_mode()
def check_hugging_face(folder: Path, probe: Probe) -> float:
    """transformers' model, processor and pipeline on the probe's utterances, one at a time.

    Returns: the largest difference of logits.

    Raises:
        ValueError: as ``Probe.compare``.
    """
    model, processor = AutoModelForCTC.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    rate = processor.feature_extractor.sampling_rate
    logits = [
        model(**processor(samples.numpy(), sampling_rate=rate, return_tensors="pt")).logits[0]
        for samples in probe.audio
    ]
    difference = probe.compare("AutoModelForCTC", logits)
    recognise = pipeline("automatic-speech-recognition", model=str(folder))
    probe.compare_texts("pipeline", [recognise(samples.numpy())["text"] for samples in probe.audio])
    return difference
