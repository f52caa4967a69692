"""Tables 1 and 2 of the paper, to stand beside our own figures.

Source: Xu et al., "Effective and Efficient One-pass Compression of Speech Foundation Models Using Sparsity-aware
Self-pinching Gates", Interspeech 2025, doi 10.21437/Interspeech.2025-353. Figures are as printed there: parameters in
millions, WER in per cent. Upstreams and methods have the names of conf/*.yaml and of the ``pruning:`` block.
How the parameters are counted is worked out in ``espnet_pinch.results.accounting``.
"""

import dataclasses

SETS = ("dev-clean", "dev-other", "test-clean", "test-other")


@dataclasses.dataclass(frozen=True)
class PaperWer:
    """A word error rate of Table 1.

    Attributes:
        percent: WER.
        dagger: no significant increase over the uncompressed baseline (MAPSSWE, alpha = 0.05).
    """

    percent: float
    dagger: bool = False

    def __str__(self) -> str:
        return f"{self.percent:.2f}{'†' if self.dagger else ''}"


@dataclasses.dataclass(frozen=True)
class Table1Row:
    """A system of Table 1, fine-tuned on train-clean-100.

    Attributes:
        sparsity: fraction of the gated weights.
        params_m: parameters in millions.
        wer: of the four sets, by name.
    """

    upstream: str
    method: str
    sparsity: float
    params_m: float
    wer: dict[str, PaperWer]


@dataclasses.dataclass(frozen=True)
class Table2Row:
    """A system of Table 2, WER on test-clean.

    Attributes:
        system: its name in the table.
        original: the model that was compressed; its size in ``ORIGINAL_M`` is the ratio's numerator.
        train_hours: of speech.
        params_m: parameters in millions; None where the table gives none.
        ratio: compression ratio; None where the table gives none.
        time: what compression took, as printed; "" where the table gives nothing.
        wer: per cent.
        superb: marked "*": SUPERB leaderboard, frozen upstream, not the same task.
        upstream, method, sparsity: of the paper's own systems; None for earlier work.
    """

    system: str
    original: str
    train_hours: int
    params_m: float | None
    ratio: float | None
    time: str
    wer: float
    superb: bool = False
    upstream: str | None = None
    method: str | None = None
    sparsity: float | None = None


# What the ratios of Table 2 divide, in millions: the sizes published with the SUPERB benchmark for pre-trained models.
# Table 1 prints 95.04 and 316.60 (SUPERB has 316.61); 94.68 and 94.70 are not in the paper, but every ratio
# of Table 2 comes out with them.
ORIGINAL_M = {"wav2vec2_base": 95.04, "hubert_base": 94.68, "wavlm_base_plus": 94.70, "hubert_large": 316.60}


def _row1(upstream: str, method: str, sparsity: float, params_m: float, wer: str) -> Table1Row:
    rates = [PaperWer(float(rate.rstrip("†")), rate.endswith("†")) for rate in wer.split()]
    return Table1Row(upstream, method, sparsity, params_m, dict(zip(SETS, rates, strict=True)))


def _own(
    system: str, upstream: str, sparsity: float, params_m: float, ratio: float, time: str, wer: float
) -> Table2Row:
    own = Table2Row(system, upstream, 100, params_m, ratio, time, wer)
    return dataclasses.replace(own, upstream=upstream, method="pinch", sparsity=sparsity)


TABLE1 = (
    _row1("wav2vec2_base", "dense", 0.0, 95.04, "6.10 13.79 6.06 13.52"),
    _row1("hubert_large", "dense", 0.0, 316.60, "3.35 8.13 3.44 8.34"),
    _row1("wav2vec2_base", "pinch", 0.50, 51.93, "5.97† 16.09 6.00† 16.06"),
    _row1("wav2vec2_base", "pinch", 0.60, 43.44, "6.06† 16.52 6.07† 16.08"),
    _row1("wav2vec2_base", "pinch", 0.65, 39.19, "6.03† 16.97 6.12† 16.89"),
    _row1("wav2vec2_base", "pinch", 0.70, 34.94, "6.21† 17.17 6.45 17.46"),
    _row1("wav2vec2_base", "pinch", 0.75, 30.70, "6.41 17.82 6.71 18.08"),
    _row1("wav2vec2_base", "pinch", 0.80, 26.45, "6.71 18.63 6.95 19.27"),
    _row1("wav2vec2_base", "pinch", 0.85, 22.20, "7.49 20.47 7.46 20.74"),
    _row1("wav2vec2_base", "pinch", 0.90, 17.96, "8.22 23.36 8.63 24.30"),
    _row1("hubert_large", "pinch", 0.50, 164.37, "3.45† 9.14 3.51† 8.99"),
    _row1("hubert_large", "pinch", 0.60, 134.14, "3.54 9.44 3.54† 9.33"),
    _row1("hubert_large", "pinch", 0.65, 119.03, "3.62 9.86 3.65 9.75"),
    _row1("hubert_large", "pinch", 0.70, 103.92, "3.76 10.27 3.76 10.15"),
    _row1("hubert_large", "pinch", 0.75, 88.81, "3.88 11.01 3.98 11.04"),
    _row1("hubert_large", "pinch", 0.80, 73.70, "4.19 12.51 4.36 12.39"),
    _row1("hubert_large", "pinch", 0.85, 58.59, "4.83 14.66 4.82 14.72"),
    _row1("hubert_large", "pinch", 0.90, 43.48, "6.11 18.91 6.37 19.29"),
    _row1("hubert_large", "mixed_sparsity", 0.10, 285.25, "3.35† 8.29† 3.49† 8.48†"),
    _row1("hubert_large", "mixed_sparsity", 0.20, 255.03, "3.43† 8.32 3.43† 8.42†"),
    _row1("hubert_large", "mixed_sparsity", 0.30, 224.81, "3.31† 8.81 3.45† 8.47†"),
    _row1("hubert_large", "mixed_sparsity", 0.50, 164.37, "3.46† 8.89 3.49† 8.72"),
    _row1("hubert_large", "nas_cp", 0.50, 164.37, "7.67 20.99 7.79 21.34"),
    _row1("hubert_large", "ump", 0.50, 164.37, "3.49 8.85 3.64 8.83"),
)

TABLE2 = (
    Table2Row("DistilHuBERT", "hubert_base", 960, 23.49, 4.03, "55 h, 200 ep", 13.37, superb=True),
    Table2Row("FitHuBERT-100", "hubert_base", 100, 22.49, 4.21, ">12 h, 100 ep", 12.66, superb=True),
    Table2Row("FitW2V2-100", "wav2vec2_base", 100, 22.49, 4.23, "", 14.77, superb=True),
    Table2Row("FitHuBERT-960", "hubert_base", 960, 22.49, 4.21, ">93.6 h, 80 ep", 12.09, superb=True),
    Table2Row("FitW2V2-960", "wav2vec2_base", 960, 31.63, 3.00, "", 11.44, superb=True),
    Table2Row("12-Layer Half", "hubert_base", 960, 26.87, 3.52, "200K it", 10.96, superb=True),
    Table2Row("DPHuBERT", "hubert_base", 960, 23.59, 4.01, "24 h, 75K it", 10.47, superb=True),
    Table2Row("DPWavLM", "wavlm_base_plus", 960, 23.59, 4.01, "", 10.19, superb=True),
    Table2Row("SKHuBERT", "hubert_base", 960, 23.59, 4.01, "24 h, 75K it", 10.78, superb=True),
    Table2Row("SKWavLM", "wavlm_base_plus", 960, 23.51, 4.03, "", 10.03, superb=True),
    Table2Row("Wang et al. 2023", "hubert_base", 960, 26.57, 3.56, "36 h, 200K it", 10.29, superb=True),
    Table2Row("DKD LSTM HuBERT", "hubert_base", 960, 18.80, 5.04, "200K it", 10.64, superb=True),
    Table2Row("SparseWAV2VEC2 (85 %)", "wav2vec2_base", 100, 22.27, 4.27, ">40 ep", 8.08),
    Table2Row("SparseWAVLM+ (85 %)", "wavlm_base_plus", 100, 22.98, 4.12, "", 7.12),
    Table2Row("SparseWAV2VEC2 (75 %)", "wav2vec2_base", 100, None, None, "", 7.11),
    _own("wav2vec2-base, self-pinching (85 %)", "wav2vec2_base", 0.85, 22.20, 4.28, "11 h, 30 ep, 27K it", 7.46),
    _own("wav2vec2-base, self-pinching (75 %)", "wav2vec2_base", 0.75, 30.70, 3.10, "11 h, 30 ep, 27K it", 6.71),
    _own("WavLM-base+, self-pinching (85 %)", "wavlm_base_plus", 0.85, 22.21, 4.26, "11 h, 30 ep, 27K it", 7.05),
    _own("HuBERT-large, self-pinching (90 %)", "hubert_large", 0.90, 43.48, 7.28, "13 h, 10 ep, 9K it", 6.37),
)


def table1_row(upstream: str, method: str, sparsity: float) -> Table1Row | None:
    """The row of Table 1; None where it has none.

    >>> str(table1_row("wav2vec2_base", "pinch", 0.65).wer["test-clean"])
    '6.12†'
    """
    return _find(TABLE1, upstream, method, sparsity)


def table2_row(upstream: str, method: str, sparsity: float) -> Table2Row | None:
    """The row of Table 2, among the paper's own systems; None where it has none."""
    return _find(TABLE2, upstream, method, sparsity)


def _find(table, upstream: str, method: str, sparsity: float):
    wanted = (upstream, method, round(sparsity, 4))
    return next((row for row in table if (row.upstream, row.method, row.sparsity) == wanted), None)
