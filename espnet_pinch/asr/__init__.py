"""The ESPnet floor: upstream, frontend, model, task, trainer. Importing ``espnet_pinch.asr.task`` registers them."""

from espnet_pinch.asr.surroundings import name_torchs_cache, put_off_g2p

# Before anything of ESPnet or transformers is imported.
name_torchs_cache()
put_off_g2p()
