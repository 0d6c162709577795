"""The parts ``TransUNet`` and ``DeepLabV3Plus``: the two networks of the reference module of Pham et al., in 2D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn

from nnunet_ext.trainers._network import NetworkPart
from nnunet_ext.training import architecture, reference_2d
from nnunet_ext.training.checkpoints import plain_module
from nnunet_ext.training.encoder_weights import load_encoder_weights


class Reference2DPart(NetworkPart):
    """What both networks have in common: AdamW, and weights of the encoder from a local file.

    Attributes:
        initial_lr: Learning rate at the beginning, that of the network's own attribute; it falls as nnU-Net's does.
        weight_decay: Of AdamW.
        adam_betas: Decays of AdamW's means of the gradient and of its square.
        weights_setting: Name of the attribute that names the encoder's weights.
        rate_setting: Name of the attribute that has the learning rate, so that each network of a pair can have its own.
    """

    weights_setting: ClassVar[str]
    rate_setting: ClassVar[str]

    def set_defaults(self) -> None:
        """Take the optimiser of the paper, and no weights."""
        super().set_defaults()
        self.initial_lr = getattr(self, self.rate_setting)
        self.weight_decay = 1e-7
        self.adam_betas = (0.937, 0.999)

    def own_optimizer(self) -> torch.optim.Optimizer | None:
        """Return AdamW over the parameters that have a use."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(parameters, self.initial_lr, self.adam_betas, weight_decay=self.weight_decay)

    def refuse_unsupported(self) -> None:
        """Refuse weights that do not fit the encoder, before anything is written."""
        super().refuse_unsupported()
        if not self._encoder_weights():
            return
        manager, configuration = self.plans_manager, self.configuration_manager
        channels = determine_num_input_channels(manager, configuration, self.dataset_json)
        heads = self.label_manager.num_segmentation_heads
        with torch.device("meta"):
            network: Any = self.build_network_architecture(manager, configuration, channels, heads)
        for encoder, setting, file, masks in self._encoder_weights():
            load_encoder_weights(getattr(network, encoder), file, setting, masks)

    def make_network(self, number: int) -> tuple[nn.Module, Any, Any]:
        """Make a network as ever, whose encoders begin with the weights of the files."""
        made = super().make_network(number)
        for encoder, setting, file, masks in self._encoder_weights():
            for change in load_encoder_weights(getattr(plain_module(made[0]), encoder), file, setting, masks):
                self.print_to_log_file(f"{setting}: {change}")
        return made

    def _encoder_weights(self) -> list[tuple[str, str, Any, int]]:
        """Return encoders that begin with a file: attribute of the network, setting, file, and channels beside images.

        Where a training goes on or is validated the files may be gone.
        """
        found = [] if self.is_restored else self.encoder_settings()
        files = [(encoder, setting, getattr(self, setting), beside) for encoder, setting, beside in found]
        return [item for item in files if item[2] is not None]

    def encoder_settings(self) -> tuple[tuple[str, str, int], ...]:
        """Return the encoders of the network.

        Returns:
            For each the network's attribute, the setting that names its weights, and how many channels it takes after
            those of the image.
        """
        return (("encoder", self.weights_setting, 0),)

    def hyperparameters(self) -> dict[str, Any]:
        """Add the settings of AdamW, and whether encoders begin with weights of a file."""
        files = {setting: getattr(self, setting) for _, setting, _ in self.encoder_settings()}
        return super().hyperparameters() | {"adam_betas": self.adam_betas} | files


class TransUNetPart(Reference2DPart):
    """TransUNet in place of the plans' 2D network.

    What shapes the network is a class attribute, changed in a subclass. It is written into the plans beside the model,
    and inference builds from there.

    Attributes:
        transunet_stem_channels: Channels at 1/2.
        transunet_channels: Channels of the encoder at 1/4, 1/8 and 1/16, multiples of four times the groups.
        transunet_blocks: Residual blocks of each of these stages.
        transunet_groups: Groups of the encoder's norms.
        transunet_embed_dim: Channels of the transformer.
        transunet_depth: Layers of the transformer.
        transunet_num_heads: Heads of each layer.
        transunet_mlp_ratio: Channels inside a layer's perceptron, by those of the transformer.
        transunet_dropout: Probability in the transformer.
        transunet_bridge_channels: Channels between transformer and decoder.
        transunet_decoder_channels: Channels of the decoder at 1/8, 1/4, 1/2 and full size.
        transunet_initial_lr: Learning rate of AdamW at the beginning.
        transunet_norm: ``"batch"`` or ``"instance"``; None takes ``"instance"`` where the plans' batch is below 8.
        transunet_weights: File with a state dict of timm's ``vit_base_r50_s16`` that the encoder begins with, ``.pth``
            or ``.safetensors``; None for random weights. Nothing is ever downloaded.
    """

    transunet_stem_channels = 64
    transunet_channels: Sequence[int] = (256, 512, 1024)
    transunet_blocks: Sequence[int] = (3, 4, 9)
    transunet_groups = 32
    transunet_embed_dim = 768
    transunet_depth = 12
    transunet_num_heads = 12
    transunet_mlp_ratio = 4.0
    transunet_dropout = 0.1
    transunet_bridge_channels = 512
    transunet_decoder_channels: Sequence[int] = (256, 128, 64, 16)
    transunet_norm: str | None = None
    transunet_initial_lr = 1e-4
    network_keys = architecture.TRANSUNET_KEYS
    network_architecture = staticmethod(reference_2d.transunet_architecture)
    weights_setting, rate_setting = "transunet_weights", "transunet_initial_lr"

    def set_defaults(self) -> None:
        """Begin with random weights."""
        super().set_defaults()
        self.transunet_weights: str | None = None

    def deep_supervision_scales(self) -> list[list[float]] | None:
        """Return the scales of the decoder's blocks: full size, 1/2, 1/4 and 1/8."""
        return [[scale] * 2 for scale in reference_2d.TRANSUNET_SCALES] if self.enable_deep_supervision else None

    def output_weights(self) -> tuple[float, ...]:
        """Return the weights of the outputs: each block's counts half as much as the next finer one's."""
        scales = reference_2d.TRANSUNET_SCALES
        return reference_2d.scale_weights(scales if self.enable_deep_supervision else scales[:1])

    def default_loss(self) -> nn.Module:
        """Return nnU-Net's loss with the weights of these outputs."""
        return reference_2d.with_weights(super().default_loss(), self.output_weights())


class DeepLabV3PlusPart(Reference2DPart):
    """DeepLabV3+ in place of the plans' 2D network; it has one output, and so no deep supervision.

    What shapes the network is a class attribute, changed in a subclass. It is written into the plans beside the model,
    and inference builds from there.

    Attributes:
        deeplab_encoder: Encoder of segmentation-models-pytorch; ``tu-`` and a name for one of timm.
        deeplab_decoder_channels: Channels of the decoder.
        deeplab_atrous_rates: Dilations of the pyramid's three convolutions.
        deeplab_dropout: Probability after the pyramid.
        deeplab_initial_lr: Learning rate of AdamW at the beginning.
        deeplab_weights: File with a state dict of the encoder as segmentation-models-pytorch has it, ``.pth`` or
            ``.safetensors``, that it begins with; None for random weights. Nothing is ever downloaded.
    """

    deeplab_encoder = "efficientnet-b3"
    deeplab_decoder_channels = 256
    deeplab_atrous_rates: Sequence[int] = (12, 24, 36)
    deeplab_dropout = 0.5
    deeplab_initial_lr = 1e-4
    network_keys = architecture.DEEPLAB_KEYS
    network_architecture = staticmethod(reference_2d.deeplab_architecture)
    weights_setting, rate_setting = "deeplab_weights", "deeplab_initial_lr"

    def set_defaults(self) -> None:
        """Begin with random weights, and supervise the one output."""
        super().set_defaults()
        self.deeplab_weights: str | None = None
        self.enable_deep_supervision = False

    def refuse_unsupported(self) -> None:
        """Refuse deep supervision, and batches of one patch."""
        super().refuse_unsupported()
        reference_2d.refuse_deep_supervision(self)
        reference_2d.refuse_single_patches(self)

    def deep_supervision_scales(self) -> list[list[float]] | None:
        """Return None: there is one output."""
        return None

    def with_shared_batch_norm(self, network: nn.Module) -> nn.Module:
        """Return a network with shared statistics; timm's batch norms hold an activation, which torch would drop."""
        from timm.layers import convert_sync_batchnorm

        shared: nn.Module = convert_sync_batchnorm(network)
        return shared
