"""Models with adapter weights for each language, such as MMS: one language merged in, as a model of its own."""

import shutil
from pathlib import Path

from transformers import AutoModelForCTC

from espnet_pinch.asr.safe_load import tensors_only
from espnet_pinch.asr.upstream import load_upstream, read_config
from espnet_pinch.asr.weight_files import names_in
from espnet_pinch.data.source import read_record, write_record
from espnet_pinch.data.upstream_files import PROCESSOR, VOCABULARY, check_folder, vocabularies
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.files import read_json, whole_folder, write_json

TOKENIZER = "tokenizer_config.json"


def merge_language(folder: Path, language: str, out: Path) -> None:
    """Write the model of one language: its adapters and head in the weights, its vocabulary alone in vocab.json.

    Args:
        folder: in Hugging Face's layout, with ``adapter.LANGUAGE.safetensors`` or ``.bin``.
        out: replaced if it exists. ``AutoModelForCTC`` and ``load_upstream`` read it.

    Raises:
        OSError: a file cannot be read or written.
        UserError: the folder lacks the language, or its files do not fit each other; the message names what.
    """
    names = check_folder(folder, language)
    config = read_config(str(folder), language)
    if not getattr(config, "adapter_attn_dim", None):
        raise UserError(f"{folder}/config.json has no adapter_attn_dim, the width of the adapters in {names[-1]}")
    names_in(folder / names[-1])  # of a damaged adapter transformers would say that it is missing
    try:
        with tensors_only():
            model = AutoModelForCTC.from_pretrained(
                folder, config=config, target_lang=language, ignore_mismatched_sizes=True, local_files_only=True
            )
    except (OSError, MemoryError):
        raise
    except Exception as error:  # such as an adapter of another width
        raise UserError(f"{folder / names[-1]} does not fit the model: {one_line(error)}") from None
    with whole_folder(out) as new:
        model.save_pretrained(new)
        for path in new.iterdir():
            path.chmod(0o644)  # safetensors writes files that only their owner can read
        for name in names:
            if name in PROCESSOR:
                shutil.copyfile(folder / name, new / name)
        _one_vocabulary(folder, language, new)
        _one_language(new / TOKENIZER)
        sizes = {path.name: {"size": path.stat().st_size} for path in new.iterdir()}
        known = read_record(folder)
        if known["upstream"] and not known["language"]:
            known["upstream"] += f":{language}"
        write_record(new, {**known, "language": language, "files": sizes})
        load_upstream(str(new))  # raises what would be wrong in stage 2
    count = sum(weights.numel() for weights in model._get_adapters().values())
    print(f"merged {names[-1]} into the model: {count:,} weights of the adapters and the head", flush=True)


def _one_vocabulary(folder: Path, language: str, new: Path) -> None:
    """Leave the vocabulary of one language in vocab.json, if it has one for each."""
    if not (new / VOCABULARY).is_file():
        return
    by_language = vocabularies((new / VOCABULARY).read_text(encoding="utf-8"))
    if by_language:
        if language not in by_language:
            raise UserError(f"{folder / VOCABULARY} has no vocabulary for the language {language}")
        write_json(new / VOCABULARY, by_language[language])


def _one_language(settings: Path) -> None:
    """Take the choice of a language out of the tokenizer's settings, which would look it up in vocab.json."""
    if settings.is_file():
        write_json(settings, {key: value for key, value in read_json(settings).items() if key != "target_lang"})
