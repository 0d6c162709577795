"""nnU-Net's ``summary.json`` of one evaluation, case by case, and differences between two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.evaluation.evaluate_predictions import key_to_label_or_region

from nnunet_ext import files
from nnunet_ext.data.classes import Region

RESAMPLES = 10_000
_BOOTSTRAP_SEED = 0


def read_summary(
    file: Path, ending: str, remedy: str = "evaluate the predictions again with nnUNetv2_evaluate_folder"
) -> dict[str, dict[Region, dict[str, float]]]:
    """Return what nnU-Net measured of each class or region of each case.

    Args:
        file: ``summary.json``.
        ending: Of the label files, e.g. ``".nii.gz"``.
        remedy: What to do where it is missing or damaged, for the message.

    Returns:
        Case -> label, or labels of a region -> measure, as nnU-Net calls it (``"Dice"``, ``"n_ref"``) -> value.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is no summary.
    """
    content = files.read_json(file, remedy)
    try:
        return {
            Path(case["prediction_file"]).name.removesuffix(ending): {
                _region(key): {name: float("nan" if value is None else value) for name, value in measures.items()}
                for key, measures in case["metrics"].items()
            }
            for case in content["metric_per_case"]
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is no summary of an evaluation as nnU-Net writes it ({error!r}); {remedy}") from error


def _region(key: str) -> Region:
    value: Any = key_to_label_or_region(key)
    if isinstance(value, tuple):
        return tuple(int(label) for label in value) if len(value) > 1 else int(value[0])
    return int(value)


def paired_bootstrap(differences: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of paired differences with its 95 % percentile bootstrap interval.

    Args:
        differences: Differences, one a case; NaN is left out.

    Returns:
        Mean, lower and upper end; the seed is fixed, so the same input gives the same interval.
    """
    values = differences[~np.isnan(differences)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
