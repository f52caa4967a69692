"""The heads, one file each; ``espnet_pinch.asr.head`` finds them."""
