"""Import ESPnet's ASR task. What its modules print meanwhile goes to stderr, because stdout is for progress."""

import contextlib
import sys

with contextlib.redirect_stdout(sys.stderr):
    from espnet2.asr.ctc import CTC
    from espnet2.tasks import abs_task
    from espnet2.tasks.asr import ASRTask, frontend_choices, model_choices, preprocessor_choices

__all__ = ["CTC", "ASRTask", "abs_task", "frontend_choices", "model_choices", "preprocessor_choices"]
