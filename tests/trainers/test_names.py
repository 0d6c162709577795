"""Trainer names."""

import itertools
import pickle
import re
from pathlib import Path

import pytest

import nnunet_ext.trainers as trainers
import nnunet_ext.trainers.common as common
from nnunet_ext.trainers import names as composition
from nnunet_ext.trainers.names import COMMON, PARTS, find_trainer


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainerCPS",
        "nnUNetTrainerCPS_100epochs",
        "nnUNetTrainerCPS_20epochs_50iterations",
        "nnUNetTrainerCPS_7iterations",
        "nnUNetTrainer_20epochs_50iterations",
        "nnUNetTrainer_3iterations",
        "nnUNetTrainerCPS_UNet_ANUNet",
        "nnUNetTrainerPropagation_20epochs_50iterations",
        "nnUNetTrainerCPS_CutMix_CWCD_ANUNet_IFEEntropy_3epochs",
    ],
)
def test_names_give_classes_of_that_name(name):
    trainer = find_trainer(name)
    assert trainer.__name__ == name
    assert find_trainer(name) is trainer
    assert pickle.loads(pickle.dumps(trainer)) is trainer
    assert getattr(trainers, name) is trainer
    assert trainer.__doc__


@pytest.mark.parametrize(
    "name", ["nnUNetTrainer", "nnUNetTrainerNoMirroring", "nnUNetTrainer_probabilistic", "nnUNetTrainerUNETR", "Foo"]
)
def test_other_names_are_not_ours(name):
    assert find_trainer(name) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nnUNetTrainerCPS_foo",
            "unknown part 'foo'.*Known parts, in their order: Semi, CPS, MeanTeacher, CutMix, BCP, Confidence",
        ),
        ("nnUNetTrainerCPSX", "unknown part 'CPSX'"),
        ("nnUNetTrainercps", "unknown part 'cps'"),
        ("nnUNetTrainerCPS_0epochs", "unknown part '0epochs'"),
        ("nnUNetTrainer_50iterations_20epochs", "use -tr nnUNetTrainer_20epochs_50iterations$"),
        ("nnUNetTrainer_20epochs_CPS", "use -tr nnUNetTrainerCPS_20epochs$"),
        ("nnUNetTrainer_CPS", "use -tr nnUNetTrainerCPS$"),
        ("nnUNetTrainer20epochs", "use -tr nnUNetTrainer_20epochs$"),
        ("nnUNetTrainerCPS_020epochs", "unknown part '020epochs'"),
        ("nnUNetTrainerCPS_CPS", "CPS and CPS, of which only one can be chosen"),
        ("nnUNetTrainerCPS_5epochs_6epochs", "of which only one can be chosen"),
        ("nnUNetTrainerCPS__5epochs", "unknown part ''"),
        ("nnUNetTrainerCPS_MeanTeacher", "CPS and MeanTeacher, of which only one can be chosen"),
        ("nnUNetTrainerMeanTeacher_CutMix_BCP", "CutMix and BCP, of which only one can be chosen"),
        ("nnUNetTrainerCPS_BCP_CutMix_Confidence", "BCP and CutMix, of which only one can be chosen"),
        ("nnUNetTrainerBCP", "has BCP, which needs CPS or MeanTeacher, e.g. nnUNetTrainerCPS_BCP"),
        ("nnUNetTrainerMeanTeacher_Confidence_BCP", "use -tr nnUNetTrainerMeanTeacher_BCP_Confidence$"),
        ("nnUNetTrainerCutMix", "has CutMix, which needs CPS or MeanTeacher, e.g. nnUNetTrainerCPS_CutMix"),
        ("nnUNetTrainerConfidence_CWCD", "Confidence, which needs CPS or MeanTeacher, e.g. nnUNetTrainerCPS_Conf"),
        ("nnUNetTrainerCPS_Confidence_CutMix", "use -tr nnUNetTrainerCPS_CutMix_Confidence$"),
        ("nnUNetTrainerSemi_ClassBalance", "has ClassBalance beside Semi, which is MeanTeacher with CutMix and Conf"),
        ("nnUNetTrainerSemi_MeanTeacher", "has Semi and MeanTeacher, of which only one can be chosen"),
        ("nnUNetTrainerCPS_Propagation", "has CPS and Propagation, of which only one can be chosen"),
        (
            "nnUNetTrainerPropagation_CWCD_ANUNet_5epochs",
            "CWCD and ANUNet beside Propagation, which .* nothing but a length; use -tr nnUNetTrainerPropagation_5ep",
        ),
        ("nnUNetTrainerPropagation_CutMix", "has CutMix beside Propagation.*use -tr nnUNetTrainerPropagation$"),
        ("nnUNetTrainerPropagation_TransUNet_UNet", "TransUNet beside Propagation.*use -tr nnUNetTrainerPropagation$"),
        ("nnUNetTrainer_5epochs_Propagation", "use -tr nnUNetTrainerPropagation_5epochs$"),
        ("nnUNetTrainerCutMix_MeanTeacher", "use -tr nnUNetTrainerMeanTeacher_CutMix$"),
        ("nnUNetTrainerCPS_ANUNet_UNet", "canonical order.*use -tr nnUNetTrainerCPS_UNet_ANUNet$"),
        ("nnUNetTrainerCPS_IFEEntropy_ANUNet_5epochs", "use -tr nnUNetTrainerCPS_ANUNet_IFEEntropy_5epochs$"),
        ("nnUNetTrainerCPS_ANUNet_ANUNet", "has ANUNet twice; use -tr nnUNetTrainerCPS_ANUNet, where both networks"),
        ("nnUNetTrainerCPS_UNet_UNet", "has UNet twice; use -tr nnUNetTrainerCPS, where both networks are that$"),
        ("nnUNetTrainerCPS_GDL_UNet", "has UNet alone, the plans' own network; use -tr nnUNetTrainerCPS_GDL, where"),
        ("nnUNetTrainerCWCD_UNet", "has UNet alone, the plans' own network; use -tr nnUNetTrainerCWCD$"),
        ("nnUNetTrainerUNet", "has UNet alone, the plans' own network; use -tr nnUNetTrainer$"),
        (
            "nnUNetTrainerCWCD_UNet_ANUNet",
            "two networks, UNet and ANUNet, which only CPS trains together; use -tr nnUNetTrainerCPS_CWCD_UNet_ANUNet",
        ),
        ("nnUNetTrainerUNet_UNet", "which only CPS trains together; use -tr nnUNetTrainerCPS, or leave one of them"),
        (
            "nnUNetTrainerMeanTeacher_CutMix_ANUNet_IFEEntropy",
            r"which only CPS trains together \(MeanTeacher trains one\); use -tr nnUNetTrainerCPS_CutMix_ANUNet_IFEEn",
        ),
        ("nnUNetTrainerSemi_UNet_ANUNet", r"\(Semi trains one\); use -tr nnUNetTrainerCPS_UNet_ANUNet, or leave"),
        (
            "nnUNetTrainerCPS_UNet_ANUNet_IFEEntropy",
            "UNet and ANUNet and IFEEntropy, of which only one .* with CPS two",
        ),
    ],
)
def test_malformed_names_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        find_trainer(name)


def test_every_combination_without_a_length_is_listed_once():
    parts = (("", "_CutMix", "_BCP"), ("", "_Confidence"), ("", "_ClassBalance"))
    expected = {
        "nnUNetTrainer" + "_".join(word for word in words if word)
        for words in itertools.product(
            (
                "",
                *(
                    method + "".join(chosen)
                    for method in ("CPS", "MeanTeacher")
                    for chosen in itertools.product(*parts)
                ),
                "Semi",
            ),
            ("", "CWCD", "GDL", "DWCE"),
            ("", "ANUNet", "IFECurvature", "IFEEntropy", "TransUNet", "DeepLabV3Plus"),
        )
    } - {"nnUNetTrainer"} | {"nnUNetTrainerPropagation"}
    networks = ("UNet", "ANUNet", "IFECurvature", "IFEEntropy", "TransUNet", "DeepLabV3Plus")
    pairs = {f"nnUNetTrainerCPS_{first}_{second}" for first, second in itertools.combinations(networks, 2)}
    assert set(COMMON) == expected | pairs | {"nnUNetTrainerCPS_100epochs", "nnUNetTrainerCPS_250epochs"}
    assert len(COMMON) == len(set(COMMON)) == 641


def test_the_list_follows_the_table_of_parts(monkeypatch):
    new = composition.Part("Mean", "nowhere:Mean", 0, "supervision", "a mean teacher")
    monkeypatch.setattr(composition, "PARTS", (*PARTS, new))
    names = {composition.canonical_name([(part, 0) for part in parts]) for parts in composition._combinations()}
    assert {"nnUNetTrainerMean", "nnUNetTrainerMean_CWCD_ANUNet"} < names
    assert "nnUNetTrainerCPS_Mean" not in names


def test_what_is_written_out_is_what_the_table_says():
    written_out = [name for name in vars(common) if name.startswith("nnUNetTrainer") and name != "nnUNetTrainer"]
    assert set(written_out) < set(COMMON)
    for name in written_out:
        trainer = getattr(common, name)
        assert find_trainer(name) is trainer
        assert trainer.__bases__ == composition.bases_of(composition._parse(name, composition._tokens(name)))


@pytest.mark.parametrize("name", COMMON)
def test_all_that_is_listed_can_be_imported_and_pickled(name):
    trainer = getattr(trainers, name)
    assert name in dir(trainers)
    assert trainer.__name__ == name
    assert pickle.loads(pickle.dumps(trainer)) is trainer is find_trainer(name)


DOCS = Path(__file__).parents[2]


@pytest.mark.skipif(not (DOCS / "docs" / "trainers.md").is_file(), reason="no documentation beside the tests")
def test_documentation_follows_the_table():
    rows = re.findall(r"^\| (`[^|]+) \|", (DOCS / "docs" / "trainers.md").read_text(), re.MULTILINE)
    parts = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert parts[: len(PARTS)] == [part.name for part in PARTS]
    rows = re.findall(r"^\| (`nnUNetTrainer[^|]+) \|", (DOCS / "README.md").read_text(), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert all(find_trainer(name) is not None for name in names)
    alone = {part.name for part in PARTS if not part.has_number}
    shown = {token for name in names for token in name.removeprefix("nnUNetTrainer").split("_")}
    assert alone <= shown


@pytest.mark.parametrize("name", ["nnUNetTrainerCPSFoo", "nnUNetTrainerCPS_foo", "nnUNetTrainer_CPS"])
def test_a_malformed_name_is_no_attribute_and_says_why(name):
    assert not hasattr(trainers, name)
    with pytest.raises(AttributeError, match=f"no attribute '{name}': .*nnUNetTrainerCPS"):
        getattr(trainers, name)


def test_unknown_attribute_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'nnUNetTrainerNope'"):
        _ = trainers.nnUNetTrainerNope
