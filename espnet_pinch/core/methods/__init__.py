"""The pruning methods, one file each; ``espnet_pinch.core.registry`` finds them."""
