"""The runtimes, one file each; ``espnet_pinch.inference.runtime`` finds them."""
