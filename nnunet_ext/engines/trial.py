"""Runs a converted network once, in a process of its own: some networks make OpenVINO's compiler crash.

It imports numpy and OpenVINO alone, so that it starts fast.
"""

from __future__ import annotations

import sys
from typing import Any

from nnunet_ext.engines.runtime import openvino


def streams(threads: int) -> int:
    """Return how many windows are computed at once: two need less time than one with all threads, but more memory.

    Args:
        threads: Number of threads of all of them.
    """
    return min(threads, 2)


def properties(precision: str, threads: int) -> dict[str, Any]:
    """Return how OpenVINO compiles a network.

    Args:
        precision: ``"float32"`` or ``"bfloat16"``.
        threads: Number of threads.
    """
    return {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "NUM_STREAMS": streams(threads),
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # several processes, such as parts of a prediction, would share the same cores
    }


def main(arguments: list[str] | None = None) -> int:
    """Run a network on an image and write what comes out.

    Args:
        arguments: The network's file, the image's, the output's (both of numpy), precision, threads.

    Returns:
        0
    """
    import numpy as np

    model, image, output, precision, threads = sys.argv[1:] if arguments is None else arguments
    compiled = openvino().Core().compile_model(model, "CPU", properties(precision, int(threads)))
    np.save(output, compiled(np.load(image))[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
