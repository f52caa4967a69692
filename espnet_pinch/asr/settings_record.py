"""Record the settings and data of a training folder, so that a run with others is refused there."""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path

from espnet_pinch.asr.resume import NEWEST, PREVIOUS
from espnet_pinch.core.quantize import MIXED
from espnet_pinch.core.registry import DEFAULT_METHOD, all_methods, method_of, self_contained
from espnet_pinch.data.source import FILE as SOURCE
from espnet_pinch.errors import UserError
from espnet_pinch.files import read_json, write_json

FILE = "settings.json"

# Options that do not change the result of a run, only how it is logged, saved or distributed. ngpu is one of them,
# because ESPnet's batch_size is the total over all GPUs.
NEUTRAL = (
    *("config", "output_dir", "resume", "dry_run", "print_config", "required", "log_level", "log_interval"),
    *("num_workers", "ngpu", "local_rank", "multiprocessing_distributed", "num_att_plot", "use_matplotlib"),
    *("use_tensorboard", "max_cache_size", "max_cache_fd", "valid_max_cache_size", "save_every_steps"),
    *("max_skipped_steps", "create_graph_in_tensorboard"),
)
NEUTRAL_PREFIXES = ("dist_", "wandb_", "use_wandb")
OWN = ("pruning", "quantize", "distill")  # blocks of ours: a record of a run without one has no line of it
DATA = ("train_data_path_and_name_and_type", "valid_data_path_and_name_and_type")
FILES = ("token_list", "bpemodel", "train_shape_file", "valid_shape_file")
SHOWN = 6  # changes that an error message lists


def check_unchanged(args: argparse.Namespace) -> None:
    """Compare the options of a run with those that its folder was trained with, then record them.

    A folder without a checkpoint accepts any options.

    A longer ``max_epoch`` is a change if the learning rate or the method's temperature is annealed over the whole run.
    The steps already done would belong to another schedule, and no configuration would describe the result. With a
    constant or per-step schedule and a method that does not anneal, it is no change: the longer run has the same steps.

    Args:
        args: as parsed, before ESPnet and the task add to it.

    Raises:
        UserError: settings or input files have changed; the message lists each as "setting: old -> new".
        OSError: an input file cannot be read.
    """
    folder = Path(args.output_dir)
    now = describe(args)
    started = (folder / NEWEST).exists() or (folder / PREVIOUS).exists()
    if started and not (folder / FILE).is_file():
        print(f"warning: {folder} has no {FILE}: cannot check whether its settings or data have changed", flush=True)
    elif started:
        try:
            before = read_json(folder / FILE)
            changes = _changes(before, now)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{folder / FILE} is damaged: cannot check whether the settings have changed; remove "
                "that file if you know that they have not"
            ) from None
        if changes:
            more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
            hint = ""
            if any(change.startswith("max_epoch:") for change in changes):
                hint = " (its schedule depends on max_epoch: a longer run must start at the beginning)"
            raise UserError(
                f"{folder} was trained with other settings or data: {'; '.join(changes[:SHOWN])}{more}{hint}; give "
                "another --asr_tag, or remove that folder"
            )
    write_json(folder / FILE, now)


def describe(args: argparse.Namespace) -> dict:
    """``settings`` ({option.key: value}) and ``inputs`` ({what: {"file", "sha256"}}) of a run."""
    options = {**vars(args), "pruning": self_contained(args.pruning)}
    inputs = {}
    for option in DATA:
        for path, name, kind in options.pop(option):
            inputs[f"{option.split('_')[0]} {name} ({kind})"] = path
    for option in FILES:
        value = options.pop(option)
        for i, path in enumerate([value] if isinstance(value, str) else value or []):
            inputs[f"{option} {i + 1}" if i else option] = path
    upstream = Path(str(options["frontend_conf"].get("upstream")))
    if upstream.is_dir():
        options["frontend_conf"] = {k: v for k, v in options["frontend_conf"].items() if k != "upstream"}
        for pattern in ("*.json", "*.safetensors", "*.bin"):
            files = (path for path in sorted(upstream.glob(pattern)) if path.name != SOURCE)  # not content
            inputs.update({f"upstream {path.name}": str(path) for path in files})
    for name in list(options):
        if name in NEUTRAL or name.startswith(NEUTRAL_PREFIXES):
            del options[name]
    if not _annealed(args):
        del options["max_epoch"]
    return {
        "settings": _flat(options),
        "inputs": {what: {"file": path, "sha256": _sha256(path)} for what, path in inputs.items()},
    }


def _annealed(args: argparse.Namespace) -> bool:
    mixed = (args.quantize or {}).get("bits") == MIXED
    return args.scheduler == "linearwarmupdecay" or method_of(args.pruning).build.needs_total_steps or mixed


def _changes(before: dict, now: dict) -> list[str]:
    old, new = before["settings"], now["settings"]
    known = {*OWN, *(name.split(".")[0] for name in old)}
    unused = tuple(
        f"pruning.{method}." for method in all_methods() if method != new.get("pruning.method", DEFAULT_METHOD)
    )
    changes = [
        f"{name}: {_shown(old, name)} -> {_shown(new, name)}"
        for name in dict.fromkeys([*old, *new])
        if not name.startswith(unused)
        # an option that is not in the record is one that a newer ESPnet has added
        and old.get(name) != new.get(name)
        and name.split(".")[0] in known
    ]
    for what in dict.fromkeys([*before["inputs"], *now["inputs"]]):
        first, second = before["inputs"].get(what), now["inputs"].get(what)
        if first is None or second is None:
            changes.append(f"{what}: {first['file'] if first else 'none'} -> {second['file'] if second else 'none'}")
        elif first["sha256"] != second["sha256"]:
            same = first["file"] == second["file"]
            changes.append(
                f"{what}: the content of {first['file']} has changed"
                if same
                else f"{what}: {first['file']} -> {second['file']}, with other content"
            )
    return changes


def _shown(settings: dict, name: str) -> str:
    return str(settings[name]) if name in settings else "not set"


def _flat(value, name: str = "") -> dict:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``, with the types that JSON reads back."""
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}" if name else key).items()}
    if isinstance(value, (list, tuple)):
        return {name: [item if isinstance(item, (int, float, str, type(None))) else str(item) for item in value]}
    return {name: value if isinstance(value, (int, float, str, type(None))) else str(value)}


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
