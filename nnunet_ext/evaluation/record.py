"""``profile.json``: measures of a profile so far, and the versions and files they were made with, written whole."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_ext import files
from nnunet_ext.evaluation.settings import NAME
from nnunet_ext.evaluation.usage import gpu_name

FILE, PICTURE = "profile.json", "profile.png"
_PACKAGES = ("nnunetv2-ext", "nnunetv2", "torch", "monai")
_EXTRAS = ("openvino",)  # named where they are installed
# Where one of these differs, times and memories do not compare; paths may be written in another way.
_SAME = ("versions", "device", "inputs")
_SAME_OPTIONS = ("folds", "checkpoint", "device", "npp", "nps")


class ProfileRecord:
    """The measures of a profile folder.

    Args:
        output: Folder of the profile, with its predictions and logs.
        made_with: ``versions``, ``device``, ``options``, ``inputs`` and ``cases`` of this run, as JSON values.
        overwrite: Whether to begin anew, and remove what an earlier profile left in the folder.

    Raises:
        FileExistsError: If the folder holds something else, or a profile made with something else, without
            ``overwrite``.
    """

    def __init__(self, output: Path, made_with: Mapping[str, Any], overwrite: bool = False) -> None:
        self.output = output
        self.file = output / FILE
        files.sweep(output)
        earlier = self._earlier(overwrite)
        if earlier and overwrite:
            for name in earlier.get("settings", {}):
                self.remove_outputs(name)
            earlier = {}
        if earlier:
            _check_same(earlier, made_with, self.output)
        self.document: dict[str, Any] = {**made_with, "settings": earlier.get("settings", {})}

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Entries by the name of the setting."""
        return self.document["settings"]

    def order(self, names: Sequence[str]) -> None:
        """Let these settings come first, in this order."""
        ordered = {name: self.settings[name] for name in names if name in self.settings}
        self.document["settings"] = {**ordered, **{k: v for k, v in self.settings.items() if k not in ordered}}

    def is_measured(self, name: str, command: Sequence[str]) -> bool:
        """Whether a setting was run to its end by this very command."""
        entry = self.settings.get(name, {})
        return "measured" in entry and entry.get("command") == list(command)

    def claim(self, name: str, entry: dict[str, Any]) -> None:
        """Remove what an earlier run of a setting left, and record that its folder is the profile's from now on.

        Raises:
            FileExistsError: If the folder of the setting is there, and none of an earlier run.
        """
        if name in self.settings:
            self.remove_outputs(name)
        elif (self.output / name).exists():
            raise FileExistsError(
                f"{self.output / name} is there and is none of this profile, expected it to be free for the setting "
                f"{name}; move it, or name another place with -o"
            )
        self.settings[name] = entry | {"error": "it was interrupted; run the same command again"}
        self.save()

    def remove_outputs(self, name: str) -> None:
        """Remove the predictions and the log of a setting."""
        if not NAME.fullmatch(name):  # from a file that somebody may have written
            raise ValueError(
                f"{self.file} has a setting named {name!r}, expected the name of a folder; remove the file"
            )
        files.remove(self.output / name)
        (self.output / f"{name}.log").unlink(missing_ok=True)

    def save(self) -> None:
        """Write the file; it is either the old or the new one, whatever happens."""
        files.write_json(self.file, without_nan(self.document), indent=1, allow_nan=False)

    def _earlier(self, overwrite: bool) -> dict[str, Any]:
        if self.output.exists() and not self.output.is_dir():
            raise FileExistsError(f"{self.output} is a file, expected a folder or nothing; name another place with -o")
        if not self.file.is_file():
            if self.output.is_dir() and any(self.output.iterdir()) and not overwrite:
                raise FileExistsError(
                    f"{self.output} is not empty and has no {FILE}, expected an empty or new folder, or one of an "
                    "earlier profile; name another place with -o, or pass --overwrite to write among what is there"
                )
            return {}
        try:
            document = json.loads(self.file.read_text(encoding="utf-8"))
        except ValueError as error:
            if overwrite:
                return {}
            raise FileExistsError(f"{self.file} is no JSON ({error}); pass --overwrite to begin anew") from error
        if not _is_ours(document):
            raise FileExistsError(
                f"{self.file} was not written by nnUNetv2_ext profile; name another place with -o, or remove it by hand"
            )
        return document


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which measures depend."""
    by_package = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            by_package[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a bare source tree
            by_package[name] = "unknown"
    for name in _EXTRAS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            by_package[name] = metadata.version(name)
    return by_package


def hardware(device: str) -> dict[str, Any]:
    """Return the processor, its number of cores and the GPU of this machine.

    Args:
        device: Device as given to nnU-Net; the GPU is named for ``cuda`` only.
    """
    return {"processor": _processor(), "cores": os.cpu_count(), "gpu": gpu_name() if device == "cuda" else None}


def without_nan(value: Any) -> Any:
    """Return JSON values in which None takes the place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_ours(document: object) -> bool:
    """Whether a profile.json names settings as this module writes them; what it names may be cleared."""
    settings = document.get("settings") if isinstance(document, dict) else None
    return isinstance(settings, dict) and all(
        isinstance(entry, dict) and {"flags", "command"} <= entry.keys() for entry in settings.values()
    )


def _check_same(earlier: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    before, after = earlier.get("options") or {}, now["options"]
    different = [(name, before.get(name), after[name]) for name in _SAME_OPTIONS if before.get(name) != after[name]]
    for key in _SAME:
        before, after = earlier.get(key) or {}, now[key]
        names = dict.fromkeys((*after, *before))
        different += [(n, before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)]
    if different:
        name, old, new = different[0]
        detail = "the files changed" if name in now["inputs"] else f"{old!r}, now {new!r}"
        more = f", and {', '.join(name for name, _, _ in different[1:])}" if different[1:] else ""
        raise FileExistsError(
            f"{output} holds a profile that does not compare with this one: {name} differs ({detail}){more}; name "
            "another place with -o, or pass --overwrite to begin anew"
        )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
