"""Preprocessors of this package, by their names in plans."""

from __future__ import annotations

PREPROCESSOR = "SemiSupervisedPreprocessor"
# Ours treats one case exactly as the stock one does; only the iteration over the cases differs.
SAME_PER_CASE = {PREPROCESSOR: "DefaultPreprocessor"}
OUR_PREPROCESSORS = tuple(SAME_PER_CASE)
