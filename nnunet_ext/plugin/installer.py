"""What the start-up hook does once a module with a seam is imported; loaded only then."""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Protocol


class Finder(Protocol):
    """What the start-up hook's finder knows of seams, and what it is told."""

    seams: dict[str, str]

    def is_held(self, seam: str) -> bool:
        """Whether a seam is active or refused."""

    def accept(self, seam: str) -> None:
        """Record that a seam is installed."""

    def refuse(self, seam: str, reason: BaseException) -> None:
        """Record that a seam is not installed, and say so."""

    def say(self, seam: str, message: str) -> None:
        """Say something on a seam."""


class SeamLoader:
    """Stands in for a module's own loader until the module is executed, then hands back to it.

    Everything but the execution is the own loader's, so that sources, data files and resources are found as before;
    after the import, the module and its spec carry the own loader again.
    """

    def __init__(self, loader: Any, seam: str, finder: Finder) -> None:
        self._loader = loader
        self._seam = seam
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        """Delegate to the own loader."""
        if name.startswith("__") or "_loader" not in self.__dict__:  # asked by copy and pickle before __init__
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does; ``None`` asks for Python's default."""
        create = getattr(self._loader, "create_module", None)
        return None if create is None else create(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then install the seam before anybody can copy names from it."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        install(self._seam, module, self._finder)


def wrap_loader(spec: ModuleSpec, seam: str, finder: Finder) -> None:
    """Make the loader of ``spec`` install the seam after it executed the module.

    Args:
        spec: Changed in place.
        seam: Our module.
        finder: Keeps the record.

    Raises:
        TypeError: If the loader cannot be wrapped.
    """
    if not hasattr(spec.loader, "exec_module"):
        raise TypeError(f"the loader of {spec.name} has no exec_module, got {spec.loader!r}")
    if not isinstance(spec.loader, SeamLoader):  # a reload finds the wrapped spec again with some finders
        spec.loader = SeamLoader(spec.loader, seam, finder)  # type: ignore[assignment]


def install(seam: str, module: ModuleType, finder: Finder) -> None:
    """Install one seam and record how it went; never raises.

    Args:
        seam: Our module.
        module: The module it extends.
        finder: Keeps the record.
    """
    try:
        importlib.import_module(seam).install(module)
    except Exception as error:  # nnU-Net must keep working without us
        finder.refuse(seam, error)
    else:
        finder.accept(seam)


def install_in_imported(finder: Finder) -> None:
    """Install the seams whose modules were imported before the hook was there, and warn of names copied before.

    Args:
        finder: Names the seams; those it already holds are left alone.
    """
    for name, seam in finder.seams.items():
        module = sys.modules.get(name)
        if module is None or finder.is_held(seam):
            continue
        before = dict(vars(module))
        install(seam, module, finder)
        replaced = [value for key, value in before.items() if vars(module).get(key) is not value]
        copies = _modules_with(replaced, besides=module)
        if copies:
            finder.say(
                seam,
                f"came too late for {', '.join(copies)}, where the stock function stays; call nnunet_ext.activate() "
                "before importing nnunetv2",
            )


def _modules_with(values: list[Any], besides: ModuleType) -> list[str]:
    identities = {id(value) for value in values}
    return sorted(
        name
        for name, module in list(sys.modules.items())
        # The exact type: reading the namespace of a lazy module would load it.
        if type(module) is ModuleType
        and module is not besides
        and any(id(value) in identities for value in list(vars(module).values()))
    )
