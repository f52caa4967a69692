"""The model card: what the exported model is, its error rates and size, how to load it, and what was not tested."""

from pathlib import Path

import espnet_pinch
from espnet_pinch.asr.head import CLASSIFY, find_head
from espnet_pinch.core.parameters import Parameters
from espnet_pinch.data.source import named
from espnet_pinch.export.format import Format, all_formats
from espnet_pinch.results.experiment import markdown_table, significance_table, system_name
from espnet_pinch.results.records import Results, SetScore
from espnet_pinch.results.unit import Unit, unit_of

# Licences that the model cards on the Hugging Face hub state. They count if no record has the licence: for files that
# were copied by hand, and for older experiments. Other model cards, such as WavLM's, state none or were not read.
LICENCES = {
    "facebook/wav2vec2-base": "apache-2.0",
    "facebook/wav2vec2-base-100h": "apache-2.0",
    "facebook/wav2vec2-base-960h": "apache-2.0",
    "facebook/hubert-base-ls960": "apache-2.0",
    "facebook/hubert-large-ll60k": "apache-2.0",
}
UNKNOWN = "unknown: check"

UNTESTED = """- Speech of another kind than the corpus: other languages and accents, noise, far microphones, telephones.
- Runtimes and versions other than those above; accelerators. Every comparison was made on a CPU.
- Bias, fairness and safety of the upstream, all of which the model inherits."""


def write_card(folder: Path, figures: dict, parameters: Parameters, results: Results | None) -> None:
    """Write ``README.md``.

    Args:
        folder: of the export.
        figures: what ``export`` returns.
        parameters: of the exported model.
        results: the experiment's results.json; None if it has none.
    """
    licence = figures["upstream_source"]["licence"] or LICENCES.get(figures["upstream"], UNKNOWN)
    files = {entry["format"]: name for name, entry in figures["files"].items()}  # the last file of each format
    formats = {fmt: files[name] for name, fmt in all_formats().items() if name in files}
    sections = [
        _front_matter(figures, licence, formats),
        f"# {figures['name']}\n\n{_summary(figures, parameters, results, licence)}",
        f"## Error rates\n\n{_error_rates(figures, results)}",
        f"## Files\n\n{_files(figures, parameters)}",
        "## How to load\n\n" + "\n\n".join(_loading(fmt, file, figures) for fmt, file in formats.items()),
        f"## Sparsity of every gated layer\n\n{_layers(parameters)}",
        f"## What was checked\n\n{_checked(figures)}",
        "\n".join(["## What was not tested", "", UNTESTED, *_untested(figures, list(formats))]),
    ]
    (folder / "README.md").write_text("\n\n".join(sections).rstrip() + "\n", encoding="utf-8")


def _loading(fmt: Format, file: str, figures: dict) -> str:
    snippet = fmt.loading(figures["task"], figures["files"][file]["loader"])
    return snippet.format(folder="path/to/this/folder", file=file, rate=figures["sampling_rate"])


def _front_matter(figures: dict, licence: str, formats: dict[Format, str]) -> str:
    head = find_head(figures["task"])
    several = f"[{licence}]" if "," in licence else licence
    lines = [f"license: {'unknown' if licence == UNKNOWN else several}", f"pipeline_tag: {head.hub_task}"]
    for key in ("licence_name", "licence_link"):  # if the licence is "other"
        value = figures["upstream_source"][key]
        lines += [f"{key.replace('licence', 'license')}: {value}"] if value else []
    loaded = [fmt for fmt, file in formats.items() if figures["files"][file]["loader"] == fmt.library]
    lines += [f"library_name: {fmt.hub_library}" for fmt in loaded if fmt.hub_library][:1]
    repo = figures["upstream_source"]["repo"] or figures["upstream"].partition("@")[0]
    lines += [f"base_model: {repo}"] if "/" in repo else []
    return "\n".join(["---", *lines, f"tags: [{head.kind.lower()}, pruning, sparse]", "---"])


def _summary(figures: dict, parameters: Parameters, results: Results | None, licence: str) -> str:
    what = find_head(figures["task"]).card
    method = f" ({system_name(results)})" if results else ""
    return "\n".join(
        [
            f"{what}, {100 * parameters.sparsity:.2f} % of whose gated weights are pruned{method}.",
            "",
            f"- Upstream: {named(figures['upstream_source'], figures['upstream'])}; its licence: {licence}.",
            f"- Corpus: {figures['corpus']}.",
            f"- Parameters: {parameters.params_kept:,} of {parameters.params_total:,} kept; "
            f"{parameters.gated:,} were behind gates.",
            f"- Made with espnet_pinch {espnet_pinch.__version__}, after arXiv 2505.22608.",
        ]
    )


def _error_rates(figures: dict, results: Results | None) -> str:
    lines = []
    if results:
        unit = results.unit
        head = ["set", f"baseline {unit.title} %", f"this model {unit.title} %", unit.of]
        rows = [
            [name, _rate(results.baseline.wer[name], unit), _rate(score, unit), f"{score.counts(unit)[1]}"]
            for name, score in results.figures.wer.items()
        ]
        lines += [*markdown_table(head, rows), ""]
        lines += [f"Compared with the baseline; positive if this model is worse ({unit.test}, alpha = 0.05):", ""]
        lines += [*significance_table(results), ""]
    else:
        lines += ["The experiment has no results.json: its error rates have not been measured.", ""]
    title = unit_of(figures["task"]).title
    decoded = {name: entry["wer"] for name, entry in figures["files"].items() if "wer" in entry}
    if decoded:
        sets = list(next(iter(decoded.values())))
        rows = [[name, *(_rounded(wer[s]) for s in sets)] for name, wer in decoded.items()]
        lines += [
            f"{title[0].upper()}{title[1:]} % with rounded weights, decoded with the file itself. In brackets: the "
            "change from the exported model,"
        ]
        lines += ["in percentage points; † marks a change that is no significant increase:", ""]
        lines += markdown_table(["file", *sets], rows)
    return "\n".join(lines).rstrip()


def _files(figures: dict, parameters: Parameters) -> str:
    dense = 4 * parameters.params_total
    rows = []
    for name, entry in figures["files"].items():
        bound = f"{entry['sizes']['entropy_bound'] / 1e6:.2f}" if "sizes" in entry else ""
        rows.append([f"`{name}`", entry["what"], f"{entry['bytes'] / 1e6:.2f}", f"{dense / entry['bytes']:.2f}", bound])
    note = f"All weights as float32: {dense / 1e6:.2f} MB. Bound: the size if masks and codes took only their entropy."
    head = ["file", "weights", "MB", "times smaller than dense float32", "entropy bound MB"]
    return "\n".join([*markdown_table(head, rows), "", note])


def _layers(parameters: Parameters) -> str:
    rows = [
        [f"`{name}`", f"{layer.weights:,}", f"{100 * layer.sparsity:.2f}"] for name, layer in parameters.layers.items()
    ]
    return "\n".join(markdown_table(["layer", "weights", "sparsity %"], rows))


def _checked(figures: dict) -> str:
    rows = []
    for name, entry in figures["files"].items():
        texts = "the same" if not entry["texts_differing"] else f"{entry['texts_differing']} differ (rounded weights)"
        rows.append([f"`{name}`", entry["loader"], f"{entry['logit_difference']:.2g}", texts])
    texts = "labels" if figures["task"] == CLASSIFY else "transcripts"
    head = ["file", "loaded by", "largest difference of logits", texts]
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    what = f"Each file was loaded again after it was written, and compared on {figures['checked_on']}, with {versions}."
    return "\n".join([what, "", *markdown_table(head, rows)])


def _untested(figures: dict, formats: list[Format]) -> list[str]:
    lines = [f"- {fmt.untested}" for fmt in formats if fmt.untested]
    undecoded = [name for name, entry in figures["files"].items() if entry.get("rounded") and "wer" not in entry]
    return [*lines, *([f"- The error rates of {', '.join(undecoded)}."] if undecoded else [])]


def _rate(score: SetScore, unit: Unit) -> str:
    errors, total = score.counts(unit)
    return f"{100 * errors / total:.2f}"


def _rounded(score: dict) -> str:
    test = score.get("significance")
    change = f" ({test['wer_difference']:+.2f}{'' if test['significant_increase'] else ' †'})" if test else ""
    return f"{100 * score['wer']:.2f}{change}"
