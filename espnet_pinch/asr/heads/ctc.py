"""Speech recognition: a linear layer on every frame, trained with CTC."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from espnet_pinch.asr.head import ASR, Head, Rate, register
from espnet_pinch.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@register
class CTCHead(Head):
    """A token, or the blank, for every frame."""

    name = ASR
    place = 10
    what = "speech recogniser"
    command = "transcribe"
    outputs = "tokens"
    rates = {"wer": Rate("WER", "word_errors", "words"), "cer": Rate("CER", "char_errors", "chars")}
    loss = "loss_ctc"
    loss_title = "CTC loss"
    architecture = "ForCTC"
    auto = "AutoModelForCTC"
    processor = "AutoProcessor"
    hub_task = "automatic-speech-recognition"
    kind = "CTC"
    card = "A CTC speech recogniser"

    def assemble(self, frontend, names, pruning):
        from espnet2.asr.ctc import CTC

        from espnet_pinch.asr.model import PruningASRModel

        unused = ("specaug", "normalize", "preencoder", "encoder", "postencoder", "decoder", "joint_network")
        ctc = CTC(len(names), frontend.output_size())
        return PruningASRModel(
            pruning, vocab_size=len(names), token_list=names, frontend=frontend, ctc=ctc, **dict.fromkeys(unused)
        )

    def apply(self, module, hidden, frames):
        return module(hidden), frames

    def stock_prefix(self, family):
        return f"{family.head}."

    def is_in(self, upstream, config):
        """If config.json does not say, the names of the weights do."""
        from espnet_pinch.asr.family import find_family
        from espnet_pinch.asr.weight_files import weight_names

        if config.architectures:
            return any(name.endswith(self.architecture) for name in config.architectures)
        return f"{find_family(config.model_type).head}.weight" in weight_names(upstream)

    def check(self, upstream, config):
        if not isinstance(config.vocab_size, int):
            raise UserError(f"{upstream}/config.json has no vocab_size, the number of rows of its CTC head")

    def take(self, upstream, config, whole):
        import torch

        from espnet_pinch.asr.family import find_family
        from espnet_pinch.asr.vocabulary import read_tokens

        head: nn.Linear = getattr(whole, find_family(config.model_type).head)
        try:
            tokens, rows = read_tokens(upstream, config)
        except FileNotFoundError as error:
            logging.warning(f"{error}: the head's outputs have no names")
            return head, None
        with torch.no_grad():
            head.weight.copy_(head.weight[rows])
            head.bias.copy_(head.bias[rows])
        return head, tokens

    def save(self, folder, model, module, names, processing):
        from espnet_pinch.asr.upstream import save_ctc_model

        save_ctc_model(folder, model, module, names, processing)

    def said(self, output):
        return output["text"]

    def text(self, logits, names, blank):
        import torch

        from espnet_pinch.asr.greedy import ctc_greedy, to_text

        [ids] = ctc_greedy(logits.argmax(-1)[None], torch.tensor([len(logits)]), blank)
        return to_text(ids, names)

    def transcripts(self, recogniser, audio, search, names):
        from espnet_pinch.asr.decode import frame_times, log_probs_of, transcript_of
        from espnet_pinch.asr.search import GreedySearch

        log_probs, frames = log_probs_of(recogniser, audio)
        spans = (search or GreedySearch(recogniser.blank_id))(log_probs, frames)
        rows = zip(names, spans, audio, frames.tolist())
        rate = recogniser.sampling_rate
        return [
            transcript_of(name, found, recogniser, frame_times(recogniser, count), len(samples) / rate)
            for name, found, samples, count in rows
        ]
