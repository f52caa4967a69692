"""A classifier of utterances as an ESPnet model, with a pruning method in it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.head import CLASSIFY
from espnet_pinch.asr.pruned import PrunedModel
from espnet_pinch.errors import UserError


class Classes(nn.Module):
    """The head of transformers' models for sequence classification.

    Args:
        width: of the hidden states.
        labels: their number.
        projected: width of the projection.
    """

    def __init__(self, width: int, labels: int, projected: int):
        super().__init__()
        self.projector = nn.Linear(width, projected)
        self.classifier = nn.Linear(projected, labels)

    def forward(self, hidden: Tensor, frames: Tensor) -> Tensor:
        """Logits, (batch, labels), of the mean over the frames that are no padding.

        Args:
            hidden: (batch, frames, width).
            frames: (batch,) number of frames of each utterance.
        """
        rows = self.projector(hidden)
        valid = torch.arange(rows.size(1), device=rows.device) < frames[:, None]
        total = torch.where(valid[:, :, None], rows, 0.0).sum(1)
        return self.classifier(total / frames[:, None].to(rows.dtype))


class PruningClassifier(PrunedModel, AbsESPnetModel):
    """A label for each utterance, on an ``UpstreamFrontend``; the loss is the cross-entropy.

    Args:
        pruning, distill, quantize: as ``PrunedModel.begin``.
        token_list: the labels.
        frontend: its configuration's ``classifier_proj_size`` is the width of the projection.
    """

    task = CLASSIFY
    head_name = "classes"
    blank_id = -1

    def __init__(
        self,
        pruning: dict,
        token_list: Sequence[str],
        frontend: UpstreamFrontend,
        distill: dict | None = None,
        quantize: dict | None = None,
    ):
        super().__init__()
        self.token_list, self.frontend = list(token_list), frontend
        self.classes = Classes(
            frontend.output_size(), len(self.token_list), frontend.upstream.config.classifier_proj_size
        )
        self.begin(pruning, distill, quantize)

    def encode(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (batch, frames, width), and the number of frames of each utterance (batch,).

        Args:
            speech: (batch, samples), zero-padded.
            speech_lengths: (batch,) number of samples of each utterance.
        """
        return self.frontend(speech[:, : speech_lengths.max()], speech_lengths)

    def collect_feats(self, speech: Tensor, speech_lengths: Tensor, **kwargs) -> dict[str, Tensor]:
        hidden, frames = self.encode(speech, speech_lengths)
        return {"feats": hidden, "feats_lengths": frames}

    def task_loss(self, speech, speech_lengths, text, text_lengths, **kwargs):
        self._encoded = self.encode(speech, speech_lengths)
        logits = self.classes(*self._encoded).float()
        loss = F.cross_entropy(logits, text[:, 0])
        if not self.training:
            wrong = (logits.argmax(-1) != text[:, 0]).double().mean()
            self._errors = {"label_errors": float(wrong), "labels": 1.0}
        figures = {"loss": loss.detach(), self.kind.loss: loss.detach()}
        return loss, figures, torch.tensor(len(speech), device=loss.device)


class IndexOfLabel:
    """What ESPnet does to an utterance before a batch is made of it, with the label's index in the place of its text.

    Args:
        labels: all of them.
        before: what is done first.
    """

    def __init__(self, labels: Sequence[str], before: Callable[[str, dict], dict]):
        self.places, self.before = {label: place for place, label in enumerate(labels)}, before

    def __call__(self, uid: str, data: dict) -> dict:
        data = self.before(uid, data)
        if data["text"] not in self.places:
            raise UserError(f"utterance {uid}: {data['text']!r} is none of the {len(self.places)} labels")
        return {**data, "text": np.array([self.places[data["text"]]])}
