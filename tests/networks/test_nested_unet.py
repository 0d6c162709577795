"""ANU-Net and its gate, beyond what test_network_contract.py asks of every network."""

from functools import partial

import pytest
import torch
from networks import contract
from reference.architecture import architecture as unet
from torch import nn

from nnunet_ext.losses import HybridLoss
from nnunet_ext.networks import AttentionGate, NestedAttentionUNet
from nnunet_ext.training import architecture as architectures
from nnunet_ext.training.nesting import nested_step_memory

build = partial(contract.build, "nested")
image = partial(contract.image, "nested")

PAPER = {"conv_bias": True, "nonlin": nn.ReLU, "nonlin_kwargs": {"inplace": True}, "pool": "max"}
NORM = {"norm_op": nn.BatchNorm2d, "norm_on_coefficient": True}


def paper(depth, channels=1, **more):
    """The network of the paper: 32 to 512 channels, max pooling, batch norm."""
    features = [32, 64, 128, 256, 512]
    return NestedAttentionUNet(
        channels, 5, features, nn.Conv2d, 3, [1, 2, 2, 2, 2], 2, 1, 2, **(PAPER | NORM | more), depth=depth
    )


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        ({}, (102612, 520286, 2244993, 9203264)),
        ({"gate_ratio": 1.0}, (103748, 528014, 2281601, 9357472)),
        ({"aggregation": "sum"}, (102612, 511070, 2180481, 8889920)),
        ({"aggregation": "sum", "gate_ratio": 1.0}, (103748, 518798, 2217089, 9044128)),
        ({"channels": 3}, (103188, 520862, 2245569, 9203840)),
        ({"channels": 3, "aggregation": "sum"}, (103188, 511646, 2181057, 8890496)),
        ({"gates": False}, (101473, 512546, 2208355, 9048996)),
        ({"gates": False, "norm_op": None}, (100961, 511138, 2205027, 9041700)),
    ],
)
def test_number_of_parameters(more, counts):
    with torch.device("meta"):
        assert tuple(parameters(paper(depth, **more)) for depth in (1, 2, 3, 4)) == counts


@pytest.mark.parametrize(
    ("channels", "half", "whole"), [(32, 1139, 2275), (64, 4323, 8643), (128, 16835, 33667), (256, 66435, 132867)]
)
def test_number_of_parameters_of_a_gate(channels, half, whole):
    norm = {"norm_op": nn.BatchNorm2d, "norm_on_coefficient": True}
    assert parameters(AttentionGate(channels, **norm)) == half
    assert parameters(AttentionGate(channels, channels, **norm)) == whole
    without = parameters(AttentionGate(channels, norm_op=nn.BatchNorm2d))
    assert half - without == 2


@pytest.mark.parametrize("conv", [nn.Conv2d, nn.Conv3d])
def test_a_gate_by_hand(conv):
    gate = AttentionGate(1, conv_op=conv)
    for name, parameter in gate.named_parameters():
        nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
    shape = (1, 1, 4) + (1,) * (1 if conv is nn.Conv2d else 2)
    features, gating = (torch.tensor(v).reshape(shape) for v in ([1.0, -2.0, 0.5, 3.0], [0.0, 1.0, -1.0, 2.0]))
    expected = torch.tensor([0.731059, 0.5, 0.5, 0.993307])
    torch.testing.assert_close(gate.coefficients(features, gating).flatten(), expected, rtol=0, atol=1e-6)
    expected = torch.tensor([0.731059, -1.0, 0.25, 2.979922])
    torch.testing.assert_close(gate(features, gating).flatten(), expected, rtol=0, atol=1e-5)


def test_one_coefficient_for_all_channels():
    gate = AttentionGate(6, norm_op=nn.InstanceNorm2d)
    features, gating = torch.randn(2, 2, 6, 5, 4).unbind()
    alpha = gate.coefficients(features, gating)
    assert alpha.shape == (2, 1, 5, 4)
    assert 0 < alpha.min() <= alpha.max() < 1
    assert torch.equal(gate(features, gating), alpha * features)
    assert AttentionGate(1).inner_channels == 1


def test_nodes_are_wired_as_in_the_paper():
    """Each node gets its gated row and the upsampled node below it, in this order."""
    network, seen = build(2), {}
    for name, node in network.decoder.nodes.items():
        node.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    x = image(2)
    skips = network.encoder(x)
    outputs = network(x)
    made = {f"{level}_0": skip for level, skip in enumerate(skips)} | {name: one for name, (_, one) in seen.items()}
    assert set(seen) == {"0_1", "0_2", "0_3", "1_1", "1_2", "2_1"}
    convolutions = {name: len(node.convs) for name, node in network.decoder.nodes.items()}
    assert convolutions == {"0_1": 3, "0_2": 3, "0_3": 3, "1_1": 2, "1_2": 2, "2_1": 1}
    for name, (inputs, _) in seen.items():
        level, column = map(int, name.split("_"))
        up = network.decoder.ups[name](made[f"{level + 1}_{column - 1}"])
        row = [network.decoder.gates[f"{name}_{k}"](made[f"{level}_{k}"], up) for k in range(column)]
        torch.testing.assert_close(inputs, torch.cat([*row, up], 1))
    for column, output in zip((3, 2, 1), outputs, strict=True):
        torch.testing.assert_close(network.decoder.seg_layers[column - 1](made[f"0_{column}"]), output)


def test_gates_can_close():
    """With all gates closed only what comes from below is left, the deepest encoder stage."""
    network = build(2, deep_supervision=False)
    for gate in network.decoder.gates.values():
        nn.init.zeros_(gate.coefficient[0].weight)
        nn.init.constant_(gate.coefficient[0].bias, -100.0)
    x = image(2)
    skips = network.encoder(x)
    before = network(x)
    other = [torch.randn_like(skip) for skip in skips[:-1]] + [skips[-1]]
    torch.testing.assert_close(network.decoder(other), before)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("more", [{}, {"aggregation": "sum"}, {"gates": False}])
def test_a_cut_network_gives_the_outputs_of_the_whole_one(dimensions, more):
    whole = build(dimensions, **more).eval()
    x = image(dimensions)
    with torch.no_grad():
        outputs, weights = whole(x), whole.state_dict()
        for depth in (1, 2, 3):
            cut = build(dimensions, **more, depth=depth, seed=5).eval()
            keys = cut.state_dict().keys()
            assert keys <= weights.keys()
            cut.load_state_dict({key: weights[key] for key in keys})
            for one, other in zip(cut(x), outputs[3 - depth :], strict=True):
                assert torch.equal(one, other)
            cut.decoder.deep_supervision = False
            assert torch.equal(cut(x), outputs[3 - depth])
            assert max(int(name[0]) + int(name[2]) for name in cut.decoder.nodes) == depth


@pytest.mark.parametrize("dimensions", [2, 3])
def test_checkpointing_changes_nothing_but_memory(dimensions):
    x, gradients = image(dimensions), []
    for checkpointing in (False, True):
        network = build(dimensions)
        network.checkpointing = checkpointing
        assert network.decoder.checkpointing == checkpointing
        outputs = network(x)
        sum(output.square().sum() for output in outputs).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_compiles_with_checkpointing():
    network = build(2, depth=2)
    network.checkpointing = True
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for one, other in zip(compiled(image(2)), network(image(2)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_inductor_trains_the_same_with_checkpointing():
    gradients = []
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    for wrap in (lambda network: network, torch.compile):
        network = build(2)
        network.checkpointing = True
        outputs = wrap(network)(image(2))
        sum(output.square().mean() for output in outputs).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_half_precision_on_a_gpu_with_checkpointing():
    network = build().cuda()
    network.checkpointing = True
    scaler = torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", torch.float16):
        outputs = network(image().cuda())
    scaler.scale(sum(output.float().square().mean() for output in outputs)).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


@pytest.mark.gpu
def test_the_estimated_memory_is_what_a_gpu_allocates():
    nested = {"network_class_name": "nnunet_ext.networks.nested_unet.NestedAttentionUNet"}
    architecture = unet(3, [16, 32, 64, 128], 2, 2) | nested
    estimate = nested_step_memory(architecture, (64, 64, 64), 2, 1, 3)
    network = architectures.build(architecture, 1, 3, True).cuda()
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True)
    data = torch.randn(2, 1, 64, 64, 64, device="cuda")
    target = torch.randint(0, 3, (2, 1, 64, 64, 64), device="cuda")
    loss = HybridLoss()
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.float16):
            value = sum(loss(output, target) for output in network(data)) / 3
        value.backward()
        optimizer.step()
    # cuDNN's workspaces are not in the estimate
    assert torch.cuda.max_memory_allocated() == pytest.approx(estimate, rel=0.25)


def test_size_of_the_feature_maps():
    network = build(2, features_per_stage=[2, 2, 2, 2], n_conv_per_stage=[1] * 4, n_conv_per_stage_decoder=[1] * 3)
    full, half, quarter, lowest = 16 * 24, 8 * 12, 4 * 6, 2 * 6
    encoder = 2 * (full + half + quarter + lowest)
    # a node: upsampled 2, its convolution 2, each gate 1 + 1 + 1 and the gated map 2; heads 3 times 3
    nodes = {full: (1, 2, 3), half: (1, 2), quarter: (1,)}
    decoder = sum(voxels * (4 + 5 * column) for voxels, columns in nodes.items() for column in columns)
    assert network.compute_conv_feature_map_size((16, 24)) == encoder + decoder + 9 * full


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"depth": 0}, "depth must lie between 1 and 3 for 4 stages, got 0"),
        ({"depth": 4}, "depth must lie between 1 and 3 for 4 stages, got 4"),
        ({"aggregation": "mean"}, "aggregation must be one of concat, sum, got 'mean'"),
        ({"gate_ratio": 0}, "gate_ratio must be above 0, got 0"),
        ({"pool": "median"}, "pool must be one of conv, max, avg, got 'median'"),
        ({"n_stages": 1}, "n_stages must be at least 2, got 1"),
        ({"strides": [1, 2]}, r"strides must be one number, or one entry for each of 4 levels, got \[1, 2\]"),
        ({"n_conv_per_stage_decoder": [2] * 4}, "n_conv_per_stage_decoder must be .* each of 3 levels, got"),
    ],
)
def test_bad_arguments(more, message):
    with pytest.raises(ValueError, match=message):
        build(**more)


def test_a_gate_says_what_does_not_fit():
    gate, features = AttentionGate(4), torch.zeros(2, 4, 6, 5)
    with pytest.raises(ValueError, match=r"features must have shape \(B, 4, H, W\), got \(2, 4, 6, 5, 1\)"):
        gate(features[..., None], features[..., None])
    with pytest.raises(ValueError, match=r"features must have 4 channels, got shape \(2, 3, 6, 5\)"):
        gate(features[:, :3], features[:, :3])
    with pytest.raises(ValueError, match=r"shape of features, \(2, 4, 6, 5\), got \(2, 4, 3, 5\); upsample"):
        gate(features, features[:, :, :3])
    with pytest.raises(ValueError, match="channels and inner_channels must be at least 1, got 4 and 0"):
        AttentionGate(4, 0)


def test_a_shallow_network_asks_for_less():
    assert build(2, depth=1)(torch.zeros(1, 2, 14, 22))[0].shape == (1, 3, 14, 22)
