"""The export formats, one file each; ``espnet_pinch.export.format`` finds them."""
