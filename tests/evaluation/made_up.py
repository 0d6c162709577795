"""Documents as commands write them, with made-up numbers."""

from typing import Any


def prune_document(gpu: float | None = None) -> dict[str, Any]:
    """Return the content of a prune.json of three depths; ``gpu`` is the peak memory of the GPU in MB."""
    entry = {"dice": 0.9, "iou": 0.8, "precision": None, "recall": 0.7, "classes": {}, "peak_memory_mb": 1500.0}
    depths = {
        str(d): entry | {"parameters": 1000 * d, "seconds": 0.5 * d, "peak_gpu_memory_mb": gpu} for d in (1, 2, 3)
    }
    return {"model": "x/T__P__C", "fold": 0, "cases": ["a"], "tolerance": 0.01, "recommended": 1, "depths": depths}
