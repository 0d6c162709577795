"""The command ``nnUNetv2_ext``."""
