"""What every network of the package keeps to: the table of networks, and how one of them is built.

A further network is one more entry in ``NETWORKS``; ``test_network_contract.py`` then tests it as all the others.
"""

import copy
import json
from dataclasses import dataclass, field

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_ext.networks import AttentionGate, InstructiveFeatureEnhancement

IMAGE_CHANNELS, CLASSES = 2, 3
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]
PLANS = {
    "n_stages": 4,
    "conv_bias": True,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


@dataclass(frozen=True)
class Network:
    """An entry of the table.

    Args:
        class_path: The name that plans write.
        arguments: Keyword arguments of the network as plans write them, beside ``PLANS``, in 3D; what has an entry for
            each axis is cut to the last two in 2D.
        size: Axes of an image in 3D that fits; the last two in 2D.
        variants: Further keyword arguments, each of which has to keep the contract on shapes and gradients.
        pickles: Whether it can be pickled as a whole; nnU-Net's residual blocks hold a lambda.
        slow_to_compile: Whether another test, which compiles in the default run, has the same code of this package.
        outputs_at_full_size: Deep supervision is at full resolution; otherwise at that of each level but the lowest.
    """

    class_path: str
    arguments: dict
    size: tuple
    variants: dict = field(default_factory=lambda: {"default": {}})
    pickles: bool = True
    slow_to_compile: bool = False
    outputs_at_full_size: bool = False


NETWORKS = {
    "nested": Network(
        "nnunet_ext.networks.nested_unet.NestedAttentionUNet",
        {
            "features_per_stage": [4, 6, 8, 10],
            "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 1]],
            "n_conv_per_stage": [2, 2, 1, 2],
            "n_conv_per_stage_decoder": [1, 2, 3],  # lowest level first
        },
        (4, 16, 24),
        {
            "default": {},
            "sum": {"aggregation": "sum"},
            "without gates": {"gates": False},
            "max pooling": {"pool": "max"},
        },
        outputs_at_full_size=True,
    ),
    "enhanced plain": Network(
        "nnunet_ext.networks.ife_unet.IFEPlainConvUNet",
        {
            "features_per_stage": [4, 8, 12, 16],
            "kernel_sizes": [[3, 3, 3]] * 4,
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
            "n_conv_per_stage": [2, 2, 2, 2],
            "n_conv_per_stage_decoder": [1, 1, 1],
        },
        (16, 32, 16),
        {"curvature": {"ife_score": "curvature"}, "entropy": {"ife_score": "entropy"}},
    ),
    "enhanced residual": Network(
        "nnunet_ext.networks.ife_unet.IFEResidualEncoderUNet",
        {
            "features_per_stage": [4, 8, 12, 16],
            "kernel_sizes": [[3, 3, 3]] * 4,
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
            "n_blocks_per_stage": [1, 2, 2, 2],
            "n_conv_per_stage_decoder": [1, 1, 1],
        },
        (16, 32, 16),
        {"curvature": {"ife_score": "curvature"}, "entropy": {"ife_score": "entropy"}},
        pickles=False,
        slow_to_compile=True,
    ),
    "reference": Network(
        "nnunet_ext.networks.reference_unet.ReferenceUNet",
        {
            "features_per_stage": [4, 8, 12],
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
            "n_conv_per_stage": [2, 2, 2],
            "n_conv_per_stage_decoder": [1, 1],
            "n_stages": 3,
            "windows": [[-150, 250], [-1350, 225], [-500, 1300]],
            "hounsfield_channels": [1],
        },
        (8, 16, 16),
        {"windows": {}, "no windows": {"windows": None}},
        slow_to_compile=True,
    ),
}

EACH = pytest.mark.parametrize("name", NETWORKS)
EACH_COMPILED = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if entry.slow_to_compile else name for name, entry in NETWORKS.items()],
)
EACH_DIMENSION = pytest.mark.parametrize("dimensions", [2, 3])
EACH_VARIANT = pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name, network in NETWORKS.items() for variant in network.variants]
)


def arguments(name, dimensions=3, **more):
    """Keyword arguments as they stand in plans."""
    written = copy.deepcopy(NETWORKS[name].arguments)
    for key in ("kernel_sizes", "strides"):
        written[key] = [axes[-dimensions:] for axes in written[key]]
    return {
        **PLANS,
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        **written,
        **more,
    }


def build(name, dimensions=3, deep_supervision=True, seed=0, class_path=None, **more):
    """Build a network as nnU-Net does, from plans that went through JSON; ``class_path`` is another class."""
    written = json.loads(json.dumps(arguments(name, dimensions, **more)))
    torch.manual_seed(seed)
    path = class_path or NETWORKS[name].class_path
    return get_network_from_plans(path, written, IMPORTED, IMAGE_CHANNELS, CLASSES, deep_supervision=deep_supervision)


def image(name, dimensions=3, batch=2, seed=1):
    shape = (batch, IMAGE_CHANNELS, *NETWORKS[name].size[-dimensions:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def strides(name, dimensions=3):
    return arguments(name, dimensions)["strides"]


def divisors(name, dimensions=3):
    """What each axis of an image has to be a multiple of."""
    return tuple(int(n) for n in torch.tensor(strides(name, dimensions)).prod(0))


def output_shapes(name, dimensions=3, batch=2):
    """Shapes of all outputs, the first one is that without deep supervision."""
    size, shapes = torch.tensor(NETWORKS[name].size[-dimensions:]), []
    for stride in strides(name, dimensions)[:-1]:
        size = size if NETWORKS[name].outputs_at_full_size else size // torch.tensor(stride)
        shapes.append((batch, CLASSES, *size.tolist()))
    return shapes


def biases_before_norms(network, x):
    """Biases of convolutions whose output goes into a norm, which takes any constant away again."""
    seen, biases = {}, set()

    def note(module, inputs, output):
        if "Norm" in type(module).__name__ and id(inputs[0]) in seen:
            biases.add(seen[id(inputs[0])][0].bias)
        seen[id(output)] = (module, output)  # kept, so that no other tensor gets its id

    hooks = [module.register_forward_hook(note) for module in network.modules() if not list(module.children())]
    network(x)
    for hook in hooks:
        hook.remove()
    return biases - {None}


def feature_map_size(network, x):
    """Values that convolutions, gates and enhancements make of one image, counted as they are made."""
    made = []

    def note(module, inputs, output):
        made.append(output[0].numel() - (inputs[0][0].numel() if appends(module) else 0))

    def appends(module):
        return isinstance(module, InstructiveFeatureEnhancement)

    convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    hooks = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, (*convolutions, AttentionGate)) or appends(module)
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return sum(made)


def outputs_of(network, x):
    """All outputs as a list, without gradients."""
    with torch.no_grad():
        outputs = network(x)
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
