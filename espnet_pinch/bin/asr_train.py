"""Train with ESPnet's asr_train and the pruning task. Takes ESPnet's options and those of ``PruningASRTask``."""

from espnet_pinch.asr.task import PruningASRTask
from espnet_pinch.bin import run_main


def main(cmd=None) -> None:
    PruningASRTask.main(cmd=cmd)


if __name__ == "__main__":
    run_main(main)
