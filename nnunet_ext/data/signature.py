"""On what the things that are kept of a case depend, so that stale ones are noticed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nnunet_ext.data.completeness import nifti_pair
from nnunet_ext.data.preprocessors import SAME_PER_CASE

if TYPE_CHECKING:  # imports torch, which workers that only read scans can do without
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

# Was part of the signature once; it decides the layout on disk, but no voxel.
_WITHOUT_EFFECT = ("patch_size",)
_HEADER_BYTES = 2**16  # of a header with its data in another file, which is short


def plans_signature(plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> dict[str, Any]:
    """Return everything of the plans on which a preprocessed case depends, as JSON values."""
    configuration = configuration_manager.configuration
    signature = {
        "preprocessor": SAME_PER_CASE.get(configuration["preprocessor_name"], configuration["preprocessor_name"]),
        "image_reader_writer": plans_manager.plans["image_reader_writer"],
        "transpose_forward": plans_manager.transpose_forward,
        "foreground_intensity_properties_per_channel": plans_manager.foreground_intensity_properties_per_channel,
        **{
            key: configuration[key]
            for key in (
                "spacing",
                "normalization_schemes",
                "use_mask_for_norm",
                "resampling_fn_data",
                "resampling_fn_data_kwargs",
                "resampling_fn_seg",
                "resampling_fn_seg_kwargs",
            )
        },
    }
    return json.loads(json.dumps(signature, default=float))


def changed_plans(metadata: dict[str, Any], signature: dict[str, Any]) -> list[str] | None:
    """Return which parts of the plans have changed since a case was preprocessed.

    Args:
        metadata: Metadata of the case, with its ``"plans_signature"`` and the digest of that.
        signature: Signature of the plans as they are now, from :func:`plans_signature`.

    Returns:
        Names of the parts, none if the case is as it would be made now; None where the case does not say what made it.
    """
    earlier = metadata.get("plans_signature")
    if not isinstance(earlier, dict) or metadata.get("plans_digest") != digest(earlier):
        return [] if metadata.get("plans_digest") == digest(signature) else None
    earlier = {key: value for key, value in earlier.items() if key not in _WITHOUT_EFFECT}
    return sorted(key for key in earlier.keys() | signature.keys() if earlier.get(key) != signature.get(key))


def source_signature(files: tuple[str, ...]) -> dict[str, Any]:
    """Return path, size (bytes) and modification time (ns) of each file, and of those that are read along with it.

    Raises:
        OSError: If a file cannot be looked at.
    """
    files = (*files, *dict.fromkeys(beside for file in files for beside in _read_along(file)))
    stats = [os.stat(file) for file in files]
    return {
        "files": list(files),
        "size": [s.st_size for s in stats],
        "mtime_ns": [s.st_mtime_ns for s in stats],
    }


def case_source(files: tuple[str, ...], reader_class: type[BaseReaderWriter], channels: int) -> dict[str, Any]:
    """Return everything on which what is found by reading a case depends, as JSON values.

    Args:
        files: Image files of the case, and its label file if there is one.
        reader_class: nnU-Net's reader of the files.
        channels: Channels that dataset.json declares.

    Raises:
        OSError: If a file cannot be looked at.
    """
    return source_signature(files) | {"reader": reader_class.__name__, "channels": channels}


def _read_along(file: str) -> Iterator[str]:
    """Yield the files from which a reader takes the spacing or the voxels of another one, those that are there."""
    candidates: list[str] = []
    stem, ending = os.path.splitext(file)
    if ending.lower() in (".tif", ".tiff"):
        # nnU-Net's reader of 3D TIFF takes the spacing of CASE_0000.tif, and of a label CASE.tif, from CASE.json.
        candidates = [re.sub(r"_\d{4}$", "", stem) + ".json", stem + ".json"]
    elif pair := nifti_pair(file):
        candidates = list(pair)
    elif ending.lower() in (".mhd", ".nhdr"):
        candidates = _named_in_header(file)
    for candidate in dict.fromkeys(candidates):
        if candidate != file and os.path.isfile(candidate):
            yield candidate


def _named_in_header(file: str) -> list[str]:
    """Return the files that a MetaImage or NRRD header names: one, a list, or a pattern of slices."""
    if not os.path.isfile(file):  # a named pipe would be waited for
        return []
    with open(file, "rb") as header:
        text = header.read(_HEADER_BYTES).decode("utf-8", "replace")
    match = re.search(r"^(?:ElementDataFile\s*=|data ?file:)[ \t]*(.*)$", text, re.MULTILINE)
    if match is None:
        return []
    folder, value = os.path.dirname(file), match[1].strip()
    if value.split(" ")[0] == "LIST":
        return [os.path.join(folder, line.strip()) for line in text[match.end() :].splitlines() if line.strip()]
    pattern = re.fullmatch(r"(.*)%(\d*)d(\S*)\s+(\d+)\s+(\d+)\s+(\d+).*", value)
    if pattern is not None:
        before, digits, after, first, last, step = pattern.groups()
        numbers = range(int(first), int(last) + 1, max(1, int(step)))
        return [os.path.join(folder, f"{before}{number:{digits}d}{after}") for number in numbers]
    return [os.path.join(folder, value)]


def digest(signature: dict[str, Any]) -> str:
    """Return a hexadecimal SHA-256 of a signature."""
    return hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()
