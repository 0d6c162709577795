"""Nested networks cut at a depth, through nnU-Net's predictor."""

import json
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from data.tiny_dataset import architecture
from inference.tiny_model import TinyModel, make_model
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnunet_ext.inference import Predictor
from nnunet_ext.inference.predictor import BadInputError
from nnunet_ext.model_sharing.pruning import load_pruned, pruned_network, write_pruned
from nnunet_ext.networks import NestedAttentionUNet
from nnunet_ext.trainers import find_trainer
from nnunet_ext.training.architecture import NESTED


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TinyModel:
    """A nested model of depth 2 with two folds."""
    made = make_model(tmp_path_factory.mktemp("nested"))
    plans = json.loads((made.folder / "plans.json").read_text())
    nested = architecture(3, 3) | {"network_class_name": NESTED}
    nested["arch_kwargs"] |= {"aggregation": "concat", "gate_ratio": 0.5, "depth": 2}
    plans["configurations"]["3d_fullres"]["architecture"] = nested
    (made.folder / "plans.json").write_text(json.dumps(plans))
    write_folds(made.folder, plans)
    made.add("a", 1)
    return made


def write_folds(folder: Path, plans: dict) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    trainer, manager = find_trainer("nnUNetTrainerANUNet"), PlansManager(plans)
    for fold in range(2):
        torch.manual_seed(fold)
        network = trainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 4, False)
        file = folder / f"fold_{fold}" / "checkpoint_final.pth"
        file.parent.mkdir(exist_ok=True)
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainerANUNet",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        torch.save(checkpoint, file)


def predictor(model: TinyModel, kind=Predictor, folds=(0, 1), folder=None, **options):
    made = kind(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False, **options)
    made.initialize_from_trained_model_folder(str(folder or model.folder), folds, "checkpoint_final.pth")
    return made


def outputs_of_the_whole(model: TinyModel, image: torch.Tensor) -> list[torch.Tensor]:
    """Return the logits of each depth, depth 1 first, averaged over the folds as nnU-Net averages them."""
    whole = predictor(model, nnUNetPredictor)
    found = [[], []]
    for parameters in whole.list_of_parameters:
        whole.network.load_state_dict(parameters)
        whole.network.eval().decoder.deep_supervision = True
        with torch.no_grad():
            for logits, output in zip(found, reversed(whole.network(image[None])), strict=True):
                logits.append(output[0])
    return [sum(logits) / len(logits) for logits in found]


def test_the_depths_are_outputs_of_the_whole(model):
    image = torch.randn((1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    expected = outputs_of_the_whole(model, image)
    for depth in (1, 2):
        cut = predictor(model, prune_depth=depth, use_gaussian=False)
        assert isinstance(cut.network, NestedAttentionUNet)
        assert cut.network.depth == depth
        assert all(len(one) == len(cut.network.state_dict()) for one in cut.list_of_parameters)
        assert cut.allowed_mirroring_axes == (0, 1, 2)
        logits = cut.predict_logits_from_preprocessed_data(image)
        torch.testing.assert_close(logits.float(), expected[depth - 1], rtol=2e-3, atol=2e-3)


def test_the_whole_depth_is_the_stock_prediction(model, tmp_path):
    for kind, name, options in ((nnUNetPredictor, "stock", {}), (Predictor, "whole", {"prune_depth": 2})):
        (tmp_path / name).mkdir()
        predictor(model, kind, **options).predict_from_files_sequential(str(model.images), str(tmp_path / name))
    from SimpleITK import GetArrayFromImage, ReadImage

    stock, whole = (GetArrayFromImage(ReadImage(str(tmp_path / n / "a.nii.gz"))) for n in ("stock", "whole"))
    assert np.array_equal(stock, whole)
    report = json.loads((tmp_path / "whole" / "spacing_report.json").read_text())
    assert report["cases"]["a.nii.gz".removesuffix(".nii.gz")]["predicted_with"]["prune_depth"] == 2


@pytest.mark.parametrize("depth", [0, 3, -1])
def test_a_depth_that_is_not_there(model, depth):
    with pytest.raises(
        BadInputError, match=f"prune depth must lie between 1 and 2, the depth of the model .*, got {depth}"
    ):
        predictor(model, prune_depth=depth)


def test_another_architecture(tmp_path):
    plain = make_model(tmp_path)
    message = "cannot be pruned: its network is PlainConvUNet, and only the nested networks of trainers with ANUNet"
    with pytest.raises(BadInputError, match=message):
        plain.predictor(Predictor, prune_depth=1)


def test_what_is_missing_is_one_line(model, tmp_path):
    with pytest.raises(BadInputError, match="has no fold_7/checkpoint_final.pth"):
        predictor(model, folds=(7,), prune_depth=1)
    other = tmp_path / "other"
    shutil.copytree(model.folder, other)
    file = other / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    del content["network_weights"]["decoder.ups.0_1.weight"]
    torch.save(content, file)
    with pytest.raises(BadInputError, match="lacks decoder.ups.0_1.weight: its network_weights are not those of"):
        predictor(model, folder=other, prune_depth=1)
    content["network_weights"]["decoder.ups.0_1.weight"] = torch.zeros(3)
    torch.save(content, file)
    with pytest.raises(BadInputError, match=r"has decoder.ups.0_1.weight of the shape \(3,\), expected"):
        predictor(model, folder=other, prune_depth=1)


def test_plans_that_name_a_program_start_none(model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model.folder, other)
    plans = json.loads((other / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    architecture |= {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": ["touch", str(tmp_path / "ran")]}}
    (other / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(BadInputError, match="the plans name 'subprocess.Popen' as nonlin, expected a network or a lay"):
        predictor(model, folder=other, prune_depth=1)
    with pytest.raises(ValueError, match="the plans name 'subprocess.Popen' as nonlin"):
        write_pruned(other, tmp_path / "written", 1)
    with pytest.raises(ValueError, match="the plans name 'subprocess.Popen' as nonlin"):
        pruned_network(plans, "3d_fullres", json.loads((other / "dataset.json").read_text()), 1)
    assert not (tmp_path / "ran").exists()


class OwnPreprocessor(DefaultPreprocessor):
    """One that prepares cases in a way of its own."""

    calls: ClassVar[list] = []

    def run_case(self, *args, **kwargs):
        self.calls.append(args)
        return super().run_case(*args, **kwargs)


def test_a_preprocessor_of_the_users_is_kept(model, tmp_path, monkeypatch):
    made = predictor(model, prune_depth=1)
    monkeypatch.setattr(type(made.configuration_manager), "preprocessor_class", OwnPreprocessor)
    OwnPreprocessor.calls.clear()
    (tmp_path / "out").mkdir()
    made.predict_from_files_sequential(str(model.images), str(tmp_path / "out"))
    assert len(OwnPreprocessor.calls) == 1
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_preprocessed_data_can_be_predicted(model, tmp_path):
    cut = predictor(model, prune_depth=1)
    data = torch.randn((1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(cut.predict_logits_from_preprocessed_data(data), cut.predict_logits_from_preprocessed_data(data))
    assert cut.predict_from_data_iterator(iter(()), False, 1) == []


def test_a_pruned_model_predicts_without_the_option(model, tmp_path):
    assert write_pruned(model.folder, tmp_path / "pruned", 1) == [0, 1]
    image = torch.randn((1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    stock = predictor(model, nnUNetPredictor, folder=tmp_path / "pruned")
    assert stock.network.depth == 1
    expected = predictor(model, prune_depth=1).predict_logits_from_preprocessed_data(image)
    assert torch.equal(stock.predict_logits_from_preprocessed_data(image), expected)
    size = sum(f.stat().st_size for f in (tmp_path / "pruned").rglob("*.pth"))
    assert size < 0.7 * sum(f.stat().st_size for f in model.folder.rglob("*.pth"))
    with pytest.raises(ValueError, match="prune depth must lie between 1 and 1"):
        load_pruned(tmp_path / "pruned", (0,), "checkpoint_final.pth", 2)
    with pytest.raises(FileExistsError, match="exists; pass --overwrite"):
        write_pruned(model.folder, tmp_path / "pruned", 1)
    assert write_pruned(model.folder, tmp_path / "pruned", 2, folds=[1], overwrite=True) == [1]
    assert not (tmp_path / "pruned" / "fold_0").exists()


@pytest.mark.parametrize("inside", ["fold_0", "pruned"])
def test_no_pruned_model_is_written_into_the_model(model, inside):
    before = sorted(model.folder.rglob("*"))
    with pytest.raises(ValueError, match=f"{inside} lies inside the model .*; name another place"):
        write_pruned(model.folder, model.folder / inside, 1, overwrite=True)
    assert sorted(model.folder.rglob("*")) == before


def test_only_what_was_pruned_before_is_replaced(model, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a_0000.nii.gz").write_bytes(b"irreplaceable")
    export = tmp_path / "export"
    write_pruned(model.folder, export, 1)
    (export / "nnunet_ext_prune.json").rename(export / "nnunet_ext_export.json")
    for place in (tmp_path / "raw", export):
        with pytest.raises(
            FileExistsError, match=r"has no nnunet_ext_prune\.json, .* --overwrite_written replaces only"
        ):
            write_pruned(model.folder, place, 1, overwrite=True)
    assert (tmp_path / "raw" / "a_0000.nii.gz").read_bytes() == b"irreplaceable"
    with pytest.raises(
        ValueError, match="a pruned model is written as a folder, got .*m.ZIP; nnUNetv2_export_model_to"
    ):
        write_pruned(model.folder, tmp_path / "m.ZIP", 1)


def test_folds_are_found_as_nnunet_finds_them(model):
    assert len(load_pruned(model.folder, None, "checkpoint_final.pth", 1).parameters) == 2
    with pytest.raises(FileNotFoundError, match="has no fold_4/checkpoint_final.pth"):
        load_pruned(model.folder, (4,), "checkpoint_final.pth", 1)
