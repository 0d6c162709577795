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
        dimensions: Of the images that it takes.
        divisor: What each axis must be a multiple of, for a network without nnU-Net's strides (and ``PLANS``).
        scales: What each axis of each output is divided by, for such a network.
        has_parameters_without_use: Whether encoders of others keep some that nothing reads; they want no gradient.
    """

    class_path: str
    arguments: dict
    size: tuple
    variants: dict = field(default_factory=lambda: {"default": {}})
    pickles: bool = True
    slow_to_compile: bool = False
    outputs_at_full_size: bool = False
    dimensions: tuple = (2, 3)
    divisor: int | None = None
    scales: tuple = ()
    has_parameters_without_use: bool = False


WINDOWS = {"windows": [[-150, 250], [-1350, 225], [-500, 1300]], "hounsfield_channels": [0]}
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
    "transunet": Network(
        "nnunet_ext.networks.transunet.TransUNet",
        {
            "patch_size": [32, 48],
            "stem_channels": 8,
            "channels": [16, 16, 32],
            "blocks": [1, 1, 2],
            "groups": 4,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 2,
            "dropout": 0.0,
            "bridge_channels": 12,
            "decoder_channels": [10, 8, 6, 4],
            "norm": "instance",
        },
        (32, 48),
        {"default": {}, "batch": {"norm": "batch"}, "other table": {"patch_size": [64, 32]}, "windows": WINDOWS},
        dimensions=(2,),
        divisor=16,
        scales=(1, 2, 4, 8),
    ),
    "deeplab": Network(
        "nnunet_ext.networks.deeplab.DeepLabV3Plus",
        {"encoder_name": "tu-test_efficientnet", "decoder_channels": 8, "atrous_rates": [1, 2, 3], "dropout": 0.0},
        (32, 48),
        {"default": {}, "another encoder": {"encoder_name": "efficientnet-b0"}, "windows": WINDOWS},
        dimensions=(2,),
        divisor=16,
        scales=(1,),
        has_parameters_without_use=True,
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
EACH_IN_EACH_DIMENSION = pytest.mark.parametrize(
    ("name", "dimensions"), [(name, d) for name, network in NETWORKS.items() for d in network.dimensions]
)
EACH_VARIANT_IN_EACH_DIMENSION = pytest.mark.parametrize(
    ("name", "variant", "dimensions"),
    [
        (name, variant, d)
        for name, network in NETWORKS.items()
        for variant in network.variants
        for d in network.dimensions
    ],
)


def has_plans(name):
    """Whether a network takes what nnU-Net's own take."""
    return NETWORKS[name].divisor is None


def most(name):
    """The most dimensions of a network."""
    return max(NETWORKS[name].dimensions)


def arguments(name, dimensions=None, **more):
    """Keyword arguments as they stand in plans."""
    written, dimensions = copy.deepcopy(NETWORKS[name].arguments), dimensions or most(name)
    if not has_plans(name):
        return written | more
    for key in ("kernel_sizes", "strides"):
        written[key] = [axes[-dimensions:] for axes in written[key]]
    return {
        **PLANS,
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        **written,
        **more,
    }


def build(name, dimensions=None, deep_supervision=True, seed=0, class_path=None, **more):
    """Build a network as nnU-Net does, from plans that went through JSON; ``class_path`` is another class."""
    written = json.loads(json.dumps(arguments(name, dimensions, **more)))
    torch.manual_seed(seed)
    path = class_path or NETWORKS[name].class_path
    imported = IMPORTED if has_plans(name) else []
    return get_network_from_plans(path, written, imported, IMAGE_CHANNELS, CLASSES, deep_supervision=deep_supervision)


def image(name, dimensions=None, batch=2, seed=1):
    shape = (batch, IMAGE_CHANNELS, *NETWORKS[name].size[-(dimensions or most(name)) :])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def strides(name, dimensions):
    return arguments(name, dimensions)["strides"]


def divisors(name, dimensions):
    """What each axis of an image has to be a multiple of."""
    if not has_plans(name):
        return (NETWORKS[name].divisor,) * dimensions
    return tuple(int(n) for n in torch.tensor(strides(name, dimensions)).prod(0))


def output_shapes(name, dimensions, batch=2):
    """Shapes of all outputs, the first one is that without deep supervision."""
    if not has_plans(name):
        size = NETWORKS[name].size[-dimensions:]
        return [(batch, CLASSES, *(length // scale for length in size)) for scale in NETWORKS[name].scales]
    size, shapes = torch.tensor(NETWORKS[name].size[-dimensions:]), []
    for stride in strides(name, dimensions)[:-1]:
        size = size if NETWORKS[name].outputs_at_full_size else size // torch.tensor(stride)
        shapes.append((batch, CLASSES, *size.tolist()))
    return shapes


def biases_before_norms(network, x):
    """Biases of convolutions whose output goes into a norm, which takes any constant away again."""
    seen, biases = {}, set()

    def note(module, inputs, output):
        if isinstance(module, (nn.modules.instancenorm._InstanceNorm, nn.BatchNorm2d)) and id(inputs[0]) in seen:
            biases.add(getattr(seen[id(inputs[0])][0], "bias", None))
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


def as_list(outputs):
    """All outputs as a list."""
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def outputs_of(network, x):
    """All outputs as a list, without gradients."""
    with torch.no_grad():
        return as_list(network(x))
