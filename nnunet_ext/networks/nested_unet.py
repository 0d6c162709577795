"""ANU-Net: U-Nets of every depth in one, their skips gated by attention, each supervised at full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, cast

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.helper import (
    get_matching_convtransp,
    maybe_convert_scalar_to_list,
)
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_ext.networks._checks import check_image, divisors_of
from nnunet_ext.networks._instance_norm import faster_on_cpu
from nnunet_ext.networks.attention_gate import AttentionGate

AGGREGATIONS = ("concat", "sum")


class NestedAttentionUNet(nn.Module):
    """ANU-Net as nnU-Net's plans configure it, in 2D and 3D.

    Li et al., "ANU-Net: Attention-based nested U-Net to exploit full resolution features for medical image
    segmentation", Computers & Graphics 2020. With L = ``n_stages`` - 1, node X(i, 0) is stage i of nnU-Net's encoder,
    and (Eq. 4)::

        X(i, j) = Phi([Ag(X(i, 0)), ..., Ag(X(i, j - 1)), Up(X(i + 1, j - 1))]),  1 <= j <= L - i

    where Phi are the plans' convolutions, Up is a transposed convolution, and each gate Ag is steered by the upsampled
    map. A 1x1 convolution on each X(0, j) gives an output of full resolution. Output j needs the nodes with
    i' + j' <= j alone, so a network of ``depth`` j is exactly the one that gives output j of the whole.

    Args:
        input_channels: Number of image channels.
        n_stages: Number of resolutions in the plans, L + 1.
        features_per_stage: Number of channels of each level.
        conv_op: Class of the convolutions, ``nn.Conv2d`` or ``nn.Conv3d``.
        kernel_sizes: Size of the convolutions of each level, one number or one an axis.
        strides: Stride into each level; that into level i is also the stride of the transposed convolution out of it.
        n_conv_per_stage: Number of convolutions of each X(i, 0).
        num_classes: Number of channels of each output.
        n_conv_per_stage_decoder: Number of convolutions of the other nodes, lowest level first, as in plans.
        conv_bias: Whether convolutions have a bias.
        norm_op: Class of the normalisation; ``None`` for none.
        norm_op_kwargs: Keyword arguments of each normalisation beside its number of channels.
        dropout_op: Class of the dropout; ``None`` for none.
        dropout_op_kwargs: Keyword arguments of each dropout.
        nonlin: Class of the activation; ``None`` for none.
        nonlin_kwargs: Keyword arguments of each activation.
        deep_supervision: Return all outputs instead of the deepest one.
        aggregation: ``"concat"``, or ``"sum"``: the gated maps are added up before Up is appended, which is cheaper.
        gate_ratio: Number of inner channels of a gate, as a share of the channels of its level.
        gates: Whether skips are gated; without gates the network is a UNet++.
        norm_on_coefficient: Whether gates normalise their coefficient as well, see :class:`AttentionGate`.
        pool: How the encoder downsamples: ``"conv"`` by strided convolutions, as nnU-Net, ``"max"`` as in the paper,
            or ``"avg"``.
        depth: Nodes with i + j <= depth are built, and outputs 1 to depth; ``None`` is L.

    Attributes:
        depth: Depth of the network as built, a number.
        input_channels: Number of image channels.
        divisors: What each axis of an image must be a multiple of.
        checkpointing: In training, keep of each node only its result and compute the rest again in the backward pass.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nnunet_ext.networks import NestedAttentionUNet
        >>> network = NestedAttentionUNet(
        ...     input_channels=1,
        ...     n_stages=3,
        ...     features_per_stage=[4, 8, 16],
        ...     conv_op=nn.Conv2d,
        ...     kernel_sizes=3,
        ...     strides=[1, 2, 2],
        ...     n_conv_per_stage=1,
        ...     num_classes=2,
        ...     n_conv_per_stage_decoder=1,
        ...     nonlin=nn.ReLU,
        ...     deep_supervision=True,
        ... )
        >>> network.divisors
        (4, 4)
        >>> [tuple(logits.shape) for logits in network(torch.randn(1, 1, 16, 24))]
        [(1, 2, 16, 24), (1, 2, 16, 24)]
    """

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: int | Sequence[Any],
        strides: int | Sequence[Any],
        n_conv_per_stage: int | Sequence[int],
        num_classes: int,
        n_conv_per_stage_decoder: int | Sequence[int],
        conv_bias: bool = False,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: dict[str, Any] | None = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: dict[str, Any] | None = None,
        nonlin: type[nn.Module] | None = None,
        nonlin_kwargs: dict[str, Any] | None = None,
        deep_supervision: bool = False,
        aggregation: str = "concat",
        gate_ratio: float = 0.5,
        gates: bool = True,
        norm_on_coefficient: bool = False,
        pool: str = "conv",
        depth: int | None = None,
    ) -> None:
        super().__init__()
        depth = n_stages - 1 if depth is None else depth
        _check_arguments(n_stages, depth, aggregation, gate_ratio, pool)
        levels = depth + 1
        features = _per_level("features_per_stage", features_per_stage, n_stages)[:levels]
        kernels = _per_level("kernel_sizes", kernel_sizes, n_stages)[:levels]
        steps = [
            maybe_convert_scalar_to_list(conv_op, step) for step in _per_level("strides", strides, n_stages)[:levels]
        ]
        encoder_convs = _per_level("n_conv_per_stage", n_conv_per_stage, n_stages)[:levels]
        decoder_convs = _per_level("n_conv_per_stage_decoder", n_conv_per_stage_decoder, n_stages - 1)[::-1][:depth]
        norm = (faster_on_cpu(norm_op), norm_op_kwargs)
        block_arguments = (conv_bias, *norm, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs)
        self.depth, self.input_channels = depth, input_channels
        self.strides, self.divisors = steps, divisors_of(steps)
        self.encoder = PlainConvEncoder(
            input_channels,
            levels,
            features,
            conv_op,
            kernels,
            steps,
            encoder_convs,
            *block_arguments,
            return_skips=True,
            pool=pool,
        )
        self.decoder = _NestedDecoder(
            conv_op,
            features,
            kernels,
            steps,
            decoder_convs,
            num_classes,
            block_arguments,
            deep_supervision,
            (gate_ratio if gates else None, norm_on_coefficient),
            aggregation,
        )

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self.decoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, enabled: bool) -> None:
        self.decoder.checkpointing = enabled

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits.

        Args:
            x: Image ``(B, input_channels, *S)``; each axis of ``S`` a multiple of its entry of ``divisors``.

        Returns:
            ``(B, num_classes, *S)`` of the deepest output; with deep supervision a list of such, the deepest first.

        Raises:
            TypeError: If the image is not of a floating-point type.
            ValueError: If the image does not fit; names the shape that would.
        """
        check_image(x, self.input_channels, self.divisors)
        rows = []
        for stage in self.encoder.stages:
            x = self.decoder.run(stage, x)
            rows.append([x])
        del x  # the decoder lets go of each row once it is used
        return self.decoder.decode(rows)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Return nnU-Net's measure of the size of all feature maps: values that convolutions and gates make."""
        return self.encoder.compute_conv_feature_map_size(input_size) + self.decoder.feature_map_size(input_size)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initialise as nnU-Net does."""
        InitWeights_He(1e-2)(module)


def _check_arguments(n_stages: int, depth: int, aggregation: str, gate_ratio: float, pool: str) -> None:
    if n_stages < 2:
        raise ValueError(f"n_stages must be at least 2, got {n_stages}: there would be nothing to nest")
    if not 1 <= depth <= n_stages - 1:
        raise ValueError(f"depth must lie between 1 and {n_stages - 1} for {n_stages} stages, got {depth}")
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}")
    if gate_ratio <= 0:
        raise ValueError(f"gate_ratio must be above 0, got {gate_ratio}")
    if pool not in ("conv", "max", "avg"):
        raise ValueError(f"pool must be one of conv, max, avg, got {pool!r}")


def _per_level(name: str, value: Any, levels: int) -> list[Any]:
    """Return one entry for each level; a number is that of all."""
    entries = [value] * levels if isinstance(value, int) else list(value)
    if len(entries) != levels:
        raise ValueError(f"{name} must be one number, or one entry for each of {levels} levels, got {value}")
    return entries


class _NestedDecoder(nn.Module):
    """All nodes X(i, j) with j > 0. nnU-Net switches deep supervision by the attribute of that name."""

    def __init__(
        self,
        conv_op: type[nn.Module],
        features: Sequence[int],
        kernels: Sequence[Any],
        strides: Sequence[Sequence[int]],
        convs: Sequence[int],
        num_classes: int,
        block_arguments: tuple[Any, ...],
        deep_supervision: bool,
        gate: tuple[float | None, bool],
        aggregation: str,
    ) -> None:
        super().__init__()
        self.depth = len(features) - 1
        self.features, self.strides = tuple(features), tuple(map(tuple, strides))
        self.deep_supervision = deep_supervision
        self.aggregation = aggregation
        self.checkpointing = False
        conv_bias, norm_op, norm_op_kwargs = block_arguments[:3]
        ratio, norm_on_coefficient = gate
        up_op = get_matching_convtransp(conv_op)
        ups, gates, nodes = {}, {}, {}
        for level, column in self.order():
            width, name = features[level], f"{level}_{column}"
            stride = list(strides[level + 1])
            ups[name] = up_op(features[level + 1], width, stride, stride, bias=conv_bias)
            if ratio is not None:
                inner = max(1, int(ratio * width))
                for skip in range(column):
                    gates[f"{name}_{skip}"] = AttentionGate(
                        width, inner, conv_op, norm_op, norm_op_kwargs, norm_on_coefficient
                    )
            inputs = width * (column + 1 if aggregation == "concat" else 2)
            nodes[name] = StackedConvBlocks(convs[level], conv_op, inputs, width, kernels[level], 1, *block_arguments)
        self.ups, self.gates, self.nodes = nn.ModuleDict(ups), nn.ModuleDict(gates), nn.ModuleDict(nodes)
        # by the name that nnU-Net leaves out of pretrained weights
        self.seg_layers = nn.ModuleList(
            conv_op(features[0], num_classes, 1, bias=True)  # type: ignore[call-arg]
            for _ in range(self.depth)
        )

    def order(self) -> list[tuple[int, int]]:
        """Return the nodes (i, j) with j > 0 in the order of computation, by i + j."""
        return [(total - column, column) for total in range(1, self.depth + 1) for column in range(1, total + 1)]

    def run(self, function: Any, *tensors: Tensor) -> Tensor:
        """Call a function of tensors, with its activations kept or not."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(function, *tensors, use_reentrant=False))
        return cast(Tensor, function(*tensors))

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits; ``skips`` are X(0, 0) to X(L, 0)."""
        return self.decode([[skip] for skip in skips])

    def decode(self, rows: list[list[Tensor]]) -> Tensor | list[Tensor]:
        """Return logits; ``rows`` are [X(i, 0)] for each level i, and are used up."""
        for level, column in self.order():
            rows[level].append(self.run(partial(self.node, level, column), rows[level + 1][column - 1], *rows[level]))
            if level + column == self.depth:
                rows[level + 1].clear()  # nothing more is made from the row below
        if not self.deep_supervision:
            return cast(Tensor, self.seg_layers[-1](rows[0][-1]))
        return [layer(x) for layer, x in zip(reversed(self.seg_layers), rows[0][:0:-1], strict=True)]

    def node(self, level: int, column: int, lower: Tensor, *row: Tensor) -> Tensor:
        """Return X(level, column).

        Args:
            level: Number of the node's level, i.
            column: Number of the node's column, j.
            lower: The node that is upsampled, X(i + 1, j - 1).
            *row: The nodes before it on its level, X(i, 0) to X(i, j - 1).
        """
        name = f"{level}_{column}"
        up = self.ups[name](lower)
        gated = self.gate(name, row, up)
        if self.aggregation == "sum":
            gated = [reduce(torch.add, gated)]
        joined = torch.cat([*gated, up], 1)
        del gated, up  # where no gradient keeps them
        return cast(Tensor, self.nodes[name](joined))

    def gate(self, name: str, row: Sequence[Tensor], up: Tensor) -> list[Tensor]:
        """Return the maps of a row, each through the gate that leads to node ``name``."""
        if not len(self.gates):
            return list(row)
        return [self.gates[f"{name}_{skip}"](features, up) for skip, features in enumerate(row)]

    def feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Return the number of values that the nodes make, for one sample."""
        sizes = [np.array(input_size) // np.prod(self.strides[: level + 1], 0) for level in range(self.depth + 1)]
        voxels = [np.prod(size, dtype=np.int64) for size in sizes]
        total = np.int64(0)
        for level, column in self.order():
            name = f"{level}_{column}"
            values = self.features[level]
            for skip in range(column if len(self.gates) else 0):
                gate: Any = self.gates[f"{name}_{skip}"]
                values += 2 * gate.inner_channels + 1 + self.features[level]
            node: Any = self.nodes[name]
            total += values * voxels[level] + node.compute_conv_feature_map_size(list(sizes[level]))
        heads: Any = self.seg_layers
        return total + sum(head.out_channels for head in heads) * voxels[0]
