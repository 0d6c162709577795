"""Classes that plans name: nnU-Net imports and calls whatever stands there, so it is looked at first."""

from __future__ import annotations

import contextlib
import inspect
import os
import pydoc
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from torch import nn

TRUST_VARIABLE = "nnUNet_ext_trust_weights"
STOCK_PACKAGE = "dynamic_network_architectures"  # where nnU-Net's networks are
_PACKAGES = ("torch.nn", STOCK_PACKAGE, "nnunet_ext.networks")
_FUNCTIONS = "torch.nn.functional"
_trusting: ContextVar[bool] = ContextVar("nnunet_ext_trusting", default=False)


def trusted_by_environment() -> bool:
    """Whether the user says by ``nnUNet_ext_trust_weights=1`` that code in weights and plans may run."""
    return os.environ.get(TRUST_VARIABLE, "").strip().lower() in ("1", "true")


@contextlib.contextmanager
def trusting(trusted: bool = True) -> Iterator[None]:
    """Let plans name any class within the block, because the user said that the model is to be trusted."""
    token = _trusting.set(trusted or _trusting.get())
    try:
        yield
    finally:
        _trusting.reset(token)


def check_classes(architecture: dict[str, Any], remedy: str = f"set {TRUST_VARIABLE}=1") -> None:
    """Refuse an architecture of plans that names anything but networks and their layers; nothing else is imported.

    Args:
        architecture: Architecture as in plans.
        remedy: How a user says that the plans are to be trusted, for the message.

    Raises:
        ValueError: If it names something else; says where.
    """
    if _trusting.get() or trusted_by_environment():
        return
    named = {"network_class_name": architecture["network_class_name"]}
    kwargs = architecture["arch_kwargs"]
    named |= {key: kwargs[key] for key in architecture["_kw_requires_import"] if kwargs.get(key) is not None}
    for key, name in named.items():
        if not _is_within(name, _PACKAGES) or not _is_layer(name):
            raise ValueError(
                f"the plans name {name!r:.100} as {key}, expected a network or a layer of {', '.join(_PACKAGES)}; "
                f"correct plans.json or, if you trust whoever made it, {remedy}"
            )


def _is_within(name: Any, packages: tuple[str, ...]) -> bool:
    return isinstance(name, str) and name.startswith(tuple(f"{package}." for package in packages))


def _is_layer(name: str) -> bool:
    """Whether a name leads to a layer: attributes of modules lead to all that these import, ``os`` among it."""
    try:
        definition = pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        return False
    if definition is None:  # nnU-Net looks for networks that have moved by their last name, in one of these packages
        return name.startswith(f"{STOCK_PACKAGE}.")
    if inspect.isclass(definition):
        return issubclass(definition, nn.Module) and _is_within(f"{definition.__module__}.", _PACKAGES)
    return inspect.isfunction(definition) and definition.__module__ == _FUNCTIONS
