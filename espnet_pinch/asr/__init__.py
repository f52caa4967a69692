"""The ESPnet floor: upstream, frontend, model, task, trainer. Importing ``espnet_pinch.asr.task`` registers them."""

from espnet_pinch.asr.no_download import put_off_g2p

put_off_g2p()  # before anything of ESPnet is imported
