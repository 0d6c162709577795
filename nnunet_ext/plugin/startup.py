"""The start-up hook: importing this module makes nnU-Net see the plugin.

``nnunet_ext.pth`` imports it in every interpreter of the environment, spawned workers included, so it imports nothing
beyond ``os`` and ``sys`` and only registers a finder that looks at the names of modules. Whatever costs time happens
in ``installer``, once one of the named modules is really imported.
"""

import os
import sys

TYPE_CHECKING = False  # the name type checkers know; importing typing would cost more than all the rest
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

DISABLE_VARIABLE = "NNUNET_EXT_DISABLE"
SEAMS = {
    "nnunetv2.utilities.find_class_by_name": "nnunet_ext.plugin.seam_find_class",
    "nnunetv2.utilities.find_objects": "nnunet_ext.plugin.seam_find_trainer",
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints": "nnunet_ext.plugin.seam_exit_status",
    "nnunetv2.run.run_training": "nnunet_ext.plugin.seam_training",
    "nnunetv2.utilities.utils": "nnunet_ext.plugin.seam_dataset",
    "nnunetv2.experiment_planning.plan_and_preprocess_api": "nnunet_ext.plugin.seam_ground_truth",
    "nnunetv2.experiment_planning.verify_dataset_integrity": "nnunet_ext.plugin.seam_verify",
    "nnunetv2.inference.predict_from_raw_data": "nnunet_ext.plugin.seam_predict",
}
SPAWN_SEAM = ("multiprocessing.spawn", "nnunet_ext.plugin.seam_spawn")


class SeamFinder:
    """Meta-path finder that answers for the modules of its table only, and leaves the finding itself to the others.

    Attributes:
        seams: Module that is extended -> our module whose ``install`` extends it.
        held: Short name of a seam -> ``"active"``, or ``"refused: <reason>"``; a seam not in it is still waiting.
    """

    def __init__(self) -> None:
        self.seams = dict(SEAMS)
        self.held: dict[str, str] = {}

    def find_spec(
        self, name: str, path: "list[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Find ``name`` through the other finders and see to it that its seam is installed after its execution.

        Args:
            name: Full name of the module being imported.
            path: Search path of its package.
            target: The module being reloaded, if any.

        Returns:
            The spec the other finders give, ``None`` where the name is not in the table or nobody finds it.
        """
        seam = self.seams.get(name)
        if seam is None:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find is None else find(name, path, target)
            if spec is not None:
                return self._with_seam(spec, seam)
        return None

    def _with_seam(self, spec: "ModuleSpec", seam: str) -> "ModuleSpec":
        try:
            from nnunet_ext.plugin import installer

            installer.wrap_loader(spec, seam, self)
        except Exception as error:  # an import of nnU-Net must never fail because of us
            self.refuse(seam, error)
        return spec

    def is_held(self, seam: str) -> bool:
        """Whether a seam is active or refused, not waiting."""
        return short_name(seam) in self.held

    def accept(self, seam: str) -> None:
        """Record that a seam is installed."""
        self.held[short_name(seam)] = "active"

    def refuse(self, seam: str, reason: BaseException) -> None:
        """Record that a seam is not installed, and say so in one line on stderr.

        Args:
            seam: Our module.
            reason: Why it is not installed.
        """
        text = " ".join(f"{type(reason).__name__}: {reason}".split())
        self.held[short_name(seam)] = f"refused: {text}"
        self.say(seam, f"is not active. {text}")

    def say(self, seam: str, message: str) -> None:
        """Write one line on a seam on stderr, and put up with a process that has none."""
        try:  # noqa: SIM105 - contextlib is not imported at start-up
            sys.stderr.write(f"nnunet_ext: seam '{short_name(seam)}' {message}\n")
        except (AttributeError, OSError, ValueError):  # None under pythonw; or closed
            pass


def is_disabled() -> bool:
    """Whether ``NNUNET_EXT_DISABLE`` switches the plugin off."""
    return os.environ.get(DISABLE_VARIABLE, "").strip().lower() in ("1", "true")


def activate() -> None:
    """Register the seams in this process and in those it spawns, also where ``.pth`` files do not run.

    Does nothing under ``NNUNET_EXT_DISABLE=1`` and nothing new when called again. A module of nnU-Net that is already
    imported is extended at once; modules that copied a name from it before keep the stock one, which is said on stderr.
    """
    if is_disabled():
        return
    finder = _register()
    finder.seams.setdefault(*SPAWN_SEAM)
    from nnunet_ext.plugin import installer

    installer.install_in_imported(finder)


def status() -> list[tuple[str, str, str]]:
    """State of every seam, for people.

    Returns:
        ``(short name, module that is extended, state)`` in the order of the table; the state is ``"active"``,
        ``"waiting"`` (the module has not been imported yet) or ``"refused: <reason>"``.
    """
    finder = _registered()
    if finder is not None:
        return [(short_name(ours), theirs, finder.held.get(short_name(ours), "waiting")) for theirs, ours in _table()]
    reason = f"{DISABLE_VARIABLE} is set" if is_disabled() else "not registered; call nnunet_ext.activate()"
    return [(short_name(ours), theirs, f"refused: {reason}") for theirs, ours in _table()]


def short_name(seam: str) -> str:
    """Name of a seam for people: ``nnunet_ext.plugin.seam_find_class`` -> ``find_class``."""
    return seam.rpartition(".seam_")[2]


def _table() -> list[tuple[str, str]]:
    finder = _registered()
    return list((SEAMS if finder is None else finder.seams).items())


def _registered() -> "SeamFinder | None":
    # By name: a second import of this module makes a second class, and must meet the finder of the first.
    for finder in sys.meta_path:
        if type(finder).__name__ == SeamFinder.__name__ and type(finder).__module__ == __name__:
            return finder  # type: ignore[return-value]
    return None


def _register() -> SeamFinder:
    finder = _registered()
    if finder is None:
        finder = SeamFinder()
        sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    return finder


if not is_disabled():
    _register()
