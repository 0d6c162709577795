"""Preprocessors of this package, by their names in plans."""

from __future__ import annotations

PREPROCESSOR = "SemiSupervisedPreprocessor"
REFERENCE_PREPROCESSOR = "ReferencePreprocessor"  # appends the position of each slice
# Ours treats one case exactly as the stock one does; only the iteration over the cases differs.
SAME_PER_CASE = {PREPROCESSOR: "DefaultPreprocessor"}
OUR_PREPROCESSORS = (*SAME_PER_CASE, REFERENCE_PREPROCESSOR)
