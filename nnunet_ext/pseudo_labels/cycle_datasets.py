"""Names of the datasets that the cycles of a self-training make, reserved before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from nnunet_ext import files
from nnunet_ext.pseudo_labels.dataset import Roots, output_name, refuse_existing

RECORD = "self_train.json"
_LAST = 999  # number of a dataset


def reserved_elsewhere(results: Path, own: Path) -> dict[int, Path]:
    """Return the numbers that other self-trainings have reserved, each with the folder of one.

    Args:
        results: ``nnUNet_results``.
        own: Folder of the self-training that asks.
    """
    found: dict[int, Path] = {}
    for file in sorted(results.glob(f"Dataset*/*/{RECORD}")):
        if file.parent == own:
            continue
        try:
            names = files.read_json(file).get("datasets", [])
            found |= {int(name[7:10]): file.parent for name in names}
        except (OSError, ValueError, TypeError):  # whoever goes on with that one is told
            continue
    return found


def choose_names(
    source: str, number: int, first: int | None, before: Sequence[str], reserved: Mapping[int, Path], roots: Roots
) -> tuple[str, ...]:
    """Return the names of the datasets of cycles 1, 2, ...

    Names of an earlier run stay, but for those that somebody else's dataset has the number of by now.

    Args:
        source: Name of the dataset with the true labels.
        number: Of cycles.
        first: Number of the first dataset; None takes the first free one after that of ``source``.
        before: Names that an earlier run chose.
        reserved: Numbers that others have reserved, with their folders.
        roots: nnU-Net's folders.

    Raises:
        FileExistsError: If ``first`` is taken.
        ValueError: If there are no numbers left, or cycle 1 was made already with another number than ``first``.
    """
    made = [name for name in before if name in find_candidate_datasets(int(name[7:10]))]
    if first is not None and before and output_name(str(first), source) != before[0]:
        if made:
            raise ValueError(
                f"-o is {first}, but cycle 1 of this self-training is {before[0]}; leave out -o, or begin another one "
                "with --name NAME"
            )
        before = ()
    if first is not None and not before:
        if first in reserved:
            raise FileExistsError(
                f"the dataset number {first} is reserved by the self-training in {reserved[first]}; name another "
                "with -o, or remove that folder if nobody goes on with it"
            )
        refuse_existing(output_name(str(first), source), roots)
    names: list[str] = []
    for position in range(max(number, len(before))):
        if position < len(before) and (before[position] in made or _is_free(before[position], reserved, roots)):
            names.append(before[position])
            continue
        names.append(_next_free(source, first, {*names, *before[position + 1 :]}, reserved, roots))
    return tuple(names)


def _next_free(source: str, first: int | None, used: set[str], reserved: Collection[int], roots: Roots) -> str:
    numbers = [int(name[7:10]) for name in used]
    for candidate in range(max([first or int(source[7:10]) + 1, *(number + 1 for number in numbers)]), _LAST + 1):
        name = output_name(str(candidate), source)
        if _is_free(name, reserved, roots):
            return name
    raise ValueError(f"there is no free dataset number up to {_LAST} after those in use; name the first one with -o")


def _is_free(name: str, reserved: Collection[int], roots: Roots) -> bool:
    if int(name[7:10]) in reserved:
        return False
    try:
        refuse_existing(name, roots)
    except FileExistsError:
        return False
    return True
