"""Unlabelled cases: where they lie, how they are preprocessed, the two-stream loader."""
