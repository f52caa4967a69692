"""A speech foundation model as an ESPnet frontend."""

import dataclasses

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor, nn
from transformers import PreTrainedModel

from espnet_pinch.asr.family import find_family
from espnet_pinch.asr.head import ASR, find_head
from espnet_pinch.asr.upstream import WaveformProcessing, config_as_dict, load_upstream, model_from_dict
from espnet_pinch.data.source import read_record


class UpstreamFrontend(AbsFrontend):
    """Turns waveforms into the last hidden states of a speech foundation model.

    Args:
        upstream: Hugging Face folder.
        upstream_conf: fields of its configuration to change (dropouts, SpecAugment, layerdrop).
        freeze_feature_encoder: do not train the convolutional feature extractor.
        built: ``self.built`` of a trained model, which its config.yaml holds: configuration, processing, and the
            record of the upstream's source. If given, nothing is read from ``upstream``, and the weights must come from
            a checkpoint.
        model: the model of ``built``, if it is there already.
        task: whose head is wanted of the checkpoint.

    Raises:
        FileNotFoundError, UserError: as ``load_upstream``.
    """

    def __init__(
        self,
        upstream: str,
        upstream_conf: dict | None = None,
        freeze_feature_encoder: bool = True,
        built: dict | None = None,
        model: PreTrainedModel | None = None,
        task: str = ASR,
    ):
        super().__init__()
        self.kind = find_head(task)
        self.tokens: list[str] | None = None
        self.is_loaded = built is None
        if built is None:
            loaded = load_upstream(upstream, upstream_conf, task)
            self.upstream, self.processing, self.tokens = loaded.model, loaded.processing, loaded.tokens
            self.source = read_record(upstream)
            self._head = [loaded.head]  # in a list: the head is a submodule of the model, not of this
        else:
            self.upstream = model or model_from_dict(built["config"])
            self.processing = WaveformProcessing(**built["processing"])
            self.source = built.get("source")
            self._head = [None]
        self.family = find_family(self.upstream.config.model_type)
        self.dropout = nn.Dropout(self.family.dropout(self.upstream.config))
        if freeze_feature_encoder:
            self.family.freeze_feature_encoder(self.upstream)

    @property
    def built(self) -> dict:
        """All that is needed to build this frontend again without the files of its upstream."""
        return {
            "config": config_as_dict(self.upstream.config),
            "processing": dataclasses.asdict(self.processing),
            "source": self.source,
        }

    @property
    def has_head(self) -> bool:
        """Whether the checkpoint's head is still here."""
        return self._head[0] is not None

    def take_head(self) -> nn.Module | None:
        """Hand over the checkpoint's head, its rows in the order of ``self.tokens``; None if there is none."""
        head, self._head = self._head[0], [None]
        return head

    def output_size(self) -> int:
        return self.family.output_size(self.upstream.config)

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            speech: (batch, samples), zero-padded.
            lengths: (batch,) number of samples of each utterance.

        Returns: hidden states (batch, frames, hidden), and the number of frames of each utterance (batch,).
        """
        valid = torch.arange(speech.size(1), device=speech.device) < lengths[:, None]  # (B, T)
        mask = valid.long() if self.processing.return_attention_mask else None
        if self.processing.do_normalize:
            # Without a mask, transformers' processor includes the padding in mean and variance.
            counted = valid if mask is not None else torch.ones_like(valid)
            speech = normalize_waveform(speech, counted, self.family.variance_floor)
        frames = self.family.frames_of(self.upstream.config, lengths)
        speech = speech.to(self.upstream.dtype)  # after the normalisation, which needs float32
        hidden = self.family.hidden_states(self.upstream, speech, mask, frames)  # (B, T', D)
        return self.dropout(hidden), frames


def normalize_waveform(speech: Tensor, valid: Tensor, floor: float) -> Tensor:
    """Scale the valid samples of each row to mean 0 and variance 1, as transformers' processors; the rest becomes 0.

    Args:
        speech: (batch, samples).
        valid: (batch, samples), True where a sample counts.
        floor: is added to the variance.
    """
    count = valid.sum(1, keepdim=True)
    mean = torch.where(valid, speech, 0).sum(1, keepdim=True) / count
    centred = torch.where(valid, speech - mean, 0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / torch.sqrt(variance + floor)
