"""Whether a converted network gives what the network gives in torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import nnunet_ext
from nnunet_ext.engines.conversion import window_of_noise
from nnunet_ext.engines.engine import FLOAT32, ConversionError

_KILLED = 9  # signal, which not every system has a name for
_SECONDS = 1800  # in which a window ends on any machine
# bfloat16 has 8 bits, and a window of noise has no clear winners; a network whose rounded values choose other channels
# is off by more than this
_ERROR = {"float32": 1e-2, "bfloat16": 0.1}
_OTHER_WINNERS = 1e-3  # in float32


class NotTriedError(ConversionError):
    """A trial had no outcome, for reasons that may be other ones the next time."""


def try_out(xml: Path, network: nn.Module, window: Sequence[int], precision: str) -> None:
    """Run a converted network on one window, in a process of its own, and compare with torch.

    Args:
        xml: File of the converted network.
        network: What it was made of, on the CPU.
        window: Channels and axes of a window, ``(C, *P)``.
        precision: ``"float32"`` or ``"bfloat16"``.

    Raises:
        NotTriedError: If the trial is killed, or does not end.
        ConversionError: If OpenVINO fails or crashes, or the results differ.
    """
    image = window_of_noise(window)
    with tempfile.TemporaryDirectory() as temporary:
        given, output, errors = (Path(temporary) / name for name in ("image.npy", "logits.npy", "errors.txt"))
        np.save(given, image.numpy())
        arguments = [str(xml), str(given), str(output), precision, str(torch.get_num_threads())]
        # from where this package is, which may not be installed
        paths = [str(Path(nnunet_ext.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        with errors.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "nnunet_ext.engines.trial", *arguments],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
            )
            try:
                with torch.inference_mode(False), torch.no_grad():
                    expected = network(image)
                code = process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                raise NotTriedError(f"OpenVINO did not end with one window in {_SECONDS // 60} minutes") from None
            finally:
                process.kill()
                process.wait()
        if code == -_KILLED:  # as where memory runs out
            raise NotTriedError("OpenVINO was killed while it tried the network")
        if code:
            raise ConversionError(_describe(code, errors))
        compare(torch.from_numpy(np.load(output)), expected, precision)


def compare(logits: Tensor, expected: Tensor, precision: str) -> None:
    """Raise where a converted network does not give what it should.

    Args:
        logits: What it gives, ``(N, K, *P)``.
        expected: What torch gives in float32.
        precision: What the logits were computed in.

    Raises:
        ConversionError: If the shapes or the values differ; says by how much.
    """
    if logits.shape != expected.shape:
        raise ConversionError(f"OpenVINO gives {list(logits.shape)} where torch gives {list(expected.shape)}")
    error = float((logits - expected).norm() / expected.norm().clamp_min(1e-12))
    others = float((logits.argmax(1) != expected.argmax(1)).float().mean())
    # written so that values that are not finite are refused
    if not error <= _ERROR[precision] or (precision == FLOAT32 and others > _OTHER_WINNERS):
        raise ConversionError(
            f"OpenVINO in {precision} gives another result than torch for noise (relative error {error:.2g}, "
            f"another class in {100 * others:.2g} % of the voxels)"
        )


def _describe(code: int, errors: Path) -> str:
    if code < 0:
        return f"OpenVINO crashes with the network (signal {-code})"
    lines = [line.strip() for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    return (
        f"OpenVINO fails with the network: {lines[-1]:.300}" if lines else f"OpenVINO fails with the network ({code})"
    )
