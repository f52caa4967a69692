"""What a file in another library's format says of its model: what decoding needs, and its size."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from espnet_pinch.asr.head import ASR
from espnet_pinch.data.subwords import from_text, to_text
from espnet_pinch.data.tokens import is_token_list
from espnet_pinch.errors import UserError
from espnet_pinch.sound.read import RATES

if TYPE_CHECKING:
    from espnet_pinch.asr.pruned import PrunedModel


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The fields are the keys in the file. The values there are strings: JSON.

    Attributes:
        tokens: names of the outputs: tokens, the blank first; or labels.
        sampling_rate: Hz.
        samples_per_frame: samples from one frame to the next.
        shortest: samples that make one frame.
        parameters: of the whole model.
        zeros: parameters that are 0.
        macs: multiplications of 10 s of audio by part of the upstream, as ``espnet_pinch.asr.macs.count_by_part``.
        task: of the head; files of earlier releases do not say it.
        subwords: sentencepiece's model in base64, where the tokens are subwords; likewise.
    """

    tokens: list[str]
    sampling_rate: int
    samples_per_frame: int
    shortest: int
    parameters: int
    zeros: int
    macs: dict[str, float]
    task: str = ASR
    subwords: str = ""

    @property
    def subwords_model(self) -> bytes:
        return from_text(self.subwords)

    @classmethod
    def of(cls, model: PrunedModel) -> Metadata:
        from espnet_pinch.asr.macs import SECONDS, count_by_part
        from espnet_pinch.asr.recogniser import TorchRecogniser

        recogniser = TorchRecogniser(model)
        weights, frontend = list(model.parameters()), model.frontend
        samples = SECONDS * recogniser.sampling_rate
        return cls(
            tokens=recogniser.token_list,
            sampling_rate=recogniser.sampling_rate,
            samples_per_frame=recogniser.samples_per_frame,
            shortest=recogniser.shortest,
            parameters=sum(weight.numel() for weight in weights),
            zeros=sum(weight.numel() - int(weight.count_nonzero()) for weight in weights),
            macs=count_by_part(frontend.upstream, samples, frontend.family.channel),
            task=model.task,
            subwords=to_text(recogniser.subwords),
        )

    def strings(self) -> dict[str, str]:
        """``{key: JSON}``."""
        return {key: json.dumps(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def parse(cls, strings: Mapping[str, str], where: str) -> Metadata:
        """What ``strings`` has returned.

        Args:
            where: the file, for the message.

        Raises:
            UserError: a key is missing or holds no value of its kind: the file is another program's.
        """
        values = {}
        for field in dataclasses.fields(cls):
            if field.name not in strings and field.default is not dataclasses.MISSING:
                continue
            try:
                values[field.name] = json.loads(strings[field.name])
            except (KeyError, ValueError):
                values[field.name] = None
            if not _fits(field.name, values[field.name]):
                raise UserError(
                    f"{where} is not a file that this release of espnet_pinch wrote: its metadata has no "
                    f"{field.name}; export the model again"
                )
        return cls(**values)


def _fits(field: str, value: object) -> bool:
    """Whether a value is one that a field can have."""
    if field == "tokens":
        return is_token_list(value)
    if field == "macs":
        from espnet_pinch.asr.macs import PARTS

        return (
            isinstance(value, dict)
            and value.keys() == {*PARTS}
            and all(type(n) in (int, float) for n in value.values())
        )
    if field == "task":
        return isinstance(value, str)
    if field == "subwords":
        try:
            return isinstance(value, str) and from_text(value) is not None
        except ValueError:
            return False
    lowest, highest = {"sampling_rate": RATES, "zeros": (0, sys.maxsize)}.get(field, (1, sys.maxsize))
    return type(value) is int and lowest <= value <= highest
