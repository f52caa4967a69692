"""What recognisers of exported files have in common: they know of their model what the file's metadata says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from espnet_pinch.asr.recogniser import Recogniser, checked
from espnet_pinch.errors import UserError
from espnet_pinch.export.metadata import Metadata

if TYPE_CHECKING:
    from torch import Tensor


class ExportedRecogniser(Recogniser):
    """A file of our export in a runtime."""

    def __init__(self, metadata: Metadata, file: Path):
        self.metadata, self.task, self.file = metadata, metadata.task, file
        self.token_list, self.sampling_rate = metadata.tokens, metadata.sampling_rate
        self.subwords = metadata.subwords_model
        self.samples_per_frame, self.shortest = metadata.samples_per_frame, metadata.shortest

    def checked(self, logits: Tensor) -> Tensor:
        """``logits``; raises UserError if one is not finite, or if they are not as many as the metadata's tokens."""
        if logits.shape[-1] != len(self.token_list):
            raise UserError(
                f"{self.file} has {logits.shape[-1]} outputs, and its metadata names {len(self.token_list)}: export "
                "the model again"
            )
        return checked(logits)
