"""ESPnet's ASR model with a pruning method in it."""

import jiwer
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_pinch.alignment import count_word_errors
from espnet_pinch.asr.greedy import ctc_greedy, to_text
from espnet_pinch.asr.head import ASR
from espnet_pinch.asr.pruned import PrunedModel
from espnet_pinch.errors import UserError


class PruningASRModel(PrunedModel, ESPnetASRModel):
    """CTC on an ``UpstreamFrontend``.

    Args:
        pruning, distill, quantize: as ``PrunedModel.begin``.
        kwargs: as ``ESPnetASRModel``.

    Raises:
        UserError: ``ctc_weight`` is not 1; or as ``PrunedModel.begin``.
    """

    task = ASR
    head_name = "ctc.ctc_lo"

    def __init__(self, pruning: dict, distill: dict | None = None, quantize: dict | None = None, **kwargs):
        if (weight := kwargs.get("ctc_weight", 1.0)) != 1:
            raise UserError(f"model_conf.ctc_weight must be 1, not {weight}: there is no decoder beside CTC")
        ESPnetASRModel.__init__(self, **{"ctc_weight": 1.0, "report_cer": False, "report_wer": False, **kwargs})
        self.begin(pruning, distill, quantize)

    def task_loss(self, speech, speech_lengths, text, text_lengths, **kwargs):
        return ESPnetASRModel.forward(self, speech, speech_lengths, text, text_lengths, **kwargs)

    def _calc_ctc_loss(self, encoder_out, encoder_out_lens, ys_pad, ys_pad_lens):
        self._encoded = encoder_out, encoder_out_lens
        if not self.training:
            self._errors = self._count_errors(encoder_out, encoder_out_lens, ys_pad, ys_pad_lens)
        return super()._calc_ctc_loss(encoder_out, encoder_out_lens, ys_pad, ys_pad_lens)

    def _count_errors(self, encoder_out, encoder_out_lens, ys_pad, ys_pad_lens) -> dict[str, float]:
        """Word errors, words, character errors and characters, each as the mean over the utterances of the batch."""
        best = ctc_greedy(self.ctc.argmax(encoder_out), encoder_out_lens, self.blank_id)
        hyps = [to_text(ids, self.token_list) for ids in best]
        refs = [to_text(ys[:n], self.token_list) for ys, n in zip(ys_pad.tolist(), ys_pad_lens.tolist())]
        words, chars = count_word_errors(zip(refs, hyps)), jiwer.process_characters(refs, hyps)
        counts = {
            "word_errors": words.errors,
            "words": words.words,
            "char_errors": chars.substitutions + chars.deletions + chars.insertions,
            "chars": chars.hits + chars.substitutions + chars.deletions,
        }
        return {name: count / len(refs) for name, count in counts.items()}
