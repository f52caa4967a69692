"""The families of upstreams, a file each; ``espnet_pinch.asr.family`` finds them."""
