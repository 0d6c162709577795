"""Reading from a space-time memory, and the aggregation of objects that were segmented apart from one another.

All of it is computed in float32, also under autocast: sums of squares of keys leave the range of float16, and
1 - 1e-7 is 1 there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST = 1e-7  # probability, before it becomes log-odds
_SIMILARITIES_AT_ONCE = 2**24  # 64 MiB, so that a long memory is compared with some queries after the others


def similarity(memory_keys: Tensor, query_keys: Tensor) -> Tensor:
    """Return how close each query is to each element of the memory.

    Cheng et al., "Rethinking space-time networks with improved memory coverage for efficient video object
    segmentation", NeurIPS 2021, section 3.3: ``(2 k.q - |k|^2) / sqrt(CK)``, which is the negative squared distance but
    for a term that is the same for all elements and leaves their softmax as it is.

    Args:
        memory_keys: ``(B, CK, N)``.
        query_keys: ``(B, CK, Q)``.

    Returns:
        ``(B, N, Q)``, float32.
    """
    return _similarity(memory_keys, query_keys).transpose(1, 2)


def read(memory_keys: Tensor, memory_values: Tensor, query_keys: Tensor, top_k: int | None = None) -> Tensor:
    """Return the mean of the values in memory, weighted by the softmax of their similarity to each query.

    Cheng et al. (as in :func:`similarity`), Eq. 1 and 2, with the largest similarity subtracted before the
    exponential. With ``top_k`` the softmax is that of the best elements only, and only their values are read: fastest
    if values of one element lie beside one another, as those of ``values.transpose(-1, 1)`` do.

    Args:
        memory_keys: ``(B, CK, N)``.
        memory_values: ``(B, K, CV, N)``, K objects that share the keys.
        query_keys: ``(B, CK, Q)``.
        top_k: Number of elements to read for each query, all where there are fewer; ``None`` reads all of them.

    Returns:
        ``(B, K, CV, Q)``, of the type of the values.

    Raises:
        ValueError: If the shapes do not fit, the memory is empty, or ``top_k`` is not positive.
    """
    _check(memory_keys, memory_values, query_keys, top_k)
    with _float32(memory_keys):
        if top_k is None:
            affinity = _similarity(memory_keys, query_keys).softmax(2)
            values = memory_values.flatten(1, 2).float()
            return (values @ affinity.transpose(1, 2)).unflatten(1, memory_values.shape[1:3]).to(memory_values.dtype)
        batch, objects, channels, elements = memory_values.shape
        rows = memory_values.permute(0, 3, 1, 2).reshape(batch * elements, objects * channels)
        parts = []
        for best, affinity in _best(memory_keys, query_keys, min(top_k, elements)):
            # weights of all samples at once, so their rows are counted through
            best = best + elements * torch.arange(batch, device=best.device)[:, None, None]
            weights = affinity.flatten(0, 1).to(rows.dtype)
            part = functional.embedding_bag(best.flatten(0, 1), rows, mode="sum", per_sample_weights=weights)
            parts.append(part.view(batch, -1, objects, channels))
        return torch.cat(parts, 1).permute(0, 2, 3, 1)


def aggregate(probabilities: Tensor) -> Tensor:
    """Return the log-odds of background and objects, whose probabilities were found each by itself.

    Oh et al., "Video object segmentation using space-time memory networks", ICCV 2019, section 3.4: background is what
    no object is, ``prod(1 - p)``. The softmax of the result over its axis 1 are the probabilities that sum to 1.

    Args:
        probabilities: ``(B, K, *S)`` of K objects; taken as between 1e-7 and 1 - 1e-7.

    Returns:
        ``(B, K + 1, *S)``, background first, float32.
    """
    with _float32(probabilities):
        objects = probabilities.float()
        background = (1 - objects).prod(1, keepdim=True)
        everything = torch.cat([background, objects], 1).clamp(SMALLEST, 1 - SMALLEST)
        return everything.log() - (-everything).log1p()


def _float32(tensor: Tensor) -> torch.autocast:
    """Return a context without autocast on the device of a tensor; torch's meta device has none to be switched off."""
    return torch.autocast("cpu" if tensor.is_meta else tensor.device.type, enabled=False)


def _similarity(memory_keys: Tensor, query_keys: Tensor) -> Tensor:
    """Return :func:`similarity` as ``(B, Q, N)``: elements of one query beside one another are found faster."""
    with _float32(memory_keys):
        keys, queries = memory_keys.float(), query_keys.float()
        scale = 1 / math.sqrt(keys.shape[1])
        lengths = keys.square().sum(1, keepdim=True) * -scale
        return torch.baddbmm(lengths, queries.transpose(1, 2), keys, alpha=2 * scale)


def _best(memory_keys: Tensor, query_keys: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield indices of the closest elements and their weights, ``(B, q, count)`` each, for some queries at a time."""
    at_once = max(1, _SIMILARITIES_AT_ONCE // (memory_keys.shape[0] * memory_keys.shape[2]))
    for queries in query_keys.split(at_once, 2):
        values, best = _similarity(memory_keys, queries).topk(count, 2)
        yield best, values.softmax(2)


def _check(memory_keys: Tensor, memory_values: Tensor, query_keys: Tensor, top_k: int | None) -> None:
    keys, values, queries = (tuple(tensor.shape) for tensor in (memory_keys, memory_values, query_keys))
    fits = (len(keys), len(values), len(queries)) == (3, 4, 3) and keys[0] == values[0] == queries[0]
    if not fits or keys[1] != queries[1] or keys[2] != values[3]:
        raise ValueError(
            "memory_keys, memory_values and query_keys must have shapes (B, CK, N), (B, K, CV, N) and (B, CK, Q), got "
            f"{keys}, {values} and {queries}"
        )
    if keys[2] < 1:
        raise ValueError("the memory must have at least 1 element to be read, got none; add a reference first")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all elements, got {top_k}")
