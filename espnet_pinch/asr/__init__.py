"""The ESPnet floor: upstream, frontend, model, task, trainer. Importing ``espnet_pinch.asr.task`` registers them."""
