"""How many parameters a pruned model has: as the paper counts them, and as we do.

The paper (arXiv 2505.22608, Tables 1 and 2) counts in three ways, and its columns mix them:

- Pruned base models: ``total - sparsity * weights``, with ``total`` the model and its CTC head, ``weights`` those of
  the gated linears. So do wav2vec2-base and WavLM-base+ come out; rounded to two decimals.
- Pruned HuBERT-large: ``total - sparsity * (weights + biases)``, though no bias is pruned; rounded.
- Uncompressed models, and the numerators of the ratios: the model with its pre-training heads and without a CTC head;
  cut after two decimals.

The tables state none of this: these are the rules that give their figures. wav2vec2-base's 95.04 comes out cut or
rounded. 316.60 is the least certain figure: fairseq's HuBERT-large, without biases in its convolutions, has 316,609,408
parameters, 316.61 when rounded, and with these biases 316.61 in any case. That it was cut was chosen because it fits,
and it does not hold for the sizes that others print (SUPERB has 316.61). WavLM-base+ as an uncompressed model is not in
the tables; with HuBERT's heads it has 94,707,824 parameters, which gives the printed ratio, cut or not.

So the printed ratios (4.28, 3.10, 4.26, 7.28) divide a model with its pre-training heads by one without them; one and
the same model before and after pruning, by our rule, gives 4.25, 3.08, 4.25 and 7.22.

Our rule: weights of the gated linears are pruned and nothing else is. ``kept`` is ``total`` less the pruned weights, of
which there are as few as reach the sparsity. ``bits`` is the size of a plain way to store that: 32 for each kept
parameter, and 1 for each gated weight that says whether it is kept. Without pruning there is no mask; nor is there for
whole channels (NAS-CP), whose matrices are smaller instead.
"""

import copy
import dataclasses
import math
from fractions import Fraction

from torch import nn
from transformers import PreTrainedModel

from espnet_pinch.asr.architectures import ctc_model, pretraining_model
from espnet_pinch.asr.family import find_family
from espnet_pinch.core.attach import find_linears
from espnet_pinch.core.method import PruningMethod
from espnet_pinch.core.registry import all_methods, build_method
from espnet_pinch.core.settings import check_target_sparsity
from espnet_pinch.results.paper import TABLE1, TABLE2

# Whether the paper's count for this upstream takes the biases of the gated linears for pruned.
PAPER_PRUNES_BIASES = {"wav2vec2_base": False, "hubert_large": True, "wavlm_base_plus": False}


@dataclasses.dataclass(frozen=True)
class Counts:
    """Parameters of a model.

    Attributes:
        total: all of them, with the CTC head.
        linears: number of gated linear layers.
        weights: weights of the gated linears.
        biases: biases of the gated linears; they are not pruned.
    """

    total: int
    linears: int
    weights: int
    biases: int


def count(model: PreTrainedModel) -> Counts:
    """Count a model of transformers, on whatever device.

    Raises:
        UserError: it has no linear layers that would be gated.
    """
    linears = find_linears(model, find_family(model.config.model_type).layers).values()
    return Counts(
        total=count_all(model),
        linears=len(linears),
        weights=sum(linear.weight.numel() for linear in linears),
        biases=sum(linear.bias.numel() for linear in linears),
    )


def count_all(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def extra_parameters(model: PreTrainedModel) -> dict[str, int]:
    """``{method, with its variant: parameters that it trains besides the model's own}``.

    Args:
        model: on the meta device.
    """
    found = {}
    for name, method in all_methods().items():
        for variant, settings in method.variants.items():
            title = f"{name} ({variant})" if variant else name
            found[title] = 0
            if method.build.new_parameters is not PruningMethod.new_parameters:
                upstream = copy.deepcopy(model.base_model)
                family = find_family(upstream.config.model_type)
                attached = build_method({"method": name, "layers": family.layers, name: settings})
                attached.attach(upstream, structure=family.structure(upstream))
                found[title] = sum(parameter.numel() for parameter in attached.new_parameters())
    return found


def two_decimals(parameters: float, cut: bool = False) -> str:
    """Millions with two decimals, rounded or cut, as the paper prints them."""
    return f"{math.floor(parameters / 1e4) / 100 if cut else parameters / 1e6:.2f}"


def paper_count(counts: Counts, sparsity: float, biases: bool) -> float:
    """Parameters of a pruned model as the paper counts them.

    Args:
        biases: whether the biases of the gated linears count as pruned too, see ``PAPER_PRUNES_BIASES``.
    """
    return counts.total - sparsity * (counts.weights + biases * counts.biases)


def kept(counts: Counts, sparsity: float) -> int:
    """Parameters left when the fewest weights are pruned that reach ``sparsity``."""
    return counts.total - math.ceil(Fraction(str(sparsity)) * counts.weights)


def bits(counts: Counts, sparsity: float) -> int:
    """Size of the pruned model: 32 bits for every kept parameter, 1 for every gated weight if some are pruned."""
    left = kept(counts, sparsity)
    return 32 * left + (counts.weights if left < counts.total else 0)


def published(upstream: str, sparsity: float) -> tuple[float | None, float | None]:
    """The paper's parameters in millions, and its compression ratio; None for what it does not give."""
    rows = [row for row in (*TABLE1, *TABLE2) if (row.upstream, row.sparsity) == (upstream, sparsity)]
    ratios = [row.ratio for row in rows if row in TABLE2]
    return (rows[0].params_m if rows else None), (ratios[0] if ratios else None)


def published_sparsities(upstream: str) -> list[float]:
    """The sparsities of the paper's rows, 0 among them; those of wav2vec2-base where it has no rows."""
    rows = [row for row in (*TABLE1, *TABLE2) if row.upstream == upstream]
    found = {row.sparsity for row in rows if row.sparsity is not None}
    return sorted({0.0, *found}) if found else published_sparsities("wav2vec2_base")


def account(upstream: str, sparsities: list[float] | None = None) -> dict:
    """All counts of an upstream, ready for JSON.

    Args:
        upstream: a name of ``espnet_pinch.asr.architectures.CONFIGS``, or a Hugging Face folder.
        sparsities: fractions; those of the paper's rows where None.

    Returns:
        ``upstream, tokens, total, linears, weights, biases``; ``pretraining``, parameters of the model with its
        pre-training heads, and ``paper_prunes_biases``, both None where the upstream is not the paper's;
        ``extra_parameters``, as the function of that name gives them; and ``rows``, each with ``sparsity``, the paper's
        rules ``paper_weights`` and ``paper_weights_and_biases``, ``paper``, the one of the three rules that the paper
        uses there, ``paper_m``, the same in millions, ``paper_ratio``, the printed ``published_m`` and
        ``published_ratio``, and ours: ``kept``,
        ``bits``, ``ratio`` of the parameters, ``ratio_bits``.

    Raises:
        UserError: no such upstream, a folder that cannot be read, or a sparsity that is none.
    """
    if sparsities is None:
        sparsities = published_sparsities(upstream)
    sparsities = [check_target_sparsity(sparsity) for sparsity in sparsities]
    model = ctc_model(upstream)
    counts = count(model)
    biases = PAPER_PRUNES_BIASES.get(upstream)
    original = None if biases is None else count_all(pretraining_model(upstream))
    return {
        "upstream": upstream,
        "tokens": model.config.vocab_size,
        **dataclasses.asdict(counts),
        "pretraining": original,
        "paper_prunes_biases": biases,
        "extra_parameters": extra_parameters(model),
        "rows": [_row(upstream, counts, sparsity, original) for sparsity in sparsities],
    }


def _row(upstream: str, counts: Counts, sparsity: float, original: int | None) -> dict:
    weights, both = (paper_count(counts, sparsity, biases) for biases in (False, True))
    paper = None
    if original is not None:
        paper = original if sparsity == 0 else both if PAPER_PRUNES_BIASES[upstream] else weights
    params_m, ratio = published(upstream, sparsity)
    left, size = kept(counts, sparsity), bits(counts, sparsity)
    return {
        "sparsity": sparsity,
        "paper_weights": weights,
        "paper_weights_and_biases": both,
        "paper": paper,
        "paper_m": paper and float(two_decimals(paper, cut=sparsity == 0)),
        "paper_ratio": original / paper if original and paper else None,
        "published_m": params_m,
        "published_ratio": ratio,
        "kept": left,
        "bits": size,
        "ratio": counts.total / left,
        "ratio_bits": 32 * counts.total / size,
    }
