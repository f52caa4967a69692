"""Export an experiment: write each format, load it again, compare it with the original, and write a model card."""

import dataclasses
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from espnet_pinch.asr.decode import decode_data_dir
from espnet_pinch.asr.pruned import PrunedModel
from espnet_pinch.asr.recogniser import Recogniser
from espnet_pinch.core.parameters import Parameters
from espnet_pinch.data.audio import read_audio
from espnet_pinch.data.kaldi_dir import read_data_dir
from espnet_pinch.data.source import KEYS
from espnet_pinch.errors import UserError
from espnet_pinch.export.card import write_card
from espnet_pinch.export.check import Probe, noise
from espnet_pinch.export.format import Format, Original, choose_formats, values_of
from espnet_pinch.export.formats.espnet import parts_of
from espnet_pinch.export.load import load
from espnet_pinch.files import whole_folder, write_json
from espnet_pinch.inference.runtime import all_runtimes
from espnet_pinch.results.records import Results
from espnet_pinch.results.scoring import score_files
from espnet_pinch.results.significance import compare_files
from espnet_pinch.results.unit import unit_of

NEEDED = ("espnet", "safetensors", "torch", "transformers")  # packages that models of all formats need
PROBED = 4  # utterances of each data directory on which formats are compared


def export(
    exp: Path,
    out: Path,
    formats: Sequence[str] = (),
    values: Sequence[str] = (),
    data: Sequence[Path] = (),
    wer: bool = False,
    decoded: str = "decode_ctc_greedy",
    upstream: str = "unknown",
    corpus: str = "unknown",
    part: str = "",
    batch_size: int = 8,
    device: str = "cpu",
) -> dict:
    """Write the folded model of an experiment to ``out``, which appears only when all of it has been checked.

    ``out`` holds the files of all formats, ``README.md`` (the model card) and ``export.json`` (what is returned). With
    the format "hf" it is a Hugging Face folder.

    Args:
        exp: experiment folder with ``folded/``, or such a folded model. If it has a results.json, the card shows its
            error rates.
        formats: names of formats; the default ones if empty.
        values: types that weights are stored as, one file for each, in formats with a choice, such as sparse files;
            their defaults if empty.
        data: data directories. Formats are compared on some of their utterances; on noise if there is none.
        wer: decode all of ``data`` with every file that rounds weights and that ``load`` reads, in torch or in another
            runtime, and score it.
        decoded: folder in ``exp`` with the model's own transcripts, for a significance test of such a WER.
        part: of a run with several targets, the one to export, such as "0.65".
        upstream, corpus: names for the card. ``upstream`` is used if the model does not know its own; only the last
            part of a folder is shown.
        batch_size, device: of this decoding.

    Returns: ``name, task, upstream, upstream_source, corpus, sampling_rate, checked_on, versions``, the counts of
    parameters.json, and ``files``:
    ``{file: {"format", "bytes", "loader", "logit_difference", "texts_differing", "what", ...}}``.

    Raises:
        FileNotFoundError: the experiment is not folded, or a data directory is missing.
        UserError: a format or a type is unknown, or an exported file gives other logits or transcripts than the model;
            ``out`` is then not written.
    """
    folded = exp if (exp / "model.pth").is_file() else exp / "folded" / part
    for name in ("config.yaml", "model.pth", "parameters.json"):
        if not (folded / name).is_file():
            parts = parts_of(exp)
            if parts and not part:
                raise FileNotFoundError(f"{exp} has several targets: say which by --part ({', '.join(parts)})")
            raise FileNotFoundError(f"{folded / name} is missing: finish the training first (stage 4)")
    model = load(folded)
    chosen = choose_formats(formats, model.task)
    possible = values_of(chosen)
    for value in values:
        if value not in possible:
            which = f"the formats {', '.join(fmt.name for fmt in chosen)}"
            raise UserError(f"{which} cannot store values as {value!r}; there is: {', '.join(possible) or 'no choice'}")
    audio = [torch.from_numpy(read_audio(u.audio)) for d in data for u in _spread(read_data_dir(d))]
    probe = Probe.of(model, audio or noise(rate=model.frontend.processing.sampling_rate))
    original = Original(model, folded, probe, values)
    packages = sorted({*NEEDED, *(package for fmt in chosen for package in fmt.packages)})
    source = model.frontend.source or dict.fromkeys(KEYS)
    parameters = Parameters.read(folded / "parameters.json")
    report = exp / part / "results.json"
    results = Results.read(report) if report.is_file() else None
    figures = {
        "name": "_".join([exp.absolute().name, *([part] if part else [])]),
        "task": model.task,
        "upstream": source["repo"] or (Path(upstream).name if Path(upstream).is_dir() else upstream),
        "upstream_source": source,
        "corpus": corpus,
        "sampling_rate": model.frontend.processing.sampling_rate,
        "checked_on": f"{len(audio)} utterances of {', '.join(d.name for d in data)}" if audio else "seeded noise",
        "versions": {name: version(name) for name in packages},
        **dataclasses.asdict(parameters),
        "files": {},
    }

    with whole_folder(out) as new:
        for fmt in chosen:
            for file, facts in fmt.write(new, original).items():
                entry: dict = {"format": fmt.name, "bytes": (new / file).stat().st_size, "loader": fmt.library}
                entry |= dataclasses.asdict(fmt.check(new / file, original)) | facts
                print(
                    f"{file}: {entry['bytes'] / 1e6:.2f} MB, loaded by {entry['loader']}: "
                    f"logits differ by {entry['logit_difference']:.2g} at most",
                    flush=True,
                )
                decoder = _decoder(fmt, new / file, device) if wer and entry.get("rounded") else None
                if decoder:
                    entry["wer"] = _score(decoder, data, exp / part / decoded, batch_size, device)
                figures["files"][file] = entry
        write_card(new, figures, parameters, results)
        write_json(new / "export.json", figures)
    return figures


def _spread(rows: list) -> list:
    """``PROBED`` of the rows, evenly spread."""
    return rows[:: max(1, len(rows) // PROBED)][:PROBED]


def _decoder(fmt: Format, file: Path, device: str) -> PrunedModel | Recogniser | None:
    """An exported file, ready to decode: in torch on ``device``, or in a runtime on the CPU; None if none reads it."""
    if fmt.accepts:
        return load(file).to(device)
    runtime = next((runtime for runtime in all_runtimes().values() if runtime.loads(fmt)), None)
    return load(file, runtime.name) if runtime else None


def _score(model: PrunedModel | Recogniser, data: Sequence[Path], own: Path, batch_size: int, device: str) -> dict:
    """``{set: error rates}``, with ``significance`` if ``own`` has the original model's transcripts."""
    scores, unit = {}, unit_of(model.task)
    with tempfile.TemporaryDirectory() as folder:
        for d in data:
            decode_data_dir(model, d, Path(folder) / d.name, batch_size, device)
            text = Path(folder) / d.name / "text"
            scores[d.name] = dataclasses.asdict(score_files(d / "text", text, unit))
            if (own / d.name / "text").is_file():
                test = compare_files(d / "text", own / d.name / "text", text, unit)
                scores[d.name]["significance"] = dataclasses.asdict(test)
    return scores
