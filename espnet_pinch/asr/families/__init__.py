"""The families of upstreams, one file each; ``espnet_pinch.asr.family`` finds them."""
