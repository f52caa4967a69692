"""The export formats, a file each; ``espnet_pinch.export.format`` finds them."""
