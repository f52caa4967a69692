"""The pruning methods, a file each; ``espnet_pinch.core.registry`` finds them."""
