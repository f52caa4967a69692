"""Training and decoding with ESPnet: upstream, frontend, model, task, trainer.

Importing ``espnet_pinch.asr.task`` registers the frontend, the model and the scheduler with ESPnet.
"""

from espnet_pinch.asr.surroundings import leave_out_type_checks, name_torchs_cache, put_off_g2p

# These calls must come before any import of ESPnet or transformers.
name_torchs_cache()
put_off_g2p()
leave_out_type_checks()
