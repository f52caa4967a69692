"""The model card: what the exported model is, how good, how large, how to load, and what nobody has tried."""

from pathlib import Path

import espnet_pinch
from espnet_pinch.data.source import named
from espnet_pinch.results.experiment import markdown_table, significance_table, system_name

# Where no record has the licence (files put there by hand, older experiments): as the model cards on the Hugging Face
# hub state it. Others, those of WavLM among them, state none or were not read.
LICENCES = {
    "facebook/wav2vec2-base": "apache-2.0",
    "facebook/wav2vec2-base-100h": "apache-2.0",
    "facebook/wav2vec2-base-960h": "apache-2.0",
    "facebook/hubert-base-ls960": "apache-2.0",
    "facebook/hubert-large-ll60k": "apache-2.0",
}
UNKNOWN = "unknown: check"

LOADING = {
    "hf": """With transformers:

```python
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="{folder}")
print(recognise(samples)["text"])  # numpy array, {rate} Hz; or the name of a file, with ffmpeg
```

`AutoModelForCTC.from_pretrained` and `AutoProcessor.from_pretrained` work alike.""",
    "sparse": """A sparse file, with espnet_pinch (its layout is documented in `espnet_pinch/export/sparse_file.py`):

```python
import espnet_pinch
from espnet_pinch.asr.decode import transcribe

model = espnet_pinch.load("{sparse}")
[text] = transcribe(model, [samples])  # torch tensor (samples,), {rate} Hz
print(text)
```

or on the command line: `espnet-pinch transcribe {sparse} speech.flac`""",
    "onnx": """With onnxruntime; the waveform is normalised inside, tokens and sampling rate are in the metadata:

```python
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
tokens = json.loads(session.get_modelmeta().custom_metadata_map["tokens"])
inputs = {{"speech": samples[None], "lengths": np.array([len(samples)])}}  # float32 (1, samples), {rate} Hz
logits, frames = session.run(None, inputs)
best = logits[0].argmax(-1)
ids = [i for i, before in zip(best, [0, *best]) if i not in (0, before)]  # merge repeats, drop the blank
print("".join(tokens[i] for i in ids).replace("<space>", " "))
```""",
    "espnet": """With ESPnet, where espnet_pinch is installed:

```python
import espnet_pinch.asr.task  # first: registers frontend and model
from espnet2.bin.asr_inference import Speech2Text
from espnet2.main_funcs.pack_funcs import unpack
from espnet_pinch.asr.safe_load import tensors_only

with tensors_only():  # ESPnet alone would run what a pickle tells it to
    speech2text = Speech2Text(**unpack("espnet.zip", "unpacked"), ctc_weight=1.0, lm_weight=0.0, beam_size=5)
print(speech2text(samples)[0][0])  # numpy array, {rate} Hz
```""",
}

UNTESTED = """- Speech of another kind than the corpus: other languages and accents, noise, far microphones, telephones.
- Runtimes and versions other than those above; accelerators. Every comparison was made on a CPU.
- ESPnet's beam search on the packed model was run and not compared: greedy search is what the error rates are of.
- Bias, fairness and safety of the upstream, all of which the model inherits."""


def write_card(folder: Path, figures: dict, results: dict | None) -> None:
    """Write ``README.md``.

    Args:
        folder: of the export.
        figures: what ``export`` returns.
        results: the experiment's results.json; None where it has none.
    """
    licence = figures["upstream_source"]["licence"] or LICENCES.get(figures["upstream"], UNKNOWN)
    formats = list(dict.fromkeys(entry["format"] for entry in figures["files"].values()))
    sparse = [name for name, entry in figures["files"].items() if entry["format"] == "sparse"]
    names = {"folder": "path/to/this/folder", "sparse": sparse[-1] if sparse else "", "rate": figures["sampling_rate"]}
    sections = [
        _front_matter(figures, licence),
        f"# {figures['name']}\n\n{_summary(figures, results, licence)}",
        f"## Error rates\n\n{_error_rates(figures, results)}",
        f"## Files\n\n{_files(figures)}",
        "## How to load\n\n" + "\n\n".join(LOADING[name].format(**names) for name in formats),
        f"## Sparsity of every gated layer\n\n{_layers(figures)}",
        f"## What was checked\n\n{_checked(figures)}",
        f"## What was not tested\n\n{UNTESTED}\n{_missing(figures)}",
    ]
    (folder / "README.md").write_text("\n\n".join(sections).rstrip() + "\n", encoding="utf-8")


def _front_matter(figures: dict, licence: str) -> str:
    several = f"[{licence}]" if "," in licence else licence
    lines = [f"license: {'unknown' if licence == UNKNOWN else several}", "pipeline_tag: automatic-speech-recognition"]
    for key in ("licence_name", "licence_link"):  # where the licence is "other"
        value = figures["upstream_source"][key]
        lines += [f"{key.replace('licence', 'license')}: {value}"] if value else []
    lines += ["library_name: transformers"] if "model.safetensors" in figures["files"] else []
    repo = figures["upstream_source"]["repo"] or figures["upstream"].partition("@")[0]
    lines += [f"base_model: {repo}"] if "/" in repo else []
    return "\n".join(["---", *lines, "tags: [ctc, pruning, sparse]", "---"])


def _summary(figures: dict, results: dict | None, licence: str) -> str:
    method = f" ({system_name(results)})" if results else ""
    return "\n".join(
        [
            f"A CTC speech recogniser, {100 * figures['sparsity']:.2f} % of whose gated weights are zero{method}.",
            "",
            f"- Upstream: {named(figures['upstream_source'], figures['upstream'])}; its licence: {licence}.",
            f"- Corpus: {figures['corpus']}.",
            f"- Parameters: {figures['params_kept']:,} of {figures['params_total']:,} kept; "
            f"{figures['gated']:,} were behind gates.",
            f"- Made with espnet_pinch {espnet_pinch.__version__}, after arXiv 2505.22608.",
        ]
    )


def _error_rates(figures: dict, results: dict | None) -> str:
    lines = []
    if results:
        head = ["set", "baseline WER %", "this model WER %", "words"]
        rows = [
            [name, _wer(results["baseline"]["wer"][name]), _wer(score), f"{score['words']}"]
            for name, score in results["wer"].items()
        ]
        lines += [*markdown_table(head, rows), ""]
        if "significance" in results:
            lines += ["Against the baseline, positive where this model is worse (MAPSSWE, alpha = 0.05):", ""]
            lines += [*significance_table(results), ""]
        else:
            lines += ["Significance has not been tested.", ""]
    else:
        lines += ["The experiment has no results.json: its error rates have not been measured.", ""]
    decoded = {name: entry["wer"] for name, entry in figures["files"].items() if "wer" in entry}
    if decoded:
        sets = list(next(iter(decoded.values())))
        rows = [[name, *(_rounded(wer[s]) for s in sets)] for name, wer in decoded.items()]
        lines += [
            "WER % of rounded weights, decoded anew from the file; in brackets the change, in points, against the"
        ]
        lines += ["model that was exported, † where it is no significant increase:", ""]
        lines += markdown_table(["file", *sets], rows)
    return "\n".join(lines).rstrip()


def _files(figures: dict) -> str:
    dense = 4 * figures["params_total"]
    rows = []
    for name, entry in figures["files"].items():
        sizes = entry.get("sizes")
        kind = f"gated layers {sizes['values']}, zeros left out; others {sizes['others']}" if sizes else entry["what"]
        bound = f"{sizes['entropy_bound'] / 1e6:.2f}" if sizes else ""
        rows.append([f"`{name}`", kind, f"{entry['bytes'] / 1e6:.2f}", f"{dense / entry['bytes']:.2f}", bound])
    note = f"All weights as float32: {dense / 1e6:.2f} MB. Bound: what would be left if masks took their entropy."
    head = ["file", "weights", "MB", "times smaller than dense float32", "entropy bound MB"]
    return "\n".join([*markdown_table(head, rows), "", note])


def _layers(figures: dict) -> str:
    rows = [
        [f"`{name}`", f"{layer['weights']:,}", f"{100 * layer['pruned'] / layer['weights']:.2f}"]
        for name, layer in figures["layers"].items()
    ]
    return "\n".join(markdown_table(["layer", "weights", "sparsity %"], rows))


def _checked(figures: dict) -> str:
    rows = []
    for name, entry in figures["files"].items():
        texts = "the same" if not entry["texts_differing"] else f"{entry['texts_differing']} differ (rounded weights)"
        rows.append([f"`{name}`", entry["loader"], f"{entry['logit_difference']:.2g}", texts])
    head = ["file", "loaded by", "largest difference of logits", "transcripts"]
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    what = f"Each file was loaded again after it was written, and compared on {figures['checked_on']}, with {versions}."
    return "\n".join([what, "", *markdown_table(head, rows)])


def _missing(figures: dict) -> str:
    rounded = [n for n, e in figures["files"].items() if e.get("sizes", {}).get("values", "fp32") != "fp32"]
    undecoded = [name for name in rounded if "wer" not in figures["files"][name]]
    return f"- The error rates of {', '.join(undecoded)}.\n" if undecoded else ""


def _wer(score: dict) -> str:
    return f"{100 * score['wer']:.2f}"


def _rounded(score: dict) -> str:
    test = score.get("significance")
    change = f" ({test['wer_difference']:+.2f}{'' if test['significant_increase'] else ' †'})" if test else ""
    return _wer(score) + change
