"""ESPnet's ASR task, imported without what its modules print on stdout on the way: stdout is for progress."""

import contextlib
import sys

with contextlib.redirect_stdout(sys.stderr):
    from espnet2.tasks import abs_task
    from espnet2.tasks.asr import ASRTask, frontend_choices, model_choices

__all__ = ["ASRTask", "abs_task", "frontend_choices", "model_choices"]
