"""Converted networks, kept beside the model and tried before they are used."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_ext import files
from nnunet_ext.engines.conversion import convert, copy_for_cpu, save
from nnunet_ext.engines.engine import ConversionError
from nnunet_ext.engines.identity import identity
from nnunet_ext.engines.runtime import openvino
from nnunet_ext.engines.trying import NotTriedError, try_out

_log = logging.getLogger(__name__)


def user_cache() -> Path:
    """Return the user's folder for converted networks: of ``XDG_CACHE_HOME``, ``LOCALAPPDATA``, or ``~/.cache``."""
    variable = "LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / ".cache") / "nnunet_ext" / "engines"


class ConvertedNetworks:
    """A network in OpenVINO's form, with any of its weights.

    Args:
        network: Network of one output; it is left as it is.
        window: Channels and axes of a window, ``(C, *P)``.
        precision: What it will be computed in, ``"float32"`` or ``"bfloat16"``.
        folder: Where they are kept; ``None``, or where it cannot be written, is the user's cache.
    """

    def __init__(self, network: nn.Module, window: Sequence[int], precision: str, folder: Path | None) -> None:
        self.network, self.window, self.precision = network, tuple(window), precision
        self.folders = [*([] if folder is None else [Path(folder)]), user_cache()]

    def key(self, weights: Mapping[str, Any] | None = None) -> str:
        """Return what the converted network with some weights, ``None`` for its own, is named by."""
        return identity(self.network, weights, self.window)

    def model(self, weights: Mapping[str, Any] | None = None, key: str | None = None) -> Any:
        """Return OpenVINO's model with some weights.

        Args:
            weights: State of the network; ``None`` for its own.
            key: What :meth:`key` returns for them, where that is known.

        Raises:
            ConversionError: If the network cannot be converted, or gives another result than in torch.
        """
        key = self.key(weights) if key is None else key
        damaged = []
        for folder in self.folders:
            kept = _Kept(folder, key)
            record = kept.record()
            if record is None:
                continue
            outcome = record.get("failure", record.get("tried", {}).get(_condition(self.precision)))
            if outcome:
                raise ConversionError(f"{outcome} (found out before; remove {kept.json} to try again)")
            model = kept.read(record)
            if model is None:  # a folder that is only read keeps what is damaged; the next one may have it whole
                damaged.append(kept.xml)
                continue
            if outcome is None:
                self._try(kept, record, copy_for_cpu(self.network, weights))
            return model
        for file in damaged:
            _log.warning("%s is damaged; the network is converted again", file)
        return self._convert(key, weights)

    def _convert(self, key: str, weights: Mapping[str, Any] | None) -> Any:
        network = copy_for_cpu(self.network, weights)
        try:
            model = convert(network, self.window)
        except ConversionError as error:
            self._remember(key, str(error))
            raise
        with self._saved(model, key) as kept:
            self._try(kept, {"files": kept.checksums()}, network)
        return model

    @contextlib.contextmanager
    def _saved(self, model: Any, key: str) -> Iterator[_Kept]:
        """Save a model where that is possible; where it is not, it is there for the block alone."""
        for folder in self.folders:
            kept = _Kept(folder, key)
            try:
                kept.write(model)
            except (OSError, RuntimeError) as error:  # OpenVINO raises the latter where it cannot write
                _log.warning("%s cannot hold a converted network (%s)", folder, error)
                continue
            yield kept
            return
        _log.warning("the converted network is not kept, and is converted again for each prediction")
        with tempfile.TemporaryDirectory() as temporary:
            kept = _Kept(Path(temporary), key)
            try:
                kept.write(model)
            except (OSError, RuntimeError) as error:
                raise NotTriedError(f"the converted network cannot be written to be tried ({error})") from error
            yield kept

    def _remember(self, key: str, failure: str) -> None:
        """Note where it can be noted that a conversion fails, so that the next prediction does not try it."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                files.write_json(_Kept(folder, key).json, {"failure": failure})
                return

    def _try(self, kept: _Kept, record: dict[str, Any], network: nn.Module) -> None:
        failure: ConversionError | None = None
        try:
            try_out(kept.xml, network, self.window, self.precision)
        except NotTriedError:
            raise
        except ConversionError as error:
            failure = error
        tried = record.get("tried", {}) | {_condition(self.precision): "" if failure is None else str(failure)}
        with contextlib.suppress(OSError):  # a folder that is only read: it is tried again another time
            files.write_json(kept.json, record | {"tried": tried})
        if failure is not None:
            raise failure


class _Kept:
    """The files of one converted network: ``.bin`` with the weights, ``.xml``, and ``.json`` with what is known."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.xml, self.bin, self.json = (folder / f"openvino_{key}.{ending}" for ending in ("xml", "bin", "json"))

    def record(self) -> dict[str, Any] | None:
        """Return the content of the ``.json`` file; ``None`` where there is none, so that all has to be done anew."""
        try:
            found: dict[str, Any] = files.read_json(self.json)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return found

    def read(self, record: Mapping[str, Any]) -> Any:
        """Return the model if its files are what they were when they were written, otherwise ``None``."""
        expected = record.get("files")
        try:
            # what was checked is what is used, whoever replaces the files meanwhile
            contents = {path.name: path.read_bytes() for path in (self.xml, self.bin)}
        except OSError:
            return None
        if {name: _checksum(content) for name, content in contents.items()} != expected:
            return None
        try:
            return openvino().Core().read_model(contents[self.xml.name], contents[self.bin.name])
        except RuntimeError:
            return None

    def write(self, model: Any) -> None:
        """Write the model, the ``.xml`` file last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.sweep(self.folder)
        with files.whole_files(self.folder, last=lambda file: file.suffix == ".xml") as temporary:
            save(model, temporary / self.xml.name)

    def checksums(self) -> dict[str, str]:
        """Return the checksum of each file of the model."""
        return {path.name: _checksum(path.read_bytes()) for path in (self.xml, self.bin)}


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _condition(precision: str) -> str:
    """Return what the outcome of a trial depends on beside the network: the code that OpenVINO makes for a CPU."""
    core = openvino().Core()
    capabilities = " ".join(sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")))
    return f"{precision} on {core.get_property('CPU', 'FULL_DEVICE_NAME')} ({capabilities})"
