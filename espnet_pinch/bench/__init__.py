"""Size, speed, memory and word error rate of any CTC models, side by side: ``espnet-pinch bench``."""
