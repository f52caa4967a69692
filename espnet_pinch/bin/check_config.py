"""Before stage 0: check the settings of a run and say what they come to, a "name=value" a line.

``method`` and ``target_sparsity``; ``from_run``, the finished run that the method reads, and ``from_run_setting``, the
setting that names it (both empty where it reads none, or the YAML names it); ``other_source``, the upstream that the
baseline's YAML names (empty where it is the same); ``upstream_name``, the folder that stage 0 puts the upstream into
(empty for a folder); ``upstream_source``, the upstream (absolute folder, hub id, "mini" or "micro");
``unknown_characters``.
"""

import argparse
import importlib.util
import os

from espnet_pinch.bin import run_main
from espnet_pinch.config import read_yaml
from espnet_pinch.core.registry import UNPRUNED, build_method, method_of
from espnet_pinch.core.settings import MethodSettings, shown
from espnet_pinch.data.source import Source, parse_source
from espnet_pinch.data.spelling import UnknownCharacters
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.extras import MODULES
from espnet_pinch.gpus import check_gpus


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.check_config", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML of the run")
    parser.add_argument("--method", help="instead of the YAML's")
    parser.add_argument("--target_sparsity", help="instead of the YAML's")
    parser.add_argument("--unknown_characters", help="instead of the YAML's")
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
    upstream = os.path.expanduser(upstream)
    try:
        source = parse_source(upstream)
    except (UserError, FileNotFoundError) as error:
        if not args.trained:
            raise UserError(f"{args.config}: {error}") from None
        source = Source(upstream, folder=upstream)
    other = _upstream(read_yaml(args.baseline_config)) if args.baseline_config else None
    block = config.get("pruning") or {}
    if not isinstance(block, dict):
        raise UserError(f"{args.config}: pruning must be a block of settings, not {shown(block)}")
    if args.method:
        block["method"] = args.method
    if args.target_sparsity:
        try:
            block["target_sparsity"] = float(args.target_sparsity)
        except ValueError:
            raise UserError(f"--target_sparsity must be a number such as 0.65, not {args.target_sparsity!r}") from None
    target = block.get("target_sparsity", MethodSettings.target_sparsity)
    run = setting = ""
    try:
        method = method_of(block)
        if method.from_run and not block.get(method.name) and args.from_run:
            run, setting = args.from_run.replace("{}", str(target)), f"{method.name}.{method.from_run}"
            block[method.name] = {method.from_run: run}
        build_method(block)
    except (UserError, FileNotFoundError) as error:
        where = "" if args.method or args.target_sparsity else f"{args.config}: "
        raise UserError(f"{where}{error}") from None
    other = "" if other in (None, upstream) else one_line(other)
    found = {
        "method": method.name,
        "target_sparsity": target if method.name != UNPRUNED else 0.0,
        "from_run": run,
        "from_run_setting": setting,
        "other_source": other,
        "upstream_name": "" if source.folder else source.folder_name,
        "upstream_source": os.path.abspath(source.folder) if source.folder else source.name,
        "unknown_characters": unknown.policy,
    }
    print("\n".join(f"{name}={value}" for name, value in found.items()))


def _upstream(config):
    """What a YAML has as frontend_conf.upstream; None where it has none."""
    frontend = config.get("frontend_conf") if isinstance(config, dict) else None
    return frontend.get("upstream") if isinstance(frontend, dict) else None


if __name__ == "__main__":
    run_main(main)
