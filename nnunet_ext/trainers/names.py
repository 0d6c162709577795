"""Trainer names: the grammar, and the classes that names stand for.

A name is ``nnUNetTrainer`` plus parts in one canonical order, each at most once, the first joined directly, the others
by ``_``; a length part alone is joined by ``_`` too (``nnUNetTrainer_20epochs_50iterations``). The name is the folder
of the results and is looked up again at inference, so one training has exactly one name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from itertools import combinations
from typing import Any, cast

from nnunet_ext.trainers.parts import LENGTH, LOSS, NETWORK, PAIRING, PARTS, SUPERVISION, TASK, Part

BASE = "nnUNetTrainer"


def _combinations() -> tuple[tuple[Part, ...], ...]:
    """Return every combination of parts that carry no number, those of few parts first.

    Of two networks those of plain CPS alone: with its other parts and a loss there would be thousands. They are found
    by their names all the same.
    """
    found: list[tuple[Part, ...]] = [()]
    for group in sorted({part.group for part in PARTS if not part.has_number}):
        of_group = [part for part in PARTS if part.group == group and not part.only_in_pairs]
        found += [(*chosen, part) for chosen in found for part in of_group if _is_allowed(part, chosen)]
    return (*sorted(found[1:], key=len), *_pairs())


def _pairs() -> tuple[tuple[Part, ...], ...]:
    """Return plain CPS with every two networks."""
    networks = [part for part in PARTS if part.kind == NETWORK]
    return tuple((part, *pair) for part in PARTS if part.name == PAIRING for pair in combinations(networks, 2))


def _is_allowed(part: Part, before: Sequence[Part]) -> bool:
    """Whether a part has before it what it needs, and nothing that stands alone."""
    if part.kind != LENGTH and any(other.alone for other in before if other is not part):
        return False
    return not part.needs or any(other.name in part.needs for other in before)


def _word(part: Part, number: int) -> str:
    return re.sub(r"<.>", str(number), part.name)


def canonical_name(parts: Sequence[tuple[Part, int]]) -> str:
    """Write the name of parts that are in order."""
    joint = "_" if parts[0][0].has_number else ""
    return BASE + joint + "_".join(_word(part, number) for part, number in parts)


# What is named first to those who ask, with the case that it is for.
RECOMMENDED = (
    ("nnUNetTrainerSemi", "a few scans have labels, more have none"),
    ("nnUNetTrainerSemi_100epochs", "the same in 100 epochs instead of 1000; any length goes"),
    ("nnUNetTrainerCWCD", "all scans have labels, and organs differ much in size"),
)

# What is listed, and found by those who look for classes that exist: import, and nnU-Net's search of a folder.
COMMON = (
    *(canonical_name([(part, 0) for part in parts]) for parts in _combinations()),
    "nnUNetTrainerCPS_100epochs",
    "nnUNetTrainerCPS_250epochs",
)


def summary_of(name: str) -> str:
    """Return one line on a trainer of ours: what the table says of its part, or the parts that it is made of."""
    parts = _parse(name, _tokens(name) or [])
    return _described(parts) if len(parts) == 1 else " + ".join(_word(part, number) for part, number in parts)


def _described(parts: Sequence[tuple[Part, int]]) -> str:
    return "; ".join(re.sub(r"\bN\b|\bM\b", str(number), part.summary) for part, number in parts)


def find_trainer(name: str) -> type | None:
    """Return the trainer class of a name.

    Returns:
        The class, the same one at each call, or None if the name does not begin like one of ours.

    Raises:
        ValueError: If the name begins like ours but has an unknown part, a part twice, parts that exclude each other
            or another order than the canonical one.
    """
    tokens = _tokens(name)
    if tokens is None:
        return None
    return _compose(name, _parse(name, tokens))


def _tokens(name: str) -> list[str] | None:
    """Split a name into tokens, or return None if it does not begin like ours."""
    if not name.startswith(BASE):
        return None
    rest = name[len(BASE) :]
    tokens = rest.lstrip("_").split("_")
    first = tokens[0]
    for part in PARTS:
        if part.match(first) is not None:
            return tokens
        # what begins like the plans' own network may be a trainer of somebody else
        if not part.has_number and not part.only_in_pairs and first.lower().startswith(part.name.lower()):
            return tokens
    if re.fullmatch(r"\d+(epochs?|iterations?|iters?)", first):
        return tokens
    return None


def _parse(name: str, tokens: list[str]) -> tuple[tuple[Part, int], ...]:
    found: list[tuple[Part, int]] = []
    for token in tokens:
        matches = [(part, number) for part in PARTS if (number := part.match(token)) is not None]
        if not matches:
            raise ValueError(f"the trainer name {name!r} has an unknown part {token!r}. {_grammar()}")
        found.append(matches[0])
    ordered = tuple(sorted(found, key=lambda item: (item[0].group, PARTS.index(item[0]))))
    _refuse_clashes(name, found, ordered)
    for part, _ in ordered:
        if not _is_allowed(part, [other for other, _ in ordered]):
            raise ValueError(_lacks(name, part, ordered))
    canonical = canonical_name(ordered)
    if canonical != name:
        raise ValueError(
            f"the trainer name {name!r} is not in canonical order (the name is the folder of the results, so there is "
            f"only one); use -tr {canonical}"
        )
    return ordered


def _refuse_clashes(name: str, found: list[tuple[Part, int]], ordered: tuple[tuple[Part, int], ...]) -> None:
    """Raise ValueError where parts exclude each other, or networks are none that can be trained together."""
    groups = [part.group for part, _ in found]
    for group in groups:
        clash = [part.name for part, _ in found if part.group == group]
        is_pair = len(clash) == 2 and all(part.kind == NETWORK for part, _ in found if part.group == group)
        if len(clash) > 1 and not is_pair:
            raise ValueError(
                f"the trainer name {name!r} has {' and '.join(clash)}, of which only one can be chosen"
                f"{_OR_PAIR if found[groups.index(group)][0].kind == NETWORK else ''}. {_grammar()}"
            )
    alone = [item for item in ordered if item[0].alone]
    beside = [part.name for part, _ in ordered if part.kind != LENGTH and not part.alone]
    if alone and beside:
        kept = [item for item in ordered if item[0].alone or item[0].kind == LENGTH]
        raise ValueError(
            f"the trainer name {name!r} has {' and '.join(beside)} beside {alone[0][0].name}, which is a training "
            f"with a loss and a network of its own, and takes nothing but a length; use -tr {canonical_name(kept)}"
        )
    networks = [part for part, _ in ordered if part.kind == NETWORK]
    others = [item for item in ordered if item[0].kind != NETWORK]
    paired = any(part.name == PAIRING for part, _ in others)
    repeated = len(networks) == 2 and networks[0] is networks[1]
    if len(networks) == 2 and not paired:
        single = next((f" ({part.name} trains one)" for part, _ in others if part.group == 0), "")
        distinct = [part for part in dict.fromkeys(networks) if not (repeated and part.only_in_pairs)]
        pair = _name_of([item for item in others if item[0].group > 0], distinct)
        raise ValueError(
            f"the trainer name {name!r} has two networks, {networks[0].name} and {networks[1].name}, which only "
            f"{PAIRING} trains together{single}; use -tr {pair}, or leave one of them out"
        )
    if repeated or (len(networks) == 1 and networks[0].only_in_pairs):
        one = [part for part in networks[:1] if not part.only_in_pairs]
        what = f"{networks[0].name} twice" if repeated else f"{networks[0].name} alone, the plans' own network"
        if not paired:
            instead = canonical_name(others) if others else BASE
        else:
            instead = _name_of([item for item in others if item[0].name != PAIRING], one)
        both = ", where both networks are that" if paired else ""
        raise ValueError(f"the trainer name {name!r} has {what}; use -tr {instead}{both}")


_OR_PAIR = f", or with {PAIRING} two"


def _name_of(others: Sequence[tuple[Part, int]], networks: Sequence[Part]) -> str:
    """Return the name of CPS with other parts and networks."""
    parts = [*((part, 0) for part in PARTS if part.name == PAIRING), *others, *((part, 0) for part in networks)]
    return canonical_name(sorted(parts, key=lambda item: (item[0].group, PARTS.index(item[0]))))


def _lacks(name: str, part: Part, ordered: tuple[tuple[Part, int], ...]) -> str:
    """Return what is wrong with a name that has a part without what that needs."""
    if ordered[0][0].name == "Semi":
        return (
            f"the trainer name {name!r} has {part.name} beside Semi, which is MeanTeacher with CutMix and "
            f"Confidence; to choose parts, write them out, e.g. {BASE}MeanTeacher_CutMix_Confidence. {_grammar()}"
        )
    return (
        f"the trainer name {name!r} has {part.name}, which needs {' or '.join(part.needs)}, e.g. "
        f"{BASE}{part.needs[0]}_{part.name}. {_grammar()}"
    )


def _grammar() -> str:
    known = ", ".join(part.name for part in PARTS)
    return (
        f"Known parts, in their order: {known}; the first one follows {BASE} directly (a length after '_'), the "
        f"others are joined by '_', e.g. {BASE}Semi_20epochs_50iterations. See nnUNetv2_ext trainers."
    )


@cache
def _compose(name: str, parts: tuple[tuple[Part, int], ...]) -> type:
    """Make the class, the last part outermost; some are written out and taken from there."""
    written_out = getattr(import_module("nnunet_ext.trainers.common"), name, None)
    if written_out is not None:
        return cast(type, written_out)
    content: dict[str, Any] = {"__module__": "nnunet_ext.trainers", "__doc__": f"{_described(parts)}."}
    if len(networks_of(parts)) == 2:
        content["companion_bases"] = companion_bases_of(parts)
    return type(name, bases_of(parts), content)


def networks_of(parts: Sequence[tuple[Part, int]]) -> list[tuple[Part, int]]:
    """Return the parts that say which network is trained; of two the second is that of network 2."""
    return [item for item in parts if item[0].kind == NETWORK]


def bases_of(parts: Sequence[tuple[Part, int]]) -> tuple[type, ...]:
    """Return the base classes of a trainer of parts that are in order, the last part first; of two networks those of 1.

    Args:
        parts: Parts with their numbers.
    """
    lengths = [item for item in parts if item[0].kind == LENGTH]
    others = [item for item in parts if item[0].kind in (SUPERVISION, TASK, LOSS)]
    return _bases([*others, *networks_of(parts)[:1], *lengths])


def companion_bases_of(parts: Sequence[tuple[Part, int]]) -> tuple[type, ...]:
    """Return the base classes of what trains network 2 of a pair: that network and the loss, without CPS.

    Args:
        parts: Parts of the pair's trainer, with their numbers, in order.
    """
    loss = [item for item in parts if item[0].kind == LOSS]
    return _bases([*loss, *networks_of(parts)[1:]], ("nnunet_ext.trainers._companion:CompanionPart",))


def _bases(parts: Sequence[tuple[Part, int]], before: Sequence[str] = ()) -> tuple[type, ...]:
    bases: list[Any] = []
    for part, number in reversed(parts):
        if part.target:  # the plans' own network needs nothing
            target = _load(part.target)
            bases.append(target(number) if part.has_number else target)
    bases += [_load(target) for target in before]
    bases += [_load("nnunet_ext.trainers.base:ExtPart"), _load("nnunetv2.training.nnUNetTrainer.nnUNetTrainer:" + BASE)]
    return tuple(bases)


def _load(target: str) -> Any:
    module, attribute = target.split(":")
    return getattr(import_module(module), attribute)
