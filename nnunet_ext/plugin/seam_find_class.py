"""Planners, preprocessors and normalisations by name: stock nnU-Net's own search first, then a table of ours."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from nnunet_ext.plugin import compat

# Which of our classes answers where: the package stock searches -> class name -> module:attribute.
CLASSES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        compat.PLANNING_MODULE: MappingProxyType(
            {
                "GlobalIntensityFingerprintExtractor": (
                    "nnunet_ext.planners.global_fingerprint:GlobalIntensityFingerprintExtractor"
                ),
                "ANUNetPlanner": "nnunet_ext.planners.anu_net:ANUNetPlanner",
                "ReferencePlanner": "nnunet_ext.planners.reference:ReferencePlanner",
                **{
                    name: f"nnunet_ext.planners.semi_supervised:{name}"
                    for name in (
                        "SemiSupervisedPlanner",
                        "SemiSupervisedPlannerResEncM",
                        "SemiSupervisedPlannerResEncL",
                        "SemiSupervisedPlannerResEncXL",
                    )
                },
            }
        ),
        compat.PREPROCESSING_MODULE: MappingProxyType(
            {
                "SemiSupervisedPreprocessor": "nnunet_ext.planners.preprocessor:SemiSupervisedPreprocessor",
                "ReferencePreprocessor": "nnunet_ext.planners.reference_preprocessor:ReferencePreprocessor",
            }
        ),
        compat.NORMALIZATION_MODULE: MappingProxyType(
            {"HounsfieldNormalization": "nnunet_ext.data.hounsfield:HounsfieldNormalization"}
        ),
    }
)
# Whatever begins like this and is not found was meant to be one of ours; stock ends in "'NoneType' is not callable".
_BEGINNINGS = ("globalintensity", "semisupervised", "anunet", "referencep")


def install(module: ModuleType) -> None:
    """Extend ``recursive_find_python_class`` of ``nnunetv2.utilities.find_class_by_name``.

    Args:
        module: Module to extend, executed and not copied from yet.

    Raises:
        SeamError: If the function does not look as expected.
    """
    compat.replace(module, [compat.FIND_CLASS], _with_ours)


def _with_ours(original: Callable[..., Any]) -> Callable[..., Any]:
    def find(folder: str, class_name: str, current_module: str | None, *args: Any, **kwargs: Any) -> Any:
        stock = original(folder, class_name, current_module, *args, **kwargs)
        ours = CLASSES.get(current_module or "", {})
        if stock is not None:
            return stock
        if class_name not in ours:
            elsewhere = any(class_name in table for table in CLASSES.values())
            if ours and not elsewhere and class_name.lower().startswith(_BEGINNINGS):
                raise ValueError(_unknown(class_name, sorted(ours)))
            return None
        module, attribute = ours[class_name].split(":")
        return getattr(importlib.import_module(module), attribute)

    return find


def _unknown(class_name: str, ours: list[str]) -> str:
    lower = {name.lower(): name for name in ours}
    nearest = lower[difflib.get_close_matches(class_name.lower(), lower, 1, 0.0)[0]]
    return f"there is no {class_name!r}, did you mean {nearest}? nnunet_ext has {', '.join(ours)}"
