"""What every part of a trainer name keeps to, whatever it changes."""

import ast
import inspect
import textwrap

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.trainers.names import PARTS, find_trainer

# What a part replaces without asking the next one; all else calls super().
REPLACED = {
    "CPSPart": {"train_step", "get_dataloaders", "set_deep_supervision_enabled", "pseudo_criterion"},
    "CWCDPart": {"_build_loss"},
    "GDLPart": {"_build_loss"},
    "DWCEPart": {"_build_loss"},
    "IFEPart": {"prepared_pretrained_weights"},
    "NetworkPart": {"build_network_architecture"},
    "ANUNetPart": {"_get_deep_supervision_scales", "output_weights", "default_loss"},
    "ExtPart": {"_build_loss", "initialize", "save_checkpoint"},
}


def mixins():
    """Every class between a trainer of one part and nnU-Net's own."""
    found = {}
    for part in PARTS:
        name = part.name.replace("<N>", "3").replace("<M>", "3")
        trainer = find_trainer(f"nnUNetTrainer{'_' if part.has_number else ''}{name}")
        for cls in trainer.__mro__[1 : trainer.__mro__.index(nnUNetTrainer)]:
            found[cls.__name__] = cls
    return found


MIXINS = mixins()


def shared(cls, others):
    """Names of the functions of a class that any of the others has, too."""
    functions = {name: getattr(value, "__func__", value) for name, value in vars(cls).items()}
    return {
        name: function
        for name, function in functions.items()
        if inspect.isfunction(function) and any(hasattr(other, name) for other in others)
    }


def calls_super(function):
    """Whether a function reaches for the method of its own name in super()."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Attribute) and node.attr == function.__name__ and isinstance(node.value, ast.Call):
            called = node.value.func
            if isinstance(called, ast.Name) and called.id == "super":
                return True
    return False


def test_every_part_and_what_it_is_made_of_is_looked_at():
    assert {"CPSPart", "CWCDPart", "IFEPart", "IFEEntropyPart", "NetworkPart", "LengthPart", "ExtPart"} <= set(MIXINS)
    assert len({name for cls in MIXINS.values() for name in shared(cls, [nnUNetTrainer])}) > 15
    assert set(REPLACED) <= set(MIXINS)


@pytest.mark.parametrize("cls", MIXINS.values(), ids=MIXINS)
def test_signatures_are_those_of_the_base_class(cls):
    for name in shared(cls, [nnUNetTrainer]):
        own, stock = (list(inspect.signature(getattr(one, name)).parameters) for one in (cls, nnUNetTrainer))
        assert own == stock, name


@pytest.mark.parametrize("cls", MIXINS.values(), ids=MIXINS)
def test_hooks_are_replaced_as_planned_or_call_super(cls):
    others = [nnUNetTrainer] if cls.__name__ == "ExtPart" else [nnUNetTrainer, MIXINS["ExtPart"]]
    replaced = {name for name, function in shared(cls, others).items() if not calls_super(function)}
    assert replaced - {"network_architecture"} == REPLACED.get(cls.__name__, set())


def test_a_comment_is_no_call():
    class Part:
        def train_step(self, batch):
            """Does not call super().train_step."""
            return batch  # super().train_step(batch)

    assert not calls_super(Part.train_step)
    assert calls_super(MIXINS["ExtPart"].train_step)
