"""List the pruning methods for scripts, one per line.

A line has the name, the largest target sparsity, and the method whose run it reads ("-" if it reads none).
"""

import argparse

from espnet_pinch.bin import run_main
from espnet_pinch.core.registry import DEFAULT_METHOD, all_methods


def main() -> None:
    argparse.ArgumentParser(prog="python -m espnet_pinch.bin.list_methods", description=__doc__).parse_args()
    for method in all_methods().values():
        print(method.name, method.most, DEFAULT_METHOD if method.from_run else "-")


if __name__ == "__main__":
    run_main(main)
