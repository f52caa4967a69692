"""A speech foundation model as an ESPnet frontend."""

import dataclasses

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor, nn

from espnet_pinch.asr.family import find_family
from espnet_pinch.asr.upstream import WaveformProcessing, config_as_dict, load_upstream, model_from_dict
from espnet_pinch.data.source import read_record


class UpstreamFrontend(AbsFrontend):
    """Waveform in, last hidden states of a speech foundation model out.

    Args:
        upstream: Hugging Face folder.
        upstream_conf: fields of its configuration to change (dropouts, SpecAugment, layerdrop).
        freeze_feature_encoder: keep the convolutional feature extractor as it is.
        built: what a trained model's config.yaml carries (``self.built``): configuration, processing and the
            record of where the upstream comes from. With it nothing is read from ``upstream``, and the weights are
            expected from a checkpoint.

    Raises:
        FileNotFoundError, ValueError: as ``load_upstream``.
    """

    def __init__(
        self,
        upstream: str,
        upstream_conf: dict | None = None,
        freeze_feature_encoder: bool = True,
        built: dict | None = None,
    ):
        super().__init__()
        self.tokens: list[str] | None = None
        if built is None:
            loaded = load_upstream(upstream, upstream_conf)
            self.upstream, self.processing, self.tokens = loaded.model, loaded.processing, loaded.tokens
            self.source = read_record(upstream)
            self._head = [loaded.head]  # in a list: the head becomes a part of ESPnet's CTC, not of the frontend
        else:
            self.upstream = model_from_dict(built["config"])
            self.processing = WaveformProcessing(**built["processing"])
            self.source = built.get("source")
            self._head = [None]
        self.family = find_family(self.upstream.config.model_type)
        self.dropout = nn.Dropout(self.family.dropout(self.upstream.config))
        if freeze_feature_encoder:
            self.family.freeze_feature_encoder(self.upstream)

    @property
    def built(self) -> dict:
        """Everything that is needed to build this frontend again without its upstream's files."""
        return {
            "config": config_as_dict(self.upstream.config),
            "processing": dataclasses.asdict(self.processing),
            "source": self.source,
        }

    def take_head(self) -> nn.Linear | None:
        """Hand over the checkpoint's CTC head, rows in the order of ``self.tokens``; None if it has none."""
        head, self._head = self._head[0], [None]
        return head

    def output_size(self) -> int:
        return self.family.output_size(self.upstream.config)

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            speech: (batch, samples), zero-padded.
            lengths: (batch,) samples of each utterance.

        Returns: hidden states (batch, frames, hidden), and (batch,) frames of each utterance.
        """
        valid = torch.arange(speech.size(1), device=speech.device) < lengths[:, None]  # (B, T)
        mask = valid.long() if self.processing.return_attention_mask else None
        if self.processing.do_normalize:
            # Without a mask, transformers' processor takes the padding of a batch into mean and variance too.
            speech = normalize_waveform(speech, valid if mask is not None else torch.ones_like(valid))
        frames = self.family.frames_of(self.upstream.config, lengths)
        hidden = self.family.hidden_states(self.upstream, speech, mask, frames)  # (B, T', D)
        return self.dropout(hidden), frames


def normalize_waveform(speech: Tensor, valid: Tensor) -> Tensor:
    """Zero mean and unit variance over the valid samples of each row, as Wav2Vec2FeatureExtractor; the rest is 0.

    Args:
        speech: (batch, samples)
        valid: (batch, samples) True where a sample counts.
    """
    count = valid.sum(1, keepdim=True)
    mean = torch.where(valid, speech, 0).sum(1, keepdim=True) / count
    centred = torch.where(valid, speech - mean, 0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / torch.sqrt(variance + 1e-7)
