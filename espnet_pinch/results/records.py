"""What ``results.json`` holds, and reading and writing it. The fields are the keys of the file, in its order."""

import dataclasses
import os

from espnet_pinch.errors import UserError
from espnet_pinch.files import from_json, read_json, write_json
from espnet_pinch.results.unit import CER, WER, Unit

BITS, AVERAGE_BITS = "quantize bits", "quantize average_bits"  # of a run's settings


@dataclasses.dataclass(frozen=True)
class SetScore:
    """Errors of a system on one set.

    Attributes:
        wer: word error rate, a fraction; insertions may make it more than 1.
        errors: substitutions, deletions and insertions together.
        words: of the references, 1 or more.
        substitutions, deletions, insertions: words, in sclite's alignment.
        cer: character error rate, a fraction; insertions may make it more than 1.
        char_errors: characters, by edit distance.
        chars: of the references, 1 or more.
        utterances: 1 or more.

    Of a classifier words and characters are utterances: an error is a wrong label.
    """

    wer: float
    errors: int
    words: int
    substitutions: int
    deletions: int
    insertions: int
    cer: float
    char_errors: int
    chars: int
    utterances: int

    def counts(self, unit: Unit) -> tuple[int, int]:
        """Errors, and what they are errors of: words, characters or utterances."""
        return (self.char_errors, self.chars) if unit.rate == CER else (self.errors, self.words)


@dataclasses.dataclass(frozen=True)
class Significance:
    """A system against its baseline on one set. Differences are the system's minus the baseline's: more is worse.

    Where ``Results.error_rate`` is "cer", characters stand in the place of words here. Where it is "error", utterances
    do: the system is a classifier, and the test is McNemar's exact one.

    Attributes:
        utterances: 1 or more.
        words: of the references, 1 or more.
        baseline_errors, errors: word errors of the baseline and of the system.
        segments: stretches of words in which one of the two has an error (MAPSSWE); utterances that one of the two
            alone has wrong (McNemar).
        mean_difference: word errors a segment.
        std: standard deviation of the differences of the segments, word errors.
        z: MAPSSWE's statistic; 0 where ``std`` is 0, and of McNemar's test, which is exact.
        p_two_sided: probability under "they are alike", in [0, 1].
        p_one_sided: probability under "the system is not worse", in [0, 1].
        significant: ``p_two_sided`` is under 0.05; the verdict of NIST's sc_stats.
        significant_increase: ``p_one_sided`` is under 0.05: the system is worse.
        wer_difference: points of WER (per cent).
        bootstrap_low, bootstrap_high: its 95 % interval by paired bootstrap over utterances, points of WER.
        bootstrap_worse: share of the resamples in which the system has the higher WER, in [0, 1].
    """

    utterances: int
    words: int
    baseline_errors: int
    errors: int
    segments: int
    mean_difference: float
    std: float
    z: float
    p_two_sided: float
    p_one_sided: float
    significant: bool
    significant_increase: bool
    wer_difference: float
    bootstrap_low: float
    bootstrap_high: float
    bootstrap_worse: float

    @property
    def alone(self) -> tuple[int, int]:
        """Of McNemar's test, the utterances that the baseline alone has wrong, and that the system alone has."""
        more = round(self.segments * self.mean_difference)
        return (self.segments - more) // 2, (self.segments + more) // 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemFigures:
    """Size, error rates and cost of one system.

    Attributes:
        experiment: its folder.
        upstream_source: where the upstream comes from, by ``espnet_pinch.data.source.KEYS``; None where that was not
            noted.
        sparsity: pruned over gated weights, in [0, 1].
        params_total, params_kept, params_stored, extra_trained_parameters: as in
            ``espnet_pinch.core.parameters.Parameters``.
        compression_ratio: ``params_total`` over ``params_kept``, 1 or more.
        macs, macs_total: as in ``Parameters``; None in files of earlier releases.
        forward_seconds: for 10 s of audio, from waveform to logits, best of five, the two systems in turns; None where
            it was not measured.
        forward_device: that they were measured on, with its threads.
        file_bytes: of the smallest file that computes the same, zeros and spare bits left out
            (``espnet_pinch.export.sparse_file.exact_bytes``); None where it was not measured.
        wer: the scores by set, characters included.
        seconds: of training and validation, all epochs; 0 where nothing was trained, as in the next four.
        peak_memory_bytes: of the GPU where there was one, else of the process.
        epochs, iterations: how many were trained.
        device: of the last epoch; "" where nothing was trained, or it was not recorded.
    """

    experiment: str
    upstream_source: dict | None = None
    sparsity: float
    params_total: int
    params_kept: int
    params_stored: int
    extra_trained_parameters: int
    compression_ratio: float
    macs: float | None = None
    macs_total: float | None = None
    forward_seconds: float | None = None
    forward_device: str = ""
    file_bytes: int | None = None
    wer: dict[str, SetScore]
    seconds: float
    peak_memory_bytes: int
    epochs: int
    iterations: int
    device: str

    @property
    def macs_kept(self) -> float:
        """The fraction of the multiplications that is left; 0.0 where they were not counted."""
        return self.macs / self.macs_total if self.macs and self.macs_total else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """``results.json``: a system beside its baseline. Files of earlier releases lack what has a default here.

    Attributes:
        upstream: its name, such as "wav2vec2_base".
        corpus: its name; "" where none was given.
        method: of pruning, by its name in the ``pruning:`` block.
        target_sparsity: in [0, 1); 0 where the method does not prune, None where the target is one of multiplications.
        target_macs: fraction of the multiplications to save; None where the target is a sparsity.
        seed: of the training.
        settings: those that tell runs of a method apart: the method's own, and the training's.
        figures: of the system; their keys stand among the others, not in an object of their own.
        decoded: name of the decoding folder in the experiments.
        references: folder that holds SET/text.
        baseline: figures of the baseline.
        significance: the tests against the baseline, by set.
        unknown_characters: ``unknown_characters.json`` of stage 2; empty where there is none.
        text_steps: ``text_steps.json`` of stage 2: the steps that transcripts and hypotheses have gone through, and how
            many transcripts each has changed; empty where there is none.
        error_rate: "wer", or "cer" where errors are counted in characters first, or "error" of a classifier.
        error_rate_why: why that is so; "" for words by default.
        command: the command line that made it.
    """

    upstream: str
    corpus: str
    method: str
    target_sparsity: float | None
    target_macs: float | None = None
    seed: int
    settings: dict = dataclasses.field(default_factory=dict)
    figures: SystemFigures
    decoded: str
    references: str
    baseline: SystemFigures
    significance: dict[str, Significance]
    unknown_characters: dict = dataclasses.field(default_factory=dict)
    text_steps: dict = dataclasses.field(default_factory=dict)
    error_rate: str = WER
    error_rate_why: str = ""
    command: str

    @property
    def target(self) -> float:
        """The target, a fraction of the gated weights or of the multiplications."""
        return (self.target_macs or 0.0) if self.target_sparsity is None else self.target_sparsity

    @property
    def bits(self) -> str:
        """Of its kept weights, in words; "" where they are not rounded."""
        bits = self.settings.get(BITS, "")
        words = {"": "", "ternary": "ternary", "mixed": f"{self.settings.get(AVERAGE_BITS)} bits on average"}
        return words.get(bits, f"{bits} bits")

    @property
    def unit(self) -> Unit:
        return Unit(self.error_rate, self.error_rate_why)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Results":
        """The results in a file. Keys that are not known are passed over.

        Raises:
            UserError: it is not JSON, or lacks a key; the message starts with ``path``.
        """
        try:
            values = read_json(path)
            tests = {name: from_json(Significance, test) for name, test in values["significance"].items()}
            nested = {"figures": _figures(values), "baseline": _figures(values["baseline"]), "significance": tests}
            return from_json(cls, {**values, **nested})
        except KeyError as error:
            raise UserError(f"{path} has no {error.args[0]}; score it again with stage 6") from None
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{path} is not JSON, or not of stage 6; score it again with stage 6") from None

    def write(self, path: str | os.PathLike) -> None:
        values: dict = {}
        for key, value in dataclasses.asdict(self).items():
            values |= value if key == "figures" else {key: value}
        write_json(path, values)


def _figures(values: dict) -> SystemFigures:
    scores = {name: from_json(SetScore, score) for name, score in values["wer"].items()}
    return from_json(SystemFigures, {**values, "wer": scores})
