"""The commands of ``espnet-pinch``, one file each: ``add`` puts one on the command line."""
