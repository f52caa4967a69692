"""Classification of utterances: a label for each, out of the mean of its frames.

The head is that of transformers' models for sequence classification: a linear projection of every frame, the mean over
the frames of the utterance, and a linear layer. So ``AutoModelForAudioClassification`` loads what is exported.

It takes the last layer. SUPERB learns a weighted sum of all layers because it does not train the upstream. Here the
upstream is trained, so its last layer learns what the task needs, and no runtime has to keep the others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from espnet_pinch.asr.head import CLASSIFY, Head, Rate, register
from espnet_pinch.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@register
class LabelHead(Head):
    """One row of outputs for an utterance: a logit for each label."""

    name = CLASSIFY
    place = 20
    what = "utterance classifier"
    command = "classify"
    outputs = "labels"
    rates = {"error": Rate("error rate", "label_errors", "labels")}
    loss = "loss_label"
    loss_title = "cross-entropy"
    architecture = "ForSequenceClassification"
    auto = "AutoModelForAudioClassification"
    processor = "AutoFeatureExtractor"
    hub_task = "audio-classification"
    kind = "classification"
    card = "A classifier of utterances"

    def assemble(self, frontend, names, pruning):
        from espnet_pinch.asr.classifier import PruningClassifier

        return PruningClassifier(pruning, token_list=names, frontend=frontend)

    def apply(self, module, hidden, frames):
        return module(hidden, frames)[:, None], frames.clamp(max=1)

    def stock_prefix(self, family):
        return ""

    def is_in(self, upstream, config):
        return any(name.endswith(self.architecture) for name in config.architectures or ())

    def check(self, upstream, config):
        if getattr(config, "use_weighted_layer_sum", False):
            raise UserError(f"{upstream} has a weighted sum of layers under its classifier, which is not supported")

    def take(self, upstream, config, whole):
        from espnet_pinch.asr.classifier import Classes

        labels = labels_of(upstream, config)
        head = Classes(config.hidden_size, len(labels), config.classifier_proj_size)
        head.projector, head.classifier = whole.projector, whole.classifier
        return head, labels

    def save(self, folder, model, module, names, processing):
        from transformers import AutoModelForAudioClassification

        from espnet_pinch.asr.upstream import save_with_head

        ids = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        heads = {"projector": module.projector, "classifier": module.classifier}
        save_with_head(folder, model, AutoModelForAudioClassification, heads, ids, processing)

    def said(self, output):
        return output[0]["label"]

    def text(self, logits, names, blank):
        return names[int(logits[0].argmax())]

    def transcripts(self, recogniser, audio, search, names):
        """Of each recording a transcript that is its label, with one word, the label with "_" for spaces, as a CTM file
        needs it. The word's confidence is the label's probability."""
        from espnet_pinch.asr.decode import log_probs_of
        from espnet_pinch.transcript.words import Transcript, Word

        rows, found = log_probs_of(recogniser, audio)[0][:, 0], []
        for name, samples, best, value in zip(names, audio, rows.argmax(-1).tolist(), rows.amax(-1).tolist()):
            label, seconds = recogniser.token_list[best], len(samples) / recogniser.sampling_rate
            word = Word(label.replace(" ", "_"), 0.0, seconds, min(math.exp(value), 1.0))
            found.append(Transcript(name, label, seconds, (word,)))
        return found


def labels_of(upstream: str, config: PretrainedConfig) -> list[str]:
    """The labels of a checkpoint, in the order of its outputs.

    Raises:
        UserError: config.json does not name every output, or two alike.
    """
    named = {int(place): str(label) for place, label in (config.id2label or {}).items()}
    labels = [named.get(place, "") for place in range(config.num_labels)]
    if not all(labels) or len(set(labels)) < len(labels):
        raise UserError(f"{upstream}/config.json does not name every output of its classifier, or two alike (id2label)")
    return labels
