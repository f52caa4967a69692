"""Train with ESPnet's asr_train and the pruning task that ``--task`` names. Takes ESPnet's options and the task's."""

from espnet_pinch.asr.task import task_of_options
from espnet_pinch.bin import run_main


def main(cmd=None) -> None:
    task_of_options(cmd).main(cmd=cmd)


if __name__ == "__main__":
    run_main(main)
