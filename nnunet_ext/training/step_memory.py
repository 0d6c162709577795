"""How much memory a training step takes, found by running it on tensors that have shapes and no values."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_ext.data.slice_triples import FRAMES, OBJECTS, rounded_up
from nnunet_ext.losses import ohem_cross_entropy
from nnunet_ext.networks.reference_unet import channels_given
from nnunet_ext.training.cps_step import CPSStep
from nnunet_ext.training.criteria import CrossPseudoCriterion, deep_supervision_weights
from nnunet_ext.training.pair_scales import TargetChoice

GIB = 2**30
SGD, ADAMW = "SGD", "AdamW"
Architecture = dict[str, Any] | Callable[[], nn.Module]
Sizes = list[tuple[int, ...]]


class PeakOfStorages(TorchDispatchMode):
    """Follows the storages that operations make, and remembers the most bytes that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return result

    def count(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, once; one that was there before is to be told."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def begin_step(self) -> None:
        """Forget the peak so far; what building the networks left in circles of references does not count."""
        gc.collect()
        self.peak = self.now

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


class _StepWithoutReport(CPSStep):
    """Tensors without values cannot be copied to the host."""

    def _report(self, *_: Any) -> dict[str, Any]:
        return {}


def cps_step_memory(
    architecture: Architecture,
    patch_size: Sequence[int],
    batch_size: int,
    input_channels: int,
    output_channels: int,
    regions: bool = False,
    half_precision: bool = True,
    second: Architecture | None = None,
    optimizers: tuple[str, str] = (SGD, SGD),
) -> int:
    """Return the most bytes that a step of cross pseudo supervision has allocated at once.

    Both networks, gradients, momentum, activations of both graphs, and the losses, for ``batch_size`` labelled and as
    many unlabelled patches, without torch.compile. Not in it: cuDNN's workspaces, the CUDA context, and what the
    allocator loses between blocks.

    Args:
        architecture: Architecture as in plans: ``network_class_name``, ``arch_kwargs``, ``_kw_requires_import``; or
            what makes one network.
        patch_size: Size of a patch in voxels.
        batch_size: Labelled patches a step.
        input_channels: Image channels, as nnU-Net counts them.
        output_channels: Output channels of the network.
        regions: Whether there are overlapping regions instead of exclusive classes.
        half_precision: Whether to train in mixed precision, as nnU-Net trains on GPUs.
        second: Architecture of network 2; ``None`` for that of network 1.
        optimizers: Optimiser of each network, ``"SGD"`` with momentum or ``"AdamW"``.
    """
    with FakeTensorMode(), PeakOfStorages() as memory:
        networks, steppers, batch, choices = _prepared(
            (architecture, architecture if second is None else second),
            optimizers,
            patch_size,
            batch_size,
            input_channels,
            output_channels,
            regions,
        )
        batch["unlabeled"] = torch.empty_like(batch["data"])
        batch["valid"] = torch.empty((2 * batch_size, 1, *patch_size), dtype=torch.uint8)
        targets = (_choice(choices[0], batch["target"]), _choice(choices[1], batch["target"]))
        weights = [_weights(choice.of(batch["target"])) for choice in targets]
        # The networks on shapes alone are not part of the step.
        memory.begin_step()
        step = _StepWithoutReport(
            networks=(networks[0], networks[1]),
            optimizers=(steppers[0], steppers[1]),
            supervised=supervised_loss(len(weights[0]), regions, weights[0]),
            cross_pseudo=CrossPseudoCriterion(weights[0], regions, False, False),
            autocast=lambda: _autocast(half_precision),
            device=torch.device("cpu"),
            number_of_outputs=output_channels,
            regions=regions,
            supervised_2=supervised_loss(len(weights[1]), regions, weights[1]),
            cross_pseudo_2=CrossPseudoCriterion(weights[1], regions, False, False),
            targets=targets,
        )
        step(batch, 0.5)
        return memory.peak


def supervised_step_memory(
    architecture: Architecture,
    patch_size: Sequence[int],
    batch_size: int,
    input_channels: int,
    output_channels: int,
    regions: bool = False,
    half_precision: bool = True,
    make_loss: Callable[[int], nn.Module] | None = None,
    optimizer_name: str = SGD,
) -> int:
    """Return the most bytes that nnU-Net's own training step has allocated at once.

    The network, gradients, momentum, activations and the loss, without torch.compile; what is not in it and the
    arguments are those of :func:`cps_step_memory`, but for ``make_loss``: makes the loss of lists of outputs and
    targets from the number of outputs, ``None`` for nnU-Net's; and ``optimizer_name``, ``"SGD"`` or ``"AdamW"``.
    """
    with FakeTensorMode(), PeakOfStorages() as memory:
        (network,), (optimizer,), batch, _ = _prepared(
            (architecture,), (optimizer_name,), patch_size, batch_size, input_channels, output_channels, regions
        )
        memory.begin_step()
        outputs = len(batch["target"])
        loss = supervised_loss(outputs, regions, _weights(batch["target"])) if make_loss is None else make_loss(outputs)
        optimizer.zero_grad(set_to_none=True)
        with _autocast(half_precision):
            value = loss(network(batch["data"]), batch["target"])
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        return memory.peak


def propagation_step_memory(
    make: Callable[[], Any], patch_size: Sequence[int], triples: int, half_precision: bool = True
) -> int:
    """Return the most bytes that a step of mask propagation has allocated at once.

    The network, gradients, AdamW, activations of three slices with two objects, and the cross-entropy; what is not in
    it is said at :func:`cps_step_memory`, and the Lovasz loss is not, whose course depends on values.

    Args:
        make: Makes the network.
        patch_size: Size of a patch in pixels, rounded up as the loader does.
        triples: Triples of slices a step.
        half_precision: Whether to train in mixed precision, as nnU-Net trains on GPUs.
    """
    with FakeTensorMode(), PeakOfStorages() as memory:
        network = make()
        optimizer = _with_momentum(network, ADAMW)
        size = rounded_up(patch_size)
        frames = torch.empty((triples, FRAMES, network.input_channels, *size))
        masks = torch.empty((triples, OBJECTS, *size))
        present = torch.ones((triples, OBJECTS), dtype=torch.bool)
        target = torch.zeros((triples * (FRAMES - 1), *size), dtype=torch.long)
        memory.begin_step()
        with _autocast(half_precision):
            log_odds = network(frames, masks, present)
        ohem_cross_entropy(log_odds.flatten(0, 1), target).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        return memory.peak


def optimizer_of(cls: type) -> str:
    """Return the name of the optimiser that a class of trainers trains its network with, as far as it is one of ours.

    Args:
        cls: Class of a trainer, of ours or not.
    """
    kind = getattr(getattr(cls, "own_optimizer", None), "__qualname__", "ExtPart.own_optimizer")
    return SGD if kind == "ExtPart.own_optimizer" else ADAMW


def _prepared(
    architectures: Sequence[Architecture],
    optimizers: Sequence[str],
    patch_size: Sequence[int],
    batch_size: int,
    input_channels: int,
    output_channels: int,
    regions: bool,
) -> tuple[list[nn.Module], list[torch.optim.Optimizer], dict[str, Any], list[Sizes]]:
    """Return networks, their optimisers with momentum, a labelled batch, and the sizes of each network's outputs."""
    networks = [_network(architecture, input_channels, output_channels) for architecture in architectures]
    steppers = [_with_momentum(network, name) for network, name in zip(networks, optimizers, strict=True)]
    data = torch.empty((batch_size, channels_given(networks[0], input_channels), *patch_size))
    sizes: list[Sizes] = []
    for number, network in enumerate(networks):
        with torch.no_grad():
            outputs = network(data)
        if isinstance(outputs, Tensor):  # a network without deep supervision
            networks[number], outputs = _AsList(network), [outputs]
        sizes.append([tuple(output.shape[2:]) for output in outputs])
    shapes = list(sizes[0])
    shapes += [size for other in sizes[1:] for size in other if size not in shapes]
    channels = output_channels if regions else 1
    target = [torch.empty((batch_size, channels, *shape)) for shape in shapes]
    return networks, steppers, {"data": data, "target": target}, sizes


def _network(architecture: Architecture, input_channels: int, output_channels: int) -> nn.Module:
    """Build a network with deep supervision."""
    if callable(architecture):
        return architecture()
    network: nn.Module = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        input_channels,
        output_channels,
        allow_init=False,
        deep_supervision=True,
    )
    return network


def _with_momentum(network: nn.Module, name: str) -> torch.optim.Optimizer:
    """Return an optimiser as it is from the second step on."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if name == ADAMW:
        return _AdamW(trained)
    optimizer = torch.optim.SGD(trained, 1e-2, momentum=0.99, nesterov=True)
    for parameter in trained:
        optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
    return optimizer


class _AdamW(torch.optim.Optimizer):
    """What torch's AdamW keeps and makes; that itself counts its steps by values, which are not there."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {})
        for parameter in parameters:
            self.state[parameter] = {name: torch.empty_like(parameter) for name in ("mean", "square")}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter, state in self.state.items():
            if parameter.grad is not None:
                state["mean"].lerp_(parameter.grad, 0.1)
                state["square"].mul_(0.9).addcmul_(parameter.grad, parameter.grad, value=0.1)
                parameter.addcdiv_(state["mean"], state["square"].sqrt().add_(1e-8))


def _choice(sizes: Sizes, target: list[Tensor]) -> TargetChoice:
    """Return which of the label maps a network learns; equal sizes are those of one network, in its order."""
    shapes = [tuple(one.shape[2:]) for one in target]
    if shapes[: len(sizes)] == list(sizes):
        return TargetChoice(tuple(range(len(sizes))))
    return TargetChoice(tuple(shapes.index(size) for size in sizes))


def _autocast(half_precision: bool) -> contextlib.AbstractContextManager:
    # On the CPU too this makes what autocast makes on a GPU: convolutions, norms and activations in 16 bit.
    return torch.autocast("cpu", torch.bfloat16) if half_precision else contextlib.nullcontext()


def _weights(target: Sequence[Tensor]) -> tuple[float, ...]:
    """Return nnU-Net's weights of the outputs; outputs of one size are all alike."""
    sizes = [one.shape for one in target]
    equal = len(sizes) > 1 and len(set(sizes)) == 1
    return (1 / len(sizes),) * len(sizes) if equal else deep_supervision_weights(len(sizes))


def supervised_loss(outputs: int, regions: bool, weights: Sequence[float] | None = None) -> nn.Module:
    """Return nnU-Net's loss for deep supervision, on float32 logits, as a training on a GPU has it."""
    dice = {"batch_dice": False, "smooth": 1e-5, "ddp": False}
    loss: nn.Module
    if regions:
        loss = DC_and_BCE_loss({}, dice | {"do_bg": True}, dice_class=MemoryEfficientSoftDiceLoss)
    else:
        loss = DC_and_CE_loss(dice | {"do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss)
    return _InFloat32(DeepSupervisionWrapper(loss, weights or deep_supervision_weights(outputs)))


class _AsList(nn.Module):
    """One output as a list of outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, data: Tensor) -> list[Tensor]:
        return [self.network(data)]


class _InFloat32(nn.Module):
    """Autocast on GPUs computes softmax and cross-entropy in float32, autocast on CPUs does not."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: list[Tensor], target: list[Tensor]) -> Tensor:
        return self.loss([output.float() for output in outputs], target)
