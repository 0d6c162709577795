"""Parameters and memory of trainers' networks."""

import json

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from reference import tiny

from nnunet_ext.cli.main import main
from nnunet_ext.evaluation import network_info
from nnunet_ext.evaluation.network_info import _has_own_loss, compare_networks
from nnunet_ext.trainers import find_trainer
from nnunet_ext.training.nesting import nested_step_memory
from nnunet_ext.training.step_memory import GIB


def test_enhanced_networks_take_a_little_more():
    found = compare_networks(tiny.plans(), tiny.dataset_json(), "nnUNetTrainerIFECurvature", ["3d_fullres", "2d"])
    assert list(found) == ["3d_fullres", "2d"]
    one = found["3d_fullres"]
    assert (one["patch_size"], one["batch_size"]) == ([16, 12, 16], 2)
    assert one["trainer"]["network"] == "nnunet_ext.networks.ife_unet.IFEPlainConvUNet"
    # stage 1 has 6 channels, 4 of them twice: 4 more input channels of a convolution to 6 with 27 weights
    assert one["trainer"]["parameters"] - one["plain"]["parameters"] == 4 * 6 * 27
    assert 1 < one["trainer"]["gib"] / one["plain"]["gib"] < 1.3
    assert found["2d"]["trainer"]["parameters"] - found["2d"]["plain"]["parameters"] == 4 * 6 * 9


def test_two_networks_take_both_halves_of_a_batch():
    one = compare_networks(tiny.plans(), tiny.dataset_json(), "nnUNetTrainerCPS", ["3d_fullres"])["3d_fullres"]
    assert one["trainer"]["networks"] == 2
    assert one["trainer"]["parameters"] == one["plain"]["parameters"]
    assert 2.5 < one["trainer"]["gib"] / one["plain"]["gib"] < 5


def test_a_pair_of_networks(monkeypatch, capsys):
    name = "nnUNetTrainerCPS_UNet_ANUNet"
    one = compare_networks(tiny.plans(), tiny.dataset_json(), name, ["3d_fullres"])["3d_fullres"]
    alone = compare_networks(tiny.plans(), tiny.dataset_json(), "nnUNetTrainerANUNet", ["3d_fullres"])["3d_fullres"]
    assert one["trainer"]["networks"] == 2
    assert one["trainer"]["network"].endswith("PlainConvUNet")
    assert one["trainer"]["network_2"] == {key: alone["trainer"][key] for key in ("network", "parameters")}
    plain = compare_networks(tiny.plans(), tiny.dataset_json(), "nnUNetTrainerCPS", ["3d_fullres"])["3d_fullres"]
    nested = compare_networks(tiny.plans(), tiny.dataset_json(), "nnUNetTrainerCPS_ANUNet", ["3d_fullres"])[
        "3d_fullres"
    ]
    assert plain["trainer"]["gib"] < one["trainer"]["gib"] < nested["trainer"]["gib"]
    monkeypatch.setattr(network_info, "read_plans", lambda *_: (tiny.plans(), tiny.dataset_json()))
    assert main(["info", "-d", "1", "-tr", name, "-c", "3d_fullres"]) == 0
    assert "  network 2   nnunet_ext.networks.nested_unet.NestedAttentionUNet, " in capsys.readouterr().out


def test_mask_propagation():
    """A step holds a third of the plans' patches in triples, two at least."""
    narrow = type("Narrow", (find_trainer("nnUNetTrainerPropagation"),), tiny.NARROW["PropagationPart"])
    found = []
    for batch_size in (2, 6, 12):
        content = tiny.plans()
        content["configurations"]["2d"] |= {"patch_size": [64, 48], "batch_size": batch_size}
        manager = PlansManager(content)
        found.append(network_info._of_trainer(narrow, manager, "2d", tiny.dataset_json()))
    assert found[0]["network"] == "nnunet_ext.networks.space_time.SpaceTimeNetwork"
    assert found[0]["gib"] == found[1]["gib"]
    assert 1.3 < found[2]["gib"] / found[1]["gib"] < 2.1
    narrow.propagation_enlarge = 2
    enlarged = network_info._of_trainer(narrow, manager, "2d", tiny.dataset_json())["gib"]
    assert 2 < enlarged / found[2]["gib"] < 4  # activations are of four times the pixels
    assert narrow.network_architecture(narrow, manager.get_configuration("2d"))["arch_kwargs"]["key_dim"] == 8
    with pytest.raises(ValueError, match="name others with -c. ValueError: Propagation carries masks from slice to"):
        compare_networks(tiny.plans(), tiny.dataset_json(), "nnUNetTrainerPropagation", ["3d_fullres"])


def test_a_loss_changes_nothing_and_the_cascade_counts_its_channels():
    name = "nnUNetTrainerCWCD"
    one = compare_networks(tiny.plans(), tiny.dataset_json(), name, ["3d_cascade_fullres"])["3d_cascade_fullres"]
    assert one["trainer"] == one["plain"]
    single = compare_networks(tiny.plans(), tiny.dataset_json(), name, ["3d_fullres"])["3d_fullres"]
    assert one["plain"]["parameters"] - single["plain"]["parameters"] == 2 * 4 * 27  # both labels as input


@pytest.mark.parametrize("nested_plans", [False, True])
def test_nested_networks_beside_the_plain_one(nested_plans):
    """Plans that name a nested network, as the planner's do, are compared with nnU-Net's own network all the same."""
    plans = tiny.plans()
    if nested_plans:
        name = "nnunet_ext.networks.nested_unet.NestedAttentionUNet"
        plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = name
    one = compare_networks(plans, tiny.dataset_json(), "nnUNetTrainerANUNet", ["3d_fullres"])["3d_fullres"]
    assert one["plain"]["network"].endswith("PlainConvUNet")
    assert one["trainer"]["network"].endswith("NestedAttentionUNet")
    assert 1.1 < one["trainer"]["parameters"] / one["plain"]["parameters"] < 2
    assert 1.5 < one["trainer"]["gib"] / one["plain"]["gib"] < 4


class OldSignature(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(name, kwargs, needed, num_input_channels, num_output_channels, deep=True):
        return get_network_from_plans(name, kwargs, needed, num_input_channels, num_output_channels, True, deep)


class WithoutScales(nnUNetTrainer):
    @classmethod
    def build_network_architecture(cls, plans_manager, configuration_manager, inputs, outputs, deep=True):
        return super().build_network_architecture(plans_manager, configuration_manager, inputs, outputs, False)


class NoPatchLikeThis(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, inputs, outputs, deep=True):
        return torch.nn.Conv3d(inputs, outputs, 99)


@pytest.fixture
def find_here(monkeypatch):
    """Let trainers be found that are defined in this file."""
    monkeypatch.setattr(network_info, "recursive_find_trainer_class_by_name", lambda name: globals()[name])


@pytest.mark.parametrize("trainer", ["OldSignature", "WithoutScales"])
def test_networks_of_others(find_here, trainer):
    one = compare_networks(tiny.plans(), tiny.dataset_json(), trainer, ["3d_fullres"])["3d_fullres"]
    assert one["trainer"]["parameters"] == one["plain"]["parameters"]
    assert 0.8 < one["trainer"]["gib"] / one["plain"]["gib"] <= 1
    assert (one["trainer"] == one["plain"]) == (trainer == "OldSignature")


def test_networks_that_do_not_fit_the_patch(find_here):
    message = (
        r"the network of NoPatchLikeThis cannot be built and run for this configuration \(patch \[16, 12, 16\]\); name "
        "others with -c. RuntimeError: .*"
    )
    with pytest.raises(ValueError, match=message):
        compare_networks(tiny.plans(), tiny.dataset_json(), "NoPatchLikeThis", ["3d_fullres"])


@pytest.fixture
def folders(tmp_path, monkeypatch):
    tiny.make(tmp_path, configurations=())
    from nnunetv2 import paths
    from nnunetv2.utilities import dataset_name_id_conversion as conversion

    for name in ("raw", "preprocessed", "results"):
        for module in (paths, conversion):
            monkeypatch.setattr(module, f"nnUNet_{name}", str(tmp_path / name), raising=False)
    monkeypatch.setattr(network_info, "nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return tmp_path


def test_the_command(folders, capsys):
    arguments = ["info", "-d", tiny.NAME, "-p", tiny.PLANS, "-tr", "nnUNetTrainerCPS_IFEEntropy", "-c", "2d"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2d: patch 16 x 16, batch 2" in printed
    assert "IFEPlainConvUNet, 2 of them" in printed
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["2d"]["trainer"]["networks"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-tr", "nnUNetTrainer"], "-d and -tr belong together"),
        (["-d", tiny.NAME], "-d and -tr belong together"),
        (
            ["-d", tiny.NAME, "-tr", "nnUNetTrainer"],
            "there are no plans .*nnUNetPlans.json; this dataset has: TinyPlans",
        ),
        (["-d", tiny.NAME, "-p", tiny.PLANS, "-tr", "Foo"], "Could not find requested nnunet trainer Foo"),
        (
            ["-d", tiny.NAME, "-p", tiny.PLANS, "-tr", "nnUNetTrainer", "-c", "4d"],
            "no configuration 4d, but 2d, 3d_fullres",
        ),
    ],
)
def test_wrong_input_is_one_line(folders, capsys, arguments, message):
    assert main(["info", *arguments]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    import re

    assert re.search(message, error)


def test_nested_networks_are_estimated_with_their_own_loss():
    def gib(trainer):
        return compare_networks(tiny.plans(), tiny.dataset_json(), trainer, ["3d_fullres"])["3d_fullres"]["trainer"][
            "gib"
        ]

    configuration = PlansManager(tiny.plans()).get_configuration("3d_fullres")
    architecture = find_trainer("nnUNetTrainerANUNet").network_architecture(
        find_trainer("nnUNetTrainerANUNet"), configuration
    )
    heads = PlansManager(tiny.plans()).get_label_manager(tiny.dataset_json()).num_segmentation_heads
    size = (configuration.patch_size, configuration.batch_size, 1, heads)
    assert gib("nnUNetTrainerANUNet") == nested_step_memory(architecture, *size) / GIB
    assert gib("nnUNetTrainerCWCD_ANUNet") != gib("nnUNetTrainerANUNet")


def test_a_teacher_and_its_patches_take_memory():
    def gib(trainer):
        return compare_networks(tiny.plans(), tiny.dataset_json(), trainer, ["3d_fullres"])["3d_fullres"]["trainer"][
            "gib"
        ]

    plain, taught, cps = (gib(f"nnUNetTrainer{part}") for part in ("_3epochs", "MeanTeacher_CutMix", "CPS"))
    assert 1.7 * plain < taught < cps


def test_the_loss_of_a_users_class_is_seen():
    class Mine(find_trainer("nnUNetTrainerANUNet")):
        def _build_loss(self):
            return torch.nn.CrossEntropyLoss()

    class Longer(find_trainer("nnUNetTrainerANUNet")):
        num_epochs = 5

    assert [_has_own_loss(cls) for cls in (Mine, Longer, find_trainer("nnUNetTrainerCWCD_ANUNet"))] == [
        True,
        False,
        True,
    ]


def test_plans_that_name_a_program_start_none(tmp_path):
    plans = tiny.plans()
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    kwargs |= {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": ["touch", str(tmp_path / "ran")]}}
    with pytest.raises(ValueError, match="the plans name 'subprocess.Popen' as nonlin"):
        compare_networks(plans, tiny.dataset_json(), "nnUNetTrainer", ["3d_fullres"])
    assert not (tmp_path / "ran").exists()
