"""Export an experiment: write every format, load each again, compare, weigh, and say so in a model card."""

import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from espnet_pinch.asr.checkpoint import load_model
from espnet_pinch.asr.decode import decode_data_dir
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.data.audio import read_audio
from espnet_pinch.data.kaldi_dir import read_data_dir
from espnet_pinch.data.source import KEYS
from espnet_pinch.export.card import write_card
from espnet_pinch.export.check import Probe, check_weights, noise
from espnet_pinch.export.hugging_face import check_hugging_face, copy_hugging_face
from espnet_pinch.export.load import load
from espnet_pinch.export.onnx_file import check_onnx, write_onnx
from espnet_pinch.export.packed import check_packed, write_packed
from espnet_pinch.export.sparse_file import write_sparse
from espnet_pinch.files import read_json, whole_folder, write_json
from espnet_pinch.results.scoring import score_files
from espnet_pinch.results.significance import compare_files

FORMATS = ("hf", "sparse", "onnx", "espnet")
PROBED = 4  # utterances of every data directory that formats are compared on


def export(
    exp: Path,
    out: Path,
    formats: Sequence[str] = FORMATS,
    values: Sequence[str] = ("fp32", "fp16", "int8"),
    data: Sequence[Path] = (),
    wer: bool = False,
    decoded: str = "decode_ctc_greedy",
    upstream: str = "unknown",
    corpus: str = "unknown",
    batch_size: int = 8,
    device: str = "cpu",
) -> dict:
    """Write the folded model of an experiment to ``out``, which takes its name when all of it has been checked.

    ``out`` is a Hugging Face folder with the other files beside: ``sparse_VALUES.safetensors``, ``model.onnx``,
    ``espnet.zip``, ``README.md`` (the model card), ``export.json`` (what is returned).

    Args:
        exp: experiment folder with ``folded/``; its results.json, where it has one, goes into the card.
        formats: of ``FORMATS``.
        values: what sparse files store, one file for each.
        data: data directories; formats are compared on some of their utterances, on noise where there is none.
        wer: decode all of ``data`` with every sparse file that rounds weights, and score.
        decoded: folder in ``exp`` with the model's own transcripts, to test such a WER against.
        upstream, corpus: for the card; ``upstream`` counts where the model does not know its own, of a folder the name
            is given.
        batch_size, device: of that decoding.

    Returns: ``name, upstream, upstream_source, corpus, sampling_rate, checked_on, versions``, the counts of
    parameters.json, and ``files``:
    ``{file: {"format", "bytes", "loader", "logit_difference", "texts_differing", ...}}``.

    Raises:
        FileNotFoundError: the experiment is not folded, or a data directory is missing.
        ValueError: an exported file gives other logits or transcripts than the model; nothing is left in ``out``.
    """
    folded = exp / "folded"
    for name in ("config.yaml", "model.pth", "parameters.json"):
        if not (folded / name).is_file():
            raise FileNotFoundError(f"{folded / name} is missing: finish the training first (stage 4)")
    model, _ = load_model(folded / "config.yaml", folded / "model.pth")
    audio = [torch.from_numpy(read_audio(u.audio)) for d in data for u in _spread(read_data_dir(d))]
    probe = Probe.of(model, audio or noise(rate=model.frontend.processing.sampling_rate))
    source = model.frontend.source or dict.fromkeys(KEYS)
    figures = {
        "name": exp.absolute().name,
        "upstream": source["repo"] or (Path(upstream).name if Path(upstream).is_dir() else upstream),
        "upstream_source": source,
        "corpus": corpus,
        "sampling_rate": model.frontend.processing.sampling_rate,
        "checked_on": f"{len(audio)} utterances of {', '.join(d.name for d in data)}" if audio else "seeded noise",
        "versions": {name: version(name) for name in ("espnet", "onnxruntime", "safetensors", "torch", "transformers")},
        **read_json(folded / "parameters.json"),
        "files": {},
    }

    def done(file: str, fmt: str, loader: str, difference: float, **more) -> None:
        size = (new / file).stat().st_size
        entry = {"format": fmt, "bytes": size, "loader": loader, "logit_difference": difference, "texts_differing": 0}
        figures["files"][file] = {**entry, **more}
        print(f"{file}: {size / 1e6:.2f} MB, loaded by {loader}: logits differ by {difference:.2g} at most", flush=True)

    with whole_folder(out) as new:
        if "hf" in formats:
            copy_hugging_face(folded, new)
            difference = check_hugging_face(new, probe)
            done("model.safetensors", "hf", "transformers", difference, what="dense float32")
        for kind in values if "sparse" in formats else ():
            file = f"sparse_{kind}.safetensors"
            sizes = write_sparse(new / file, model, kind)
            difference, more = _check_sparse(new / file, kind, model, probe)
            done(file, "sparse", "espnet_pinch.load", difference, sizes=sizes, **more)
            if wer and kind != "fp32":
                figures["files"][file]["wer"] = _score(load(new / file), data, exp / decoded, batch_size, device)
        if "onnx" in formats:
            write_onnx(new / "model.onnx", model)
            done("model.onnx", "onnx", "onnxruntime", check_onnx(new / "model.onnx", probe), what="dense float32")
        if "espnet" in formats:
            write_packed(new / "espnet.zip", folded)
            difference = check_packed(new / "espnet.zip", probe)
            done("espnet.zip", "espnet", "ESPnet's Speech2Text", difference, what="dense float32")
        results = exp / "results.json"
        write_card(new, figures, read_json(results) if results.is_file() else None)
        write_json(new / "export.json", figures)
    return figures


def _spread(rows: list) -> list:
    """``PROBED`` of the rows, evenly spread."""
    return rows[:: max(1, len(rows) // PROBED)][:PROBED]


def _check_sparse(path: Path, values: str, model: PruningASRModel, probe: Probe) -> tuple[float, dict]:
    again = load(path)
    check_weights(path.name, again, model, values)
    other = Probe.of(again, probe.audio)
    if values == "fp32":
        return probe.compare(path.name, other.logits), {}
    difference = max(float((a - b).abs().max()) for a, b in zip(other.logits, probe.logits))
    return difference, {"texts_differing": sum(a != b for a, b in zip(other.texts, probe.texts))}


def _score(model: PruningASRModel, data: Sequence[Path], own: Path, batch_size: int, device: str) -> dict:
    """``{set: error rates}``, with ``significance`` where ``own`` has the exported model's transcripts."""
    scores = {}
    model.to(device)
    with tempfile.TemporaryDirectory() as folder:
        for d in data:
            decode_data_dir(model, d, Path(folder) / d.name, batch_size, device)
            text = Path(folder) / d.name / "text"
            scores[d.name] = score_files(d / "text", text)
            if (own / d.name / "text").is_file():
                scores[d.name]["significance"] = compare_files(d / "text", own / d.name / "text", text)
    return scores
