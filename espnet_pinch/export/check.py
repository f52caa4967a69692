"""Check that an exported model is the original model: compare logits and transcripts of a few utterances."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import numpy as np
import torch
from torch import Tensor

from espnet_pinch.asr.decode import transcribe
from espnet_pinch.asr.head import Head
from espnet_pinch.asr.pruned import PrunedModel
from espnet_pinch.asr.recogniser import Recogniser, as_recogniser
from espnet_pinch.core.grids import Codes
from espnet_pinch.errors import UserError
from espnet_pinch.export.encoding import round_to
from espnet_pinch.export.model import weights

# Largest allowed difference of logits between two runtimes, as a fraction of the largest logit (of 1 if that is less).
TOLERANCE = 1e-3
# Largest root mean square that rounding may add to logits, as a fraction of theirs; what is wrong adds 1 and more.
ROUNDING = 0.5
ALIKE = 0.5  # of the letters, that two runtimes' transcripts of a file that rounds have in common at least

# Takes utterances; returns logits (batch, frames, tokens) and the number of frames of each (batch,).
Runner = Callable[[list[Tensor]], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Probe:
    """Utterances, with the original model's logits and transcripts of them.

    Attributes:
        audio: each (samples,) float32.
        logits: each (frames, tokens), of the utterance alone; (1, labels) of a classifier.
        padded: the same, of all utterances in one padded batch.
        texts: transcripts or labels of the utterances, each decoded alone.
        tokens: names of the model's outputs.
        blank: index of the blank.
        kind: what the model's task is.
    """

    audio: list[Tensor]
    logits: list[Tensor]
    padded: list[Tensor]
    texts: list[str]
    tokens: list[str]
    blank: int
    kind: Head

    @classmethod
    def of(cls, model: PrunedModel, audio: Sequence[Tensor]) -> "Probe":
        audio = list(audio)
        alone = [batch_logits(model, [samples])[0] for samples in audio]
        texts = [transcribe(model, [samples])[0] for samples in audio]
        return cls(audio, alone, batch_logits(model, audio), texts, model.token_list, model.blank_id, model.kind)

    def text(self, logits: Tensor) -> str:
        """The greedy transcript, or the label, of logits (frames, outputs)."""
        return self.kind.text(logits, self.tokens, self.blank)

    def compare(self, what: str, logits: Sequence[Tensor], wanted: Sequence[Tensor] | None = None) -> float:
        """The largest difference of ``logits`` from ``wanted`` (``self.logits`` if None).

        Args:
            what: is compared, for the message.

        Raises:
            UserError: it is over the tolerance, or a shape or a transcript differs.
        """
        largest = 0.0
        for i, (got, want) in enumerate(zip(logits, self.logits if wanted is None else wanted, strict=True)):
            if got.shape != want.shape:
                raise UserError(f"{what}: logits of utterance {i} are {tuple(got.shape)}, not {tuple(want.shape)}")
            difference = float((got - want).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(want.abs().max())):
                raise UserError(f"{what}: logits of utterance {i} are off by {difference:.3g}")
            if self.text(got) != self.text(want):
                raise UserError(f"{what}: transcript of utterance {i} is {self.text(got)!r}, not {self.text(want)!r}")
            largest = max(largest, difference)
        return largest

    def compare_runtime(self, what: str, run: Runner) -> float:
        """``compare`` for a runtime: the utterances one at a time, and all in one padded batch.

        Args:
            what: is compared, for the message.
        """
        alone = self.compare(what, self.logits_alone(run))
        return max(alone, self.compare(f"{what}, in a batch", self.logits_padded(run), self.padded))

    def logits_alone(self, run: Runner) -> list[Tensor]:
        return [_logits(run, [samples])[0] for samples in self.audio]

    def logits_padded(self, run: Runner) -> list[Tensor]:
        return _logits(run, self.audio)

    def compare_rounded(
        self, what: str, logits: Sequence[Tensor], wanted: Sequence[Tensor] | None = None
    ) -> tuple[float, int]:
        """As ``compare``, where weights are rounded, so that logits may differ by any amount that rounding explains.

        Returns: the largest difference of logits, and the number of transcripts that differ.

        Raises:
            UserError: it is more than that, or a shape differs.
        """
        largest, texts = 0.0, 0
        for i, (got, want) in enumerate(zip(logits, self.logits if wanted is None else wanted, strict=True)):
            if not is_rounding(got, want):
                raise UserError(f"{what}: logits of utterance {i} are those of another model")
            largest = max(largest, float((got - want).abs().max()))
            texts += self.text(got) != self.text(want)
        return largest, texts

    def compare_texts(self, what: str, texts: Sequence[str]) -> None:
        """Raise UserError if a transcript differs, apart from special tokens ("<unk>") and repeated spaces."""
        for i, (got, want) in enumerate(zip(texts, self.texts, strict=True)):
            if got != want and _words(got) != want:
                raise UserError(f"{what}: transcript of utterance {i} is {got!r}, not {want!r}")

    def count_texts(self, what: str, texts: Sequence[str], similar: Sequence[str]) -> int:
        """The number of transcripts that differ, where weights are rounded, apart from what ``compare_texts`` ignores.

        Args:
            similar: what another runtime says of the same file. A rounding more or less may change a letter.

        Raises:
            UserError: all of them together have little in common with that.
        """
        got, want = (" ".join(map(_words, some)) for some in (texts, similar))
        if SequenceMatcher(None, got, want, autojunk=False).ratio() < ALIKE:
            raise UserError(f"{what}: the transcripts are {got[:100]!r}, not {want[:100]!r}")
        return sum(_words(got) != want for got, want in zip(texts, self.texts, strict=True))


def _words(text: str) -> str:
    return " ".join(re.sub("<[^<> ]+>", "", text).split())


def _logits(run: Runner, audio: list[Tensor]) -> list[Tensor]:
    return [torch.from_numpy(rows[:n]) for rows, n in zip(*run(audio))]


def is_rounding(got: Tensor, want: Tensor) -> bool:
    """Whether logits are ``want`` apart from rounding."""
    return got.shape == want.shape and bool((got - want).square().mean() <= ROUNDING**2 * want.square().mean())


def batch_logits(model: PrunedModel | Recogniser, audio: Sequence[Tensor]) -> list[Tensor]:
    """Logits of one padded batch, each (frames, tokens)."""
    logits, frames = as_recogniser(model)(audio)
    return [rows[:n] for rows, n in zip(logits, frames.tolist())]


def check_weights(what: str, again: PrunedModel, model: PrunedModel, values: str) -> None:
    """Raise UserError if a weight of ``again`` is not what storing ``model``'s as ``values`` makes of it."""
    for (name, got), want in zip(weights(again).items(), weights(model).values(), strict=True):
        rounded = round_to(values, want, model.scales.get(name))
        if not torch.equal(got, rounded.weight() if isinstance(rounded, Codes) else rounded.to(got.dtype)):
            raise UserError(f"{what}: {name} differs by more than {values} explains")


def noise(count: int = 3, rate: int = 16000) -> list[Tensor]:
    """Seeded noise of 1, 2, ... ``count`` seconds at ``rate`` Hz, for a check without speech."""
    generator = np.random.default_rng(0)
    return [torch.from_numpy(generator.normal(0, 0.1, rate * n).astype(np.float32)) for n in range(1, count + 1)]
