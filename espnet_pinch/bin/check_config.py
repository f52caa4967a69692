"""Before stage 0: check the settings of a run and say what they come to.

Prints, one a line: the method, the target sparsity, the run that mixed_sparsity takes its layers' sparsities from
(empty for the others), the upstream (folder, hub id, "mini" or "micro"), and unknown_characters.
"""

import argparse
import importlib.util
import os

from espnet_pinch.bin import run_main
from espnet_pinch.config import read_yaml
from espnet_pinch.core.registry import DEFAULT_METHOD, build_method
from espnet_pinch.core.settings import MethodSettings, shown
from espnet_pinch.data.spelling import UnknownCharacters
from espnet_pinch.gpus import check_gpus

PACKAGES = ("espnet2", "torchaudio", "transformers", "soundfile", "kaldiio", "jiwer", "matplotlib", "tensorboard")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.check_config", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML of the run")
    parser.add_argument("--method", help="instead of the YAML's")
    parser.add_argument("--target_sparsity", help="instead of the YAML's")
    parser.add_argument("--unknown_characters", help="instead of the YAML's")
    parser.add_argument("--layer_sparsities", help="mixed_sparsity's, where the YAML has none; {} is the target")
    parser.add_argument("--ngpu", type=int, default=0, help="GPUs that this machine must have")
    parser.add_argument("--gpu_inference", action="store_true", help="this machine must have a GPU to decode on")
    args = parser.parse_args()
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise OSError(f"not installed: {', '.join(missing)}; run make venv, or pip install -e . in your environment")
    check_gpus(args.ngpu, f"--ngpu {args.ngpu}")
    check_gpus(int(args.gpu_inference), "--gpu_inference true")
    config = read_yaml(args.config)
    frontend = config.get("frontend_conf") if isinstance(config, dict) else None
    upstream = frontend.get("upstream") if isinstance(frontend, dict) else None
    if not isinstance(upstream, str) or not upstream or not upstream.isprintable():
        raise ValueError(f"{args.config} has no frontend_conf.upstream: a folder, a hub id or mini")
    unknown = UnknownCharacters(args.unknown_characters or config.get("unknown_characters", UnknownCharacters.policy))
    block = config.get("pruning") or {}
    if not isinstance(block, dict):
        raise ValueError(f"{args.config}: pruning must be a block of settings, not {shown(block)}")
    if args.method:
        block["method"] = args.method
    if args.target_sparsity:
        try:
            block["target_sparsity"] = float(args.target_sparsity)
        except ValueError:
            raise ValueError(f"--target_sparsity must be a number such as 0.65, not {args.target_sparsity!r}") from None
    layer_sparsities = ""
    if block.get("method") == "mixed_sparsity" and not block.get("mixed_sparsity") and args.layer_sparsities:
        target = block.get("target_sparsity", MethodSettings.target_sparsity)
        layer_sparsities = args.layer_sparsities.replace("{}", str(target))
        block["mixed_sparsity"] = {"layer_sparsities": layer_sparsities}
    try:
        build_method(block)
    except (ValueError, FileNotFoundError) as error:
        where = "" if args.method or args.target_sparsity else f"{args.config}: "
        raise ValueError(f"{where}{error}") from None
    method = block.get("method", DEFAULT_METHOD)
    print(method, block.get("target_sparsity", MethodSettings.target_sparsity) if method != "dense" else 0.0, sep="\n")
    print(layer_sparsities, os.path.expanduser(upstream), unknown.policy, sep="\n")


if __name__ == "__main__":
    run_main(main)
