"""Before stage 0: check the settings of a run and say what they come to.

Prints the method, the target sparsity and the upstream (folder, hub id or "mini"), one a line.
"""

import argparse
import importlib.util

import yaml

from espnet_pinch.bin import run_main
from espnet_pinch.core.registry import build_method
from espnet_pinch.core.settings import PinchSettings

PACKAGES = ("espnet2", "torchaudio", "transformers", "soundfile", "kaldiio", "jiwer", "matplotlib", "tensorboard")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.check_config", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML of the run")
    parser.add_argument("--method", help="instead of the YAML's")
    parser.add_argument("--target_sparsity", help="instead of the YAML's")
    args = parser.parse_args()
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise OSError(f"not installed: {', '.join(missing)}; run make venv, or pip install -e . in your environment")
    with open(args.config, encoding="utf-8") as file:
        try:
            config = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{args.config} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict) or "upstream" not in (config.get("frontend_conf") or {}):
        raise ValueError(f"{args.config} has no frontend_conf.upstream")
    block = dict(config.get("pruning") or {})
    if args.method:
        block["method"] = args.method
    if args.target_sparsity:
        try:
            block["target_sparsity"] = float(args.target_sparsity)
        except ValueError:
            raise ValueError(f"--target_sparsity must be a number such as 0.65, not {args.target_sparsity!r}") from None
    try:
        build_method(block)
    except ValueError as error:
        where = "" if args.method or args.target_sparsity else f"{args.config}: "
        raise ValueError(f"{where}{error}") from None
    method = block.get("method", "pinch")
    print(method, block.get("target_sparsity", PinchSettings.target_sparsity) if method != "dense" else 0.0, sep="\n")
    print(config["frontend_conf"]["upstream"])


if __name__ == "__main__":
    run_main(main)
