"""Before stage 0: check the settings of a run and print what they come to, one "name=value" a line.

``method``; ``target_sparsity`` or ``target_macs``, the other one empty, of several "_" between; ``parts``, the targets
of a run that has several, empty otherwise; ``unit`` and ``conv``, empty if the method has no such setting; ``bits``, as
the run's folder names them, empty without any; ``pruning_options``, asr_train's options for all this; ``from_run``, the
finished run that the method reads, and ``from_run_setting``, the setting that names it (both empty if it reads none, or
the YAML names it); ``other_source``, the upstream that the baseline's YAML names (empty if it is the same);
``upstream_name``, the folder that stage 0 puts the upstream into (empty for a folder); ``upstream_source``, the
upstream (absolute folder, hub id, "mini" or "micro"; with a language if one is named); ``unknown_characters``;
``text``, the names of the steps over the transcripts.
"""

import argparse
import importlib.util
import os

import yaml

from espnet_pinch.bin import run_main
from espnet_pinch.config import read_yaml
from espnet_pinch.core.mixed_bits import build_quantization
from espnet_pinch.core.registry import UNPRUNED, build_method, method_of
from espnet_pinch.core.settings import MethodSettings, shown
from espnet_pinch.data.source import Source, parse_source
from espnet_pinch.data.spelling import UnknownCharacters
from espnet_pinch.data.text_steps import TextSteps
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.extras import MODULES
from espnet_pinch.gpus import check_gpus

NO_BITS = "none"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.check_config", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML of the run")
    parser.add_argument("--method", help="instead of the YAML's")
    parser.add_argument("--target_sparsity", help="instead of the YAML's target")
    parser.add_argument("--target_macs", help="instead of the YAML's target")
    parser.add_argument("--unit", help="the method's unit, instead of the YAML's")
    parser.add_argument("--conv", help="the method's conv (true or false), instead of the YAML's")
    parser.add_argument("--bits", help="of quantised weights, instead of the YAML's; none: not quantised")
    parser.add_argument("--average_bits", help="of mixed bits, instead of the YAML's")
    parser.add_argument("--unknown_characters", help="instead of the YAML's")
    parser.add_argument("--text", help="instead of the YAML's")
    parser.add_argument("--from_run", help="the finished run for a method that reads one; {} is the target")
    parser.add_argument("--ngpu", type=int, default=0, help="GPUs that this machine must have")
    parser.add_argument("--gpu_inference", action="store_true", help="this machine must have a GPU to decode on")
    parser.add_argument("--baseline_config", help="YAML of the baseline")
    parser.add_argument("--trained", action="store_true", help="the upstream is not needed any more")
    args = parser.parse_args()
    for name in MODULES["asr"]:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(name=name)  # before hours of work, not after
    check_gpus(args.ngpu, f"--ngpu {args.ngpu}")
    check_gpus(int(args.gpu_inference), "--gpu_inference true")
    config = read_yaml(args.config)
    upstream = _upstream(config)
    if not isinstance(upstream, str) or not upstream or not upstream.isprintable():
        raise UserError(f"{args.config} has no frontend_conf.upstream: a folder, a hub id or mini")
    unknown = UnknownCharacters(args.unknown_characters or config.get("unknown_characters", UnknownCharacters.policy))
    steps = TextSteps(config.get("text") if args.text is None else args.text)
    upstream = os.path.expanduser(upstream)
    try:
        source = parse_source(upstream)
    except (UserError, FileNotFoundError) as error:
        if not args.trained:
            raise UserError(f"{args.config}: {error}") from None
        source = Source(upstream, folder=upstream)
    other = _upstream(read_yaml(args.baseline_config)) if args.baseline_config else None
    for name in ("pruning", "quantize"):
        if not isinstance(config.get(name), dict | None):
            raise UserError(f"{args.config}: {name} must be a block of settings, not {shown(config[name])}")
    block = config.get("pruning") or {}
    if args.method:
        block["method"] = args.method
    given = {name: getattr(args, name) for name in ("target_sparsity", "target_macs") if getattr(args, name)}
    if given:
        block.update(target_sparsity=None, target_macs=None)
    for name, value in given.items():
        try:
            numbers = [float(number) for number in value.replace(",", " ").split()]
        except ValueError:
            raise UserError(f"--{name} must be a number such as 0.65, or several, not {value!r}") from None
        block[name] = numbers[0] if len(numbers) == 1 else numbers
    if block.get("target_macs") is not None:
        block.setdefault("target_sparsity", None)
    target = block.get("target_sparsity", MethodSettings.target_sparsity)
    run = setting = ""
    options = []
    try:
        method = method_of(block)
        for name in ("unit", "conv"):
            if value := getattr(args, name):
                if name not in method.own_settings:
                    raise UserError(f"--{name}: {method.name} has no setting of that name")
                block[method.name] = {**(block.get(method.name) or {}), name: _value(name, value)}
                options.append(f"{method.name}.{name}={value}")
        if method.from_run and not block.get(method.name) and args.from_run:
            run, setting = args.from_run.replace("{}", str(target)), f"{method.name}.{method.from_run}"
            block[method.name] = {method.from_run: run}
        built = build_method(block)
        quantize = _quantize(config.get("quantize") or {}, args.bits, args.average_bits)
    except (UserError, FileNotFoundError) as error:
        own = args.method or given or args.unit or args.conv or args.bits or args.average_bits
        where = "" if own else f"{args.config}: "
        raise UserError(f"{where}{error}") from None
    targets, macs = [str(target) for target in built.targets], built.settings.target_macs is not None
    if method.name == UNPRUNED:
        targets = ["0.0"]
    given_as = yaml.safe_dump([*map(float, targets)], default_flow_style=True, width=10**6).strip().replace(" ", "")
    if len(targets) == 1:
        given_as = given_as.strip("[]")
    named = [f"method={method.name}", f"target_sparsity={'null' if macs else given_as}"]
    named += [f"target_macs={given_as}"] if macs else []
    other = "" if other in (None, upstream) else one_line(other)
    found = {
        "method": method.name,
        "target_sparsity": "" if macs else "_".join(targets),
        "target_macs": "_".join(targets) if macs else "",
        "parts": " ".join(targets) if len(targets) > 1 else "",
        "pruning_options": " ".join(
            [f"--pruning {option}" for option in [*named, *options]]
            + [f"--quantize {name}={'null' if value is None else value}" for name, value in quantize.items()]
        ),
        "unit": getattr(built.settings, "unit", ""),
        "conv": str(getattr(built.settings, "conv", "")).lower(),
        "bits": _bits(quantize),
        "from_run": run,
        "from_run_setting": setting,
        "other_source": other,
        "upstream_name": source.folder_name,
        "upstream_source": source.place,
        "unknown_characters": unknown.policy,
        "text": " ".join(steps.names),
    }
    print("\n".join(f"{name}={value}" for name, value in found.items()))


def _quantize(block: dict, bits: str | None, average: str | None) -> dict:
    """The quantize: block of a run.

    Args:
        block: the YAML's.
        bits, average: what is given instead of the YAML's; bits "none" for a run without the YAML's block.

    Raises:
        UserError: as ``build_quantization``.
    """
    given = {"average_bits": None, "bits": None if bits == NO_BITS else _value("bits", bits)} if bits else {}
    given |= {"average_bits": _value("average_bits", average)} if average else {}
    block = block | given
    build_quantization(block)
    return block


def _bits(quantize: dict) -> str:
    """What a quantize: block adds to the name of a run."""
    built = build_quantization(quantize)
    return built.settings.name if built else ""


def _value(name: str, text: str):
    """The value of an option, as the YAML would have it; raises UserError if YAML cannot read it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--{name}: {shown(text)} is no value") from None


def _upstream(config):
    """What a YAML has as frontend_conf.upstream; None where it has none."""
    frontend = config.get("frontend_conf") if isinstance(config, dict) else None
    return frontend.get("upstream") if isinstance(frontend, dict) else None


if __name__ == "__main__":
    run_main(main)
