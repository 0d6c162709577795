"""What every part of a trainer name keeps to, whatever it changes."""

import ast
import inspect
import json
import pickle
import textwrap
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from reference import tiny

import nnunet_ext
from nnunet_ext.data.host import Trainer
from nnunet_ext.model_sharing.export import export_model
from nnunet_ext.trainers.names import PARTS, canonical_name, find_trainer
from nnunet_ext.training.architecture import OWN_NETWORKS

# What a part replaces without asking the next one; all else calls super().
REPLACED = {
    "CPSPart": {"train_step", "get_dataloaders", "set_deep_supervision_enabled", "pseudo_criterion", "label_maker"},
    "MeanTeacherPart": {"train_step", "get_dataloaders", "label_maker"},
    "CWCDPart": {"_build_loss"},
    "GDLPart": {"_build_loss"},
    "DWCEPart": {"_build_loss"},
    "IFEPart": {"prepared_pretrained_weights"},
    "NetworkPart": {"build_network_architecture"},
    "ANUNetPart": {"deep_supervision_scales", "output_weights", "default_loss"},
    "Reference2DPart": {"own_optimizer"},
    "TransUNetPart": {"deep_supervision_scales", "output_weights"},
    "DeepLabV3PlusPart": {"deep_supervision_scales", "with_shared_batch_norm"},
    "PropagationPart": {
        "_build_loss",
        "get_dataloaders",
        "deep_supervision_scales",
        "plot_network_architecture",
        "train_step",
        "validation_step",
    },
    "ExtPart": {"_build_loss", "_get_deep_supervision_scales", "initialize", "save_checkpoint"},
}


def needed(part):
    """What has to stand before a part in a name, each possibility."""
    return [[(other, 0)] for other in PARTS if other.name in part.needs] or [[]]


def name_of(before, part, number, lengths=()):
    """Name of a trainer with a part; one that stands in pairs alone has another network beside it."""
    beside = [other for other in PARTS if other.kind == part.kind and other is not part]
    beside = [(other, 0) for other in beside[:1] if part.only_in_pairs]
    return canonical_name([*before, (part, number), *beside, *lengths])


def mixins():
    """Every class between a trainer of one part and nnU-Net's own."""
    found = {}
    for part in PARTS:
        for before in needed(part):
            trainer = find_trainer(name_of(before, part, 3))
            for cls in trainer.__mro__[1 : trainer.__mro__.index(nnUNetTrainer)]:
                found[cls.__name__] = cls
    return found


MIXINS = mixins()


def short_names():
    """A trainer of each part that trains two epochs of one iteration; the parts of the length are in all of them."""
    lengths = [(part, 2 if "epochs" in part.name else 1) for part in PARTS if part.has_number]
    alone = [(before, part) for part in PARTS if not part.has_number for before in needed(part)]
    return [name_of(before, part, 0, lengths) for before, part in alone] + [canonical_name(lengths)]


NAMES = short_names()


def settings_of(cls):
    """Names of the attributes that a class sets in set_defaults."""
    method = vars(cls).get("set_defaults")
    if method is None:
        return set()
    return {
        node.attr
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(method))))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }


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


def test_parts_with_a_loss_say_so():
    """Estimates of memory ask for it; a trainer of no part but ours has the loss of nnU-Net or of its network."""
    parts = {name: cls for name, cls in MIXINS.items() if name != "ExtPart"}
    with_loss = {name for name, cls in parts.items() if "_build_loss" in vars(cls)}
    assert with_loss
    assert with_loss == {name for name, cls in parts.items() if vars(cls).get("has_own_loss", False)}
    assert MIXINS["ExtPart"].has_own_loss is False


def test_what_is_said_of_nnunets_trainer_is_so(make_trainer):
    """All that the Protocol names is there once nnU-Net's own trainer is initialised."""
    trainer = make_trainer(cls=nnUNetTrainer)
    trainer.initialize()
    methods = [name for name, value in vars(Trainer).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert len(methods) > 4
    members = [*Trainer.__annotations__, *methods]
    assert [name for name in members if not hasattr(trainer, name)] == []
    documented = Trainer.__doc__.split("Attributes:")[1]
    assert [name for name in Trainer.__annotations__ if f"        {name}: " not in documented] == []


@pytest.mark.parametrize("room", ["data", "trainers", "training"])
def test_no_function_is_handed_just_anything_as_a_trainer(room):
    """Type checkers see nothing of Any; the Protocols say what is used."""
    package = Path(nnunet_ext.__file__).parent
    for file in sorted((package / room).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg) and node.arg == "trainer":
                assert node.annotation is not None, f"{file.name}:{node.lineno}"
                assert ast.unparse(node.annotation) != "Any", f"{file.name}:{node.lineno}"


def test_a_comment_is_no_call():
    class Part:
        def train_step(self, batch):
            """Does not call super().train_step."""
            return batch  # super().train_step(batch)

    assert not calls_super(Part.train_step)
    assert calls_super(MIXINS["ExtPart"].train_step)


def test_the_constructor_is_written_once():
    """Parts set what they have in set_defaults; a constructor would have to repeat nnU-Net's signature."""
    assert [name for name, cls in MIXINS.items() if "__init__" in vars(cls)] == ["ExtPart"]


def test_a_setting_is_found_where_it_is_set():
    assert settings_of(MIXINS["ExtPart"]) == {"seed", "cpu_bf16"}
    assert settings_of(nnUNetTrainer) == set()


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_logged_as_json_and_a_subclass_changes_them(make_trainer, name):
    settings = set().union(*(settings_of(cls) for cls in find_trainer(name).__mro__))
    trainer = make_trainer(name)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.save_every) == (2, 1, 1)
    logged = trainer.hyperparameters()
    assert settings <= set(logged)
    assert json.loads(json.dumps(logged)).keys() == logged.keys()

    class Own(find_trainer(name)):
        def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
            super().__init__(plans, configuration, fold, dataset_json, device)
            for setting in settings:
                setattr(self, setting, "changed")

    changed = make_trainer(cls=Own)
    assert {setting: changed.hyperparameters()[setting] for setting in settings} == dict.fromkeys(settings, "changed")
    assert list(changed.my_init_kwargs) == list(inspect.signature(nnUNetTrainer.__init__).parameters)[1:]


def everything_saved(trainer):
    """What a checkpoint of a trainer would hold, but for the curves and the epoch."""
    state = {"network_weights": trainer.network.state_dict(), "optimizer_state": trainer.optimizer.state_dict()}
    return state | trainer.extra_state()


def same(first, second):
    """Whether nested states are the same to the last bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # a class that no patch has or gets
@pytest.mark.parametrize("name", NAMES)
def test_a_training_is_saved_goes_on_validates_and_is_shared(make_trainer, tmp_path, name):
    """One epoch of two, then the other one by another trainer, as with --c; then --val, a prediction and an export."""
    first = make_trainer(name)
    first.num_epochs = 1
    first.run_training()
    final = Path(first.output_folder) / "checkpoint_final.pth"
    checkpoint = torch.load(final, weights_only=False)
    made = pickle.loads(pickle.dumps(checkpoint["init_args"]))
    again = find_trainer(checkpoint["trainer_name"])(**made | {"plans": made["plans"] | {"continue_training": False}})
    assert again.my_init_kwargs.keys() == made.keys()
    assert again.my_init_kwargs["plans"] == checkpoint["init_args"]["plans"]
    again.load_checkpoint(str(final))
    assert same(everything_saved(first), everything_saved(again))
    assert again.current_epoch == 1
    again.run_training()
    assert {len(values) for values in again.logger.get_checkpoint().values()} == {2}
    assert not same(first.network.state_dict(), again.network.state_dict())

    validating = make_trainer(name)
    maybe_load_checkpoint(validating, False, True, None)
    assert same(everything_saved(again), everything_saved(validating))
    refuse_private(again)
    refuse_private_export(again, tmp_path / "shared")


def refuse_private(trainer):
    """Neither a checkpoint nor the files beside it list files of patients."""
    folder = Path(trainer.output_folder_base)
    stored = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)["init_args"]
    beside = [json.loads((folder / name).read_text()) for name in ("dataset.json", "plans.json")]
    for content in (stored["dataset_json"], stored["plans"], *beside):
        assert "patient" not in json.dumps(content)
    assert "patient" in json.dumps(tiny.dataset_json())


def refuse_private_export(trainer, folder):
    """An export has none of it either; networks of ours are no stock ones, and that is said."""
    model = Path(trainer.output_folder_base)
    if trainer.configuration_manager.network_arch_class_name in OWN_NETWORKS:
        with pytest.raises(ValueError, match="which plain nnU-Net does not have"):
            export_model(model, folder)
        return
    export_model(model, folder)
    stored = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert "patient" not in json.dumps(
        [stored["init_args"], json.loads((folder / "dataset.json").read_text())], default=str
    )
    assert type(trainer).__name__ not in str(stored["trainer_name"])
