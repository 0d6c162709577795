"""Patches mixed by boxes: where the boxes lie, and what is put together by them.

CutMix of unlabelled patches: Zhao, Long, Wang, Zhou and Shi, "Rethinking Data Perturbation and Model Stabilization for
Semi-supervised Medical Image Segmentation" (2023, "DPMS"), section 3; the box lies inside the patch and its volume is
uniform, as its area is in Yang, Qi, Feng, Zhang and Shi, "Revisiting Weak-to-Strong Consistency in Semi-Supervised
Semantic Segmentation" (CVPR 2023). Labelled with unlabelled patches: Bai, Chen, Li, Shen and Wang, "Bidirectional
Copy-Paste for Semi-Supervised Medical Image Segmentation" (CVPR 2023), section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from nnunet_ext.training.mean_teacher_step import PseudoLabelled

CPU = torch.device("cpu")
SHAPES = ("box", "slab")


class BoxGenerator:
    """Random numbers of boxes, on the CPU; their state goes into checkpoints, so that a training goes on as it would.

    Args:
        seed: Of the numbers; another one for each process of DDP.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def boxes(
        self,
        size: Sequence[int],
        number: int,
        share: tuple[float, float] = (0.1, 0.4),
        probability: float = 0.8,
        shape: str = "box",
        device: torch.device = CPU,
    ) -> Tensor:
        """Draw boxes for a batch: :func:`draw_boxes`."""
        return draw_boxes(size, number, self.generator, share, probability, shape, device)

    def bcp_box(self, size: Sequence[int], probability: float = 1.0, device: torch.device = CPU) -> Tensor:
        """Draw the one box of a batch: :func:`draw_bcp_box`."""
        return draw_bcp_box(size, self.generator, probability, device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.generator.set_state(state["generator"].cpu())


class BoxMixer:
    """Gives samples of a batch a box of the next one: each call draws new boxes and mixes all that it is given alike.

    Args:
        share: Least and largest share of the volume that a box has.
        probability: Probability that a sample gets a box.
        shape: ``"box"``, or ``"slab"`` for the full extent in all axes but one.
        seed: Seed of the numbers; another one for each process of DDP.
        position: Whether the last channel of images is the position of the slice, which stays that of the sample
            around the box.
    """

    def __init__(
        self, share: tuple[float, float], probability: float, shape: str, seed: int, position: bool = False
    ) -> None:
        _check(share, probability, shape)
        self.share, self.probability, self.shape, self.position = share, probability, shape, position
        self.generator = BoxGenerator(seed)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors ``(B, C, *S)``, each with the same boxes of the next sample, out of place."""
        number, size = len(tensors[0]), tensors[0].shape[2:]
        outside = self.generator.boxes(size, number, self.share, self.probability, self.shape, tensors[0].device)
        return tuple(mix(outside, tensor) for tensor in tensors)

    def mixed(self, learned: Sequence[PseudoLabelled], batch: dict[str, Any]) -> list[PseudoLabelled]:
        """Return unlabelled patches mixed with each other, all by the same boxes; the batch takes no part."""
        names = ("images", "labels", "kept", "valid")
        mixed = iter(self(*(getattr(one, name) for one in learned for name in names)))
        result = [replace(one, **{name: next(mixed) for name in names}) for one in learned]
        if self.position:
            result = [
                replace(new, images=keep_position(new.images, old.images))
                for new, old in zip(result, learned, strict=True)
            ]
        return result

    def reseed(self, seed: int) -> None:
        """Draw from another seed from now on."""
        self.generator = BoxGenerator(seed)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return self.generator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.generator.load_state_dict(state)


def box_sides(size: Sequence[int], share: float) -> tuple[int, ...]:
    """Return the sides of a box of all proportions of the patch, at least 1 voxel each.

    Args:
        size: Size of the patch in voxels.
        share: Share of the patch's volume.
    """
    factor = share ** (1 / len(size))
    return tuple(_side(length, factor) for length in size)


def bcp_sides(size: Sequence[int]) -> tuple[int, ...]:
    """Return the sides of a box of two thirds of each side of the patch, rounded down, at least 1 voxel each."""
    return tuple(max(1, 2 * length // 3) for length in size)


def draw_boxes(
    size: Sequence[int],
    number: int,
    generator: torch.Generator,
    share: tuple[float, float] = (0.1, 0.4),
    probability: float = 0.8,
    shape: str = "box",
    device: torch.device = CPU,
) -> Tensor:
    """Draw one box a sample, somewhere inside the patch.

    Args:
        size: Size of the patch in voxels, two or three axes.
        number: Number of samples, B.
        generator: Random numbers, on the CPU; as many are drawn whatever they are.
        share: Least and largest share of the patch's volume that a box takes; uniform between.
        probability: How often a sample has a box.
        shape: ``"box"``: of the patch's proportions; ``"slab"``: all of the patch along all axes but one, drawn from
            those that are longer than 1.
        device: Where the mask is needed.

    Returns:
        ``(B, 1, *S)`` bool, False inside the box; True everywhere where a sample has none.

    Raises:
        ValueError: If share, probability or shape make no sense.
    """
    _check(share, probability, shape)
    numbers = torch.rand((number, 3 + len(size)), generator=generator, dtype=torch.float64).tolist()
    starts, ends = [], []
    for has_box, of_share, of_axis, *of_corner in numbers:
        volume = share[0] + of_share * (share[1] - share[0])
        sides = box_sides(size, volume) if shape == "box" else _slab(size, volume, of_axis)
        if has_box >= probability:
            sides = (0,) * len(size)
        corner = _corner(size, sides, of_corner)
        starts.append(corner)
        ends.append([start + side for start, side in zip(corner, sides, strict=True)])
    return _outside(size, starts, ends, device)


def draw_bcp_box(
    size: Sequence[int], generator: torch.Generator, probability: float = 1.0, device: torch.device = CPU
) -> Tensor:
    """Draw the one box of a batch, of two thirds of each side, somewhere inside the patch.

    Args:
        size: Size of the patch in voxels.
        generator: Random numbers, on the CPU; as many are drawn whatever they are.
        probability: How often there is a box.
        device: Where the mask is needed.

    Returns:
        ``(1, 1, *S)`` bool, False inside the box; True everywhere where there is none.

    Raises:
        ValueError: If the probability makes no sense.
    """
    _check((1.0, 1.0), probability, "box")
    has_box, *of_corner = torch.rand(1 + len(size), generator=generator, dtype=torch.float64).tolist()
    sides = bcp_sides(size) if has_box < probability else (0,) * len(size)
    corner = _corner(size, sides, of_corner)
    return _outside(size, [corner], [[start + side for start, side in zip(corner, sides, strict=True)]], device)


def mix(outside: Tensor, tensor: Tensor, donors: Tensor | None = None) -> Tensor:
    """Put boxes of other samples into each sample, out of place.

    Images, labels, confidence, kept and valid masks of a batch are all mixed by the same boxes, at full resolution;
    :func:`to_scales` comes after.

    Args:
        outside: ``(B, 1, *S)`` or ``(1, 1, *S)`` bool, False inside the boxes.
        tensor: ``(B, C, *S)`` of any type.
        donors: What lies inside the boxes, like ``tensor``. ``None`` for the next sample of the batch, the first for
            the last; a batch of one has no donor, and stays as it is.
    """
    if donors is None:
        if len(tensor) == 1:
            return tensor
        donors = tensor.roll(-1, 0)
    return torch.where(outside, tensor, donors)


def keep_position(mixed: Tensor, base: Tensor) -> Tensor:
    """Return mixed images with the last channel of others: the position of the slice is not a thing of voxels.

    Args:
        mixed: ``(B, C + 1, *S)``.
        base: Images of the same shape; or their positions alone, ``(B, 1, *S)``.
    """
    return torch.cat([mixed[:, :-1], base[:, -1:]], 1)


def labelled_part(outside: Tensor, number: int, first: int = 0) -> Tensor:
    """Return where mixed patches are labelled, from the box of a batch.

    Patches are inward (labelled outside the box) and outward (labelled inside) by turns. With what is returned,
    ``mix(labelled, labelled_patches, unlabelled_patches)`` makes patches, targets and masks, patch n of one with patch
    n of the other, and :func:`~nnunet_ext.losses.bcp_loss` knows the parts.

    Args:
        outside: ``(1, 1, *S)`` bool, False inside the box.
        number: Number of patches, B.
        first: Direction of the first patch, 0 for inward; the number of the step, so that a batch of one takes turns.

    Returns:
        ``(B, 1, *S)`` bool.
    """
    return outside == is_inward(number, first, outside)


def is_inward(number: int, first: int, like: Tensor) -> Tensor:
    """Return which of the patches of :func:`labelled_part` are labelled outside the box: ``(B, 1, ...)`` bool.

    Args:
        number: Number of patches, B.
        first: Direction of the first patch, 0 for inward.
        like: A tensor with as many axes, on the device in question.
    """
    return (torch.arange(first, first + number, device=like.device) % 2 == 0).reshape(-1, *(1,) * (like.ndim - 1))


def to_scales(tensor: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Bring labels or masks to the scales of deep supervision, by the voxels that nnU-Net takes for its targets.

    Args:
        tensor: ``(B, C, *S)`` of any real type; integers up to 2^24.
        sizes: Size of each scale.

    Returns:
        One tensor a scale, of the same type.
    """
    whole = tuple(tensor.shape[2:])
    return [
        tensor
        if tuple(size) == whole
        else functional.interpolate(tensor.float(), tuple(size), mode="nearest-exact").to(tensor.dtype)
        for size in sizes
    ]


def _check(share: tuple[float, float], probability: float, shape: str) -> None:
    if not 0 < share[0] <= share[1] <= 1:
        raise ValueError(f"the share of a box must lie between 0 and 1, the least one first, got {share}")
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of a box must lie between 0 and 1, got {probability}")
    if shape not in SHAPES:
        raise ValueError(f"the shape of a box must be one of {', '.join(SHAPES)}, got {shape!r}")


def _side(length: int, factor: float) -> int:
    return min(max(math.floor(length * factor + 0.5), 1), length)


def _slab(size: Sequence[int], share: float, of_axis: float) -> tuple[int, ...]:
    axes = [axis for axis, length in enumerate(size) if length > 1] or [0]
    chosen = axes[int(of_axis * len(axes))]
    return tuple(_side(length, share) if axis == chosen else length for axis, length in enumerate(size))


def _corner(size: Sequence[int], sides: Sequence[int], numbers: Sequence[float]) -> list[int]:
    return [int(u * (length - side + 1)) for length, side, u in zip(size, sides, numbers, strict=True)]


def _outside(
    size: Sequence[int], starts: Sequence[Sequence[int]], ends: Sequence[Sequence[int]], device: torch.device
) -> Tensor:
    """Build the mask where it is needed: a few numbers a sample travel, not voxels."""
    limits = torch.tensor([starts, ends]).to(device, non_blocking=True)
    inside = torch.ones((len(starts), 1, *(1,) * len(size)), dtype=torch.bool, device=device)
    for axis, length in enumerate(size):
        index = torch.arange(length, device=device)
        within = (index >= limits[0, :, axis, None]) & (index < limits[1, :, axis, None])
        along = [1] * len(size)
        along[axis] = length
        inside = inside & within.reshape(-1, 1, *along)
    return ~inside
