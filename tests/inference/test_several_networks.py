"""A choice of networks, and what they agree about while they predict as ever."""

import copy
import errno
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from inference.tiny_model import LABELS, REGIONS, TinyModel, make_nested_model, make_pair_model
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from pseudo_labels.panels import CPU, add_folds, add_network, change_weights, make_folds, read_checkpoint
from pseudo_labels.panels import write_checkpoint as write
from reference.naive_consensus import naive_consensus

from nnunet_ext.inference import ForcedSpacing, PredictionFailedError, Predictor, TargetSpacing
from nnunet_ext.inference.checks import BadInputError
from nnunet_ext.inference.logits_file import LogitsFile
from nnunet_ext.inference.options import run
from nnunet_ext.inference.spacing_report import SpacingReport
from nnunet_ext.model_sharing.export import export_model
from nnunet_ext.pseudo_labels.consensus import find_consensus
from nnunet_ext.pseudo_labels.members import find_members
from nnunet_ext.pseudo_labels.panel import Panel, prepare_for_all
from nnunet_ext.training.architecture import ENHANCED, SECOND, STOCK_NETWORKS
from nnunet_ext.training.checkpoints import SECOND_NETWORK, TEACHING

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (12, 18, 20)
CUBIC = {"resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}}
KINDS = {
    "classes": {},
    "regions": {"labels": REGIONS},
    "2d": {"configuration": "2d"},
    "turned": {"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]},
    "cubic": {"change": CUBIC},
    "ignore label": {"labels": LABELS | {"ignore": 4}},
}


@pytest.fixture
def model(tmp_path) -> TinyModel:
    """Two folds and one image."""
    return with_image(make_folds(tmp_path, 1, share=0.1))


def with_image(model: TinyModel, name: str = "a", seed: int = 1) -> TinyModel:
    model.add(name, seed, shape=SHAPE)
    return model


def predictor(model, kind=Predictor, folds=(0, 1), folder=None, **options):
    made = kind(device=torch.device("cpu"), allow_tqdm=False, tile_step_size=1.0, **options)
    made.initialize_from_trained_model_folder(str(folder or model.folder), folds, "checkpoint_final.pth")
    return made


def predict(model, output, kind=Predictor, overwrite=True, save_probabilities=False, **options):
    output.mkdir(exist_ok=True)
    made = predictor(model, kind, **options)
    made.predict_from_files_sequential(str(model.images), str(output), save_probabilities, overwrite)
    return output


def read(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def records(output: Path, name: str = "spacing_report") -> dict:
    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    return json.loads((output / f"{name}.json").read_text(), parse_constant=refuse)["cases"]


def add_second(model: TinyModel, key: str, fold: int) -> None:
    """Let a fold have a second network of the same kind."""
    content = read_checkpoint(model, fold)
    weights = change_weights(content["network_weights"], 20 + fold, 0.3)
    write(model, content | {key: {"student" if key == TEACHING else "network_weights": weights}}, fold)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def change_head(model: TinyModel, fold: int, value: float, channels: slice = slice(1)) -> None:
    """Let the network of a fold say something else: of the first channel, background, unless others are named."""
    content = copy.deepcopy(read_checkpoint(model, fold))
    content["network_weights"]["decoder.seg_layers.0.bias"][channels] = value
    write(model, content, fold)


def find_nothing(model: TinyModel, *folds: int) -> None:
    for fold in folds:
        change_head(model, fold, 500.0)


class TestNetwork:
    @pytest.mark.parametrize("key", [SECOND_NETWORK, TEACHING], ids=["CPS", "mean teacher"])
    def test_it_predicts_as_stock_does_with_what_export_writes(self, model, tmp_path, key):
        add_network(model, key)
        export_model(model.folder, tmp_path / "plain", "2", folds=[0])
        stock = predict(model, tmp_path / "stock", nnUNetPredictor, folds=(0,), folder=tmp_path / "plain")
        ours = predict(model, tmp_path / "ours", folds=(0,), network="2")
        first = predict(model, tmp_path / "first", nnUNetPredictor, folds=(0,))
        expected = read(stock / "a.nii.gz")
        np.testing.assert_array_equal(read(ours / "a.nii.gz"), expected)
        assert (read(first / "a.nii.gz") != expected).any()
        assert records(ours)["a"]["predicted_with"]["network"] == "2"

    @pytest.mark.parametrize("kind", ["classes", "regions", "2d"])
    @pytest.mark.parametrize("key", [SECOND_NETWORK, TEACHING, SECOND], ids=["CPS", "mean teacher", "pair"])
    def test_both_are_averaged_by_their_probabilities_in_each_window(self, tmp_path, key, kind):
        """Of two folds: stock with a network whose logits are those of the mean probability, then folds as ever."""
        arguments = copy.deepcopy(KINDS[kind])
        if key == SECOND:
            model = with_image(make_pair_model(tmp_path, 1, **arguments))
        else:
            model = with_image(make_folds(tmp_path, 1, share=0.1, **arguments))
            for fold in (0, 1):
                add_second(model, key, fold)
        made = predictor(model, network="both", use_gaussian=False)  # at borders fp16 has no digits left for it
        assert len(made.list_of_parameters) == 2
        image = torch.randn(1, 16, 20, 20, generator=torch.Generator().manual_seed(1))
        found = made.predict_logits_from_preprocessed_data(image)
        nonlin = torch.sigmoid if kind == "regions" else lambda logits: logits.softmax(1)

        class Naive(torch.nn.Module):
            def __init__(self, *networks):
                super().__init__()
                self.networks = torch.nn.ModuleList(networks)

            def forward(self, window):
                outputs = [network(window).double() for network in self.networks]
                there = sum(nonlin(output) for output in outputs).log()
                if kind != "regions":
                    return (there - np.log(2)).float()
                return (there - sum(nonlin(-output) for output in outputs).log()).float()

        total = 0
        for fold in (0, 1):
            alone = [predictor(model, folds=(fold,), network=network, use_gaussian=False) for network in ("1", "2")]
            for one in alone:
                one.network.load_state_dict(one.list_of_parameters[0])
            stock = predictor(model, nnUNetPredictor, folds=(fold,), use_gaussian=False)
            stock.network = Naive(*(one.network for one in alone))
            stock.list_of_parameters = [stock.network.state_dict()]
            total = total + stock.predict_logits_from_preprocessed_data(image)
        found, expected = nonlin(found.float()), nonlin(total.float() / 2)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)  # nnU-Net sums in fp16
        mean = sum(one.predict_logits_from_preprocessed_data(image) for one in alone) / 2
        assert not torch.allclose(found, nonlin(mean.float()), rtol=0, atol=2e-2)

    def test_both_of_all_folds(self, model):
        for fold in (0, 1):
            add_second(model, SECOND_NETWORK, fold)
        made = predictor(model, network="both", agreement=True)
        expected = [read_checkpoint(model, fold) for fold in (0, 1)]
        assert len(made.list_of_parameters) == 2
        for found, wanted in zip(made.list_of_parameters, expected, strict=True):
            weights = (wanted["network_weights"], wanted[SECOND_NETWORK]["network_weights"])
            both = {f"networks.{n}.{name}": value for n, one in enumerate(weights) for name, value in one.items()}
            assert found.keys() == both.keys()
            assert all(torch.equal(value, both[name]) for name, value in found.items())
        expected = [f"fold {fold}, network {network}" for fold in (0, 1) for network in (1, 2)]
        assert [name.rpartition(", ")[0] for name in made.network_names] == expected
        assert made.network.state_dict().keys() == made.list_of_parameters[0].keys()

    def test_the_first_is_stocks_own(self, model, monkeypatch):
        calls = []
        monkeypatch.setattr(nnUNetPredictor, "predict_from_files", lambda self, **call: calls.append(call))
        made = predictor(model, network="1")
        assert not made.has_options
        made.predict_from_files("in", "out")
        assert len(calls) == 1

    @pytest.mark.parametrize("network", ["2", "both"])
    def test_a_checkpoint_without_a_second_one(self, model, network):
        file = model.folder / "fold_0" / "checkpoint_final.pth"
        text = (
            f"{file} (of nnUNetTrainer) has no second network; predict with --network 1 (trainers of CPS, as "
            "nnUNetTrainerCPS, and of a mean teacher, as nnUNetTrainerSemi, have two)"
        )
        with pytest.raises(BadInputError, match=re.escape(text)):
            predictor(model, network=network)
        add_network(model, SECOND_NETWORK)  # of fold 0 alone
        with pytest.raises(BadInputError, match=r"fold_1/checkpoint_final\.pth \(of nnUNetTrainer\) has no second"):
            predictor(model, network=network)

    @pytest.mark.parametrize("network", ["2", "both"])
    def test_a_pruned_one(self, tmp_path, network):
        model = make_nested_model(tmp_path)
        add_network(model, SECOND_NETWORK)
        content = read_checkpoint(model)
        second = content[SECOND_NETWORK]["network_weights"]
        made = predictor(model, folds=(0,), network=network, prune_depth=1)
        (found,) = made.list_of_parameters
        first = content["network_weights"]
        both = {f"networks.{n}.{name}": value for n, one in enumerate((first, second)) for name, value in one.items()}
        wanted = second if network == "2" else both
        assert 0 < len(found) < len(wanted)
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
        assert made.network.state_dict().keys() == found.keys()
        output = predict(model, tmp_path / "out", folds=(0,), network=network, prune_depth=1)
        assert (output / "a.nii.gz").is_file()

    def test_a_pruned_one_that_is_not_there(self, tmp_path):
        with pytest.raises(BadInputError, match=r"\(of nnUNetTrainerANUNet\) has no second network"):
            predictor(make_nested_model(tmp_path), folds=(0,), network="2", prune_depth=1)

    def test_code_in_a_checkpoint_is_not_run(self, model):
        torch.save(read_checkpoint(model, 1) | {"evil": print}, model.folder / "fold_1" / "checkpoint_final.pth")
        with pytest.raises(BadInputError, match=r"fold_1/checkpoint_final\.pth cannot be loaded as .* --trust_model"):
            predictor(model, folds=(1,), network="2")

    def test_cases_of_another_network_are_named_when_continuing(self, model, tmp_path, capsys):
        add_network(model, SECOND_NETWORK)
        predict(model, tmp_path / "out", folds=(0,), network="both")
        predict(model, tmp_path / "out", folds=(0,), network="2", overwrite=False)
        assert "Kept as they are, though predicted with network both: a" in capsys.readouterr().out
        file = tmp_path / "out" / "spacing_report.json"
        content = json.loads(file.read_text())
        del content["cases"]["a"]["predicted_with"]["network"]  # as earlier versions wrote it
        file.write_text(json.dumps(content))
        predict(model, tmp_path / "out", folds=(0,), fast_export=True, overwrite=False)
        assert "network" not in capsys.readouterr().out.partition("Kept as they are")[2]
        predict(model, tmp_path / "out", folds=(0,), network="2", overwrite=False)
        assert "Kept as they are, though predicted with network 1: a" in capsys.readouterr().out


class TestPair:
    """Networks of two kinds in one model."""

    @pytest.fixture
    def model(self, tmp_path):
        return with_image(make_pair_model(tmp_path, 1))

    def test_without_a_choice_it_is_network_1(self, model, tmp_path):
        stock = predict(model, tmp_path / "stock", nnUNetPredictor)
        for name, options in {"ours": {}, "named": {"network": "1"}, "fast": {"fast_export": True}}.items():
            output = predict(model, tmp_path / name, **options)
            np.testing.assert_array_equal(read(output / "a.nii.gz"), read(stock / "a.nii.gz"))

    @pytest.mark.parametrize("network", ["2", "both"])
    @pytest.mark.parametrize(
        "options",
        [{}, {"fast_export": True}, {"spacing": TargetSpacing(1.5, 1.5, 2.5)}, {"agreement": True}],
        ids=["alone", "fast export", "target spacing", "agreement"],
    )
    def test_with_other_options(self, model, tmp_path, network, options):
        output = predict(model, tmp_path / "out", network=network, **options)
        assert len(np.unique(read(output / "a.nii.gz"))) > 1
        plain = predict(model, tmp_path / "plain", network=network)
        if "spacing" not in options:
            np.testing.assert_array_equal(read(output / "a.nii.gz"), read(plain / "a.nii.gz"))
        if "agreement" in options:
            found = records(output)["a"]["agreement"]
            panel = Panel([one for one in find_members([model.folder]) if network == "both" or one.network == "2"], CPU)
            assert len(found["networks"]) == len(panel.members)
            prepared = prepare_for_all((str(model.images / "a_0000.nii.gz"),), panel.models)
            assert found["classes"] == find_consensus(panel, prepared, tmp_path).agreement.class_scores()

    def test_network_2_is_the_other_architecture(self, model):
        made = predictor(model, network="2", folds=(0,))
        assert type(made.network).__name__ == "NestedAttentionUNet"
        second = read_checkpoint(model, 0)[SECOND_NETWORK]["network_weights"]
        assert same(made.network.state_dict(), second)

    def test_pruning(self, model):
        text = "network 1 of the model .* cannot be pruned: it is PlainConvUNet; its network 2 is a nested one, so pre"
        with pytest.raises(BadInputError, match=text):
            predictor(model, prune_depth=1)
        text = (
            r"has two networks of different kinds, of which network 2 alone can be cut \(.*\); predict with --network 2"
        )
        with pytest.raises(BadInputError, match=text):
            predictor(model, prune_depth=1, network="both")
        made = predictor(model, prune_depth=1, network="2")
        assert len(made.list_of_parameters) == 2
        with pytest.raises(
            BadInputError, match="prune depth must lie between 1 and 1, the depth of network 2 of the m"
        ):
            predictor(model, prune_depth=2, network="2")

    def test_pruning_without_a_nested_network(self, model):
        file = model.folder / "plans.json"
        plans = json.loads(file.read_text())
        plans["configurations"][model.configuration][SECOND]["network_class_name"] = ENHANCED[
            f"{STOCK_NETWORKS}PlainConvUNet"
        ]
        file.write_text(json.dumps(plans))
        text = r"cannot be pruned: network 1 is PlainConvUNet and network 2 is IFEPlainConvUNet, and only the nested"
        with pytest.raises(BadInputError, match=text):
            predictor(model, prune_depth=1, network="both")

    def test_weights_of_another_network(self, model):
        content = read_checkpoint(model, 1)
        content[SECOND_NETWORK]["network_weights"] = content["network_weights"]
        write(model, content, 1)
        with pytest.raises(BadInputError, match=r"fold_1/checkpoint_final\.pth lacks .*: its network_weights are not"):
            predictor(model, network="both")

    def test_code_in_the_second_architecture(self, model):
        file = model.folder / "plans.json"
        plans = json.loads(file.read_text())
        plans["configurations"][model.configuration][SECOND]["network_class_name"] = "os.system"
        file.write_text(json.dumps(plans))
        for options in ({"network": "2"}, {"network": "1", "fast_export": True}):
            with pytest.raises(BadInputError, match=r"the plans name 'os\.system' as network_class_name"):
                predictor(model, **options)


class TestSameLabelMap:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "options",
        [{}, {"fast_export": True}, {"spacing": TargetSpacing(1.5, 1.5, 2.5)}],
        ids=["alone", "fast export", "target spacing"],
    )
    def test_as_without_agreement(self, tmp_path, kind, options):
        model = with_image(make_folds(tmp_path, 1, share=0.1, **copy.deepcopy(KINDS[kind])))
        without = predict(model, tmp_path / "without", Predictor if options else nnUNetPredictor, **options)
        output = predict(model, tmp_path / "with", agreement=True, **options)
        expected = read(without / "a.nii.gz")
        assert len(np.unique(expected)) >= 3
        np.testing.assert_array_equal(read(output / "a.nii.gz"), expected)
        found = records(output)["a"]["agreement"]
        assert 0 < found["score"] < 1
        assert [path.name for path in output.iterdir() if path.name.startswith((".", "tmp"))] == []

    def test_images_are_resampled_by_stocks_function_to_the_last_bit(self, model):
        used = {
            name: predictor(model, **options).model_of_cases.stock_resampling
            for name, options in {
                "agreement": {"agreement": True},
                "fast": {"agreement": True, "fast_export": True},
                "spacing": {"agreement": True, "spacing": ForcedSpacing()},
            }.items()
        }
        assert used == {"agreement": True, "fast": False, "spacing": False}

    def test_probabilities(self, model, tmp_path):
        stock = predict(model, tmp_path / "stock", nnUNetPredictor, save_probabilities=True)
        output = predict(model, tmp_path / "with", agreement=True, save_probabilities=True)
        found, expected = (np.load(folder / "a.npz")["probabilities"] for folder in (output, stock))
        np.testing.assert_array_equal(found, expected)

    def test_both_networks(self, model, tmp_path):
        add_network(model, SECOND_NETWORK)
        without = predict(model, tmp_path / "without", folds=(0,), network="both")
        output = predict(model, tmp_path / "with", folds=(0,), network="both", agreement=True)
        np.testing.assert_array_equal(read(output / "a.nii.gz"), read(without / "a.nii.gz"))
        names = ["fold 0, network 1", "fold 0, network 2"]
        found = records(output)["a"]["agreement"]
        assert [name.rpartition(", ")[0] for name in found["networks"]] == names
        panel = Panel([one for one in find_members([model.folder]) if one.fold == 0], CPU)
        prepared = prepare_for_all((str(model.images / "a_0000.nii.gz"),), panel.models)
        assert found["classes"] == find_consensus(panel, prepared, tmp_path).agreement.class_scores()

    def test_a_cascade(self, tmp_path):
        first = with_image(make_folds(tmp_path / "first"))
        previous = predict(first, tmp_path / "previous", nnUNetPredictor, folds=(0,))
        model = with_image(make_folds(tmp_path / "second", 1, share=0.1, change={"previous_stage": "3d_lowres"}))
        maps = []
        for kind, options in ((nnUNetPredictor, {}), (Predictor, {"agreement": True})):
            (tmp_path / kind.__name__).mkdir()
            call = (str(model.images), str(tmp_path / kind.__name__), False, True, str(previous))
            predictor(model, kind, **options).predict_from_files_sequential(*call)
            maps.append(read(tmp_path / kind.__name__ / "a.nii.gz"))
        np.testing.assert_array_equal(*maps)
        assert 0 < records(tmp_path / "Predictor")["a"]["agreement"]["score"] < 1


class TestScore:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("fast", [False, True])
    def test_it_is_pseudo_labels(self, tmp_path, kind, fast):
        model = with_image(make_folds(tmp_path, 1, 2, share=0.1, **copy.deepcopy(KINDS[kind])))
        for fold in range(3):
            axes = (0, 1) if kind == "2d" else (0, 2)
            write(model, read_checkpoint(model, fold) | {"inference_allowed_mirroring_axes": axes}, fold)
        output = predict(model, tmp_path / "out", folds=(0, 1, 2), agreement=True, fast_export=fast)
        panel = Panel(find_members([model.folder]), CPU)
        prepared = prepare_for_all((str(model.images / "a_0000.nii.gz"),), panel.models)
        expected = find_consensus(panel, prepared, tmp_path).agreement.class_scores()
        found = records(output)["a"]["agreement"]
        assert found["classes"] == expected
        assert found["score"] == np.mean(list(expected.values()))
        assert len(found["networks"]) == 3

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_equals_the_naive_version(self, tmp_path, kind):
        model = with_image(make_folds(tmp_path, 1, share=0.1, **copy.deepcopy(KINDS[kind])))
        found = records(predict(model, tmp_path / "out", agreement=True))["a"]["agreement"]
        images = (str(model.images / "a_0000.nii.gz"),)
        _, consensus, maps = naive_consensus(find_members([model.folder]), images)
        regions = {name: np.atleast_1d(value) for name, value in KINDS[kind].get("labels", LABELS).items()}
        regions = {name: region for name, region in regions.items() if name not in ("background", "ignore")}
        dice = {}
        for name, region in regions.items():
            agreed, own = np.isin(consensus, region), [np.isin(one, region) for one in maps]
            dice[name] = np.mean([2 * (agreed & one).sum() / (agreed.sum() + one.sum()) for one in own])
        assert found["classes"] == pytest.approx(dice, abs=1e-3)
        assert found["score"] == pytest.approx(np.mean(list(dice.values())), abs=1e-3)

    def test_networks_that_are_alike(self, tmp_path):
        model = with_image(make_folds(tmp_path, 1, share=0.0))
        found = records(predict(model, tmp_path / "out", agreement=True))["a"]["agreement"]
        assert found["score"] == 1
        assert set(found["classes"].values()) == {1}

    def test_of_a_case_that_one_network_finds_nothing_in(self, model, tmp_path, capsys):
        find_nothing(model, 1)
        found = records(predict(model, tmp_path / "out", agreement=True))["a"]["agreement"]
        assert found["score"] is not None
        assert found["score"] <= 0.5  # against an empty network at most one of two agrees
        said = capsys.readouterr().out
        assert f"a: agreement of 2 networks {found['score']:.3f}, least about " in said

    def test_of_a_case_that_no_network_finds_anything_in(self, model, tmp_path, capsys):
        find_nothing(model, 0, 1)
        found = records(predict(model, tmp_path / "out", agreement=True))["a"]["agreement"]
        assert found["score"] is None
        assert found["classes"] == dict.fromkeys(("one", "two", "three"))
        assert "a: none of 2 networks finds any class, so their agreement has no score" in capsys.readouterr().out

    def test_a_class_that_nobody_finds_does_not_count(self, model, tmp_path):
        for fold in (0, 1):
            change_head(model, fold, -500.0, slice(3, 4))
        found = records(predict(model, tmp_path / "out", agreement=True))["a"]["agreement"]
        assert found["classes"].pop("three") is None
        assert found["score"] == np.mean(list(found["classes"].values()))

    def test_a_network_that_says_nan_costs_no_case(self, model, tmp_path):
        change_head(model, 1, float("nan"), slice(None))
        without = predict(model, tmp_path / "without", fast_export=True)
        output = predict(model, tmp_path / "out", fast_export=True, agreement=True)
        np.testing.assert_array_equal(read(output / "a.nii.gz"), read(without / "a.nii.gz"))
        score = records(output)["a"]["agreement"]["score"]
        assert score is None or 0 <= score <= 0.5

    def test_its_time_is_told_apart_from_that_of_the_network(self, model, tmp_path):
        seconds = records(predict(model, tmp_path / "out", agreement=True))["a"]["seconds"]
        assert set(seconds) == {"reading", "preprocessing", "network", "agreement", "resampling", "writing"}
        assert all(value >= 0 for value in seconds.values())

    def test_arrays(self, model, capsys):
        made = predictor(model, agreement=True)
        array, properties = np.full((1, *SHAPE), 100, np.float32), {"spacing": [3.0, 1.0, 1.0]}
        array += np.random.default_rng(0).normal(0, 20, array.shape).clip(-90).astype(np.float32)
        stock = predictor(model, nnUNetPredictor).predict_single_npy_array(array, dict(properties))
        np.testing.assert_array_equal(made.predict_single_npy_array(array, dict(properties)), stock)
        assert made.agreements["the image"]["score"] is not None
        assert "the image: agreement of 2 networks" in capsys.readouterr().out
        (found,) = made.predict_from_list_of_npy_arrays(array, None, dict(properties), None, 0, False, 0)
        np.testing.assert_array_equal(found, stock)
        assert made.agreements["image 0"] == made.agreements["the image"]
        made.min_agreement = 1.0
        capsys.readouterr()
        made.predict_from_list_of_npy_arrays(array, None, dict(properties), None, 0, False, 0)
        assert "Agreement is below 1 in 1 of 1 case(s), the least first:\n  image 0: " in capsys.readouterr().out


class TestRefused:
    @pytest.mark.parametrize("options", [{"agreement": True}, {"min_agreement": 0.8}])
    def test_one_network(self, model, options):
        text = (
            "agreement needs two networks or more, got one (fold 1, network 1); name more folds with -f, or pass "
            "--network both for a model of CPS (nnUNetTrainerCPS) or of a mean teacher (nnUNetTrainerSemi), which has "
            "two networks a fold"
        )
        with pytest.raises(BadInputError, match=re.escape(text)):
            predictor(model, folds=(1,), **options)
        with pytest.raises(BadInputError, match=r"got one \(fold 0, network 2\)"):
            predictor(add_network(model, SECOND_NETWORK), folds=(0,), network="2", **options)

    def test_all_folds_are_those_that_nnunet_takes(self, model):
        (model.folder / "fold_1").rename(model.folder / "fold_all")
        with pytest.raises(BadInputError, match=r"got one \(fold 0, network 1\)"):
            predictor(model, folds=None, agreement=True)
        assert len(predictor(model, folds=(0, "all"), agreement=True).list_of_parameters) == 2

    def test_a_fold_twice(self, model):
        with pytest.raises(BadInputError, match=r"-f names a fold twice \(0 1 0\), which would agree with itself"):
            predictor(model, folds=(0, 1, "0"), agreement=True)

    def test_the_same_checkpoint_in_two_folds(self, model):
        write(model, read_checkpoint(model, 0), 1)
        with pytest.raises(BadInputError, match=r"the folds 0 and 1 of .* have the very same checkpoint_final\.pth"):
            predictor(model, agreement=True)

    def test_labels_of_somebody_elses_making(self, model, monkeypatch):
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        class Own(LabelManager):
            pass

        monkeypatch.setattr(PlansManager, "label_manager_class", property(lambda _: Own))
        text = r"agreement is not defined for .*model: the plans have a label manager of their own \(Own\); predict"
        with pytest.raises(BadInputError, match=text):
            predictor(model, agreement=True)

    def test_a_model_that_was_set_by_hand(self, model, tmp_path):
        loaded = predictor(model)
        made = Predictor(device=torch.device("cpu"), allow_tqdm=False, agreement=True)
        managers = loaded.plans_manager, loaded.configuration_manager

        def initialize(parameters):
            made.manual_initialization(
                loaded.network, *managers, parameters, loaded.dataset_json, "nnUNetTrainer", None
            )

        initialize(loaded.list_of_parameters[:1])
        with pytest.raises(BadInputError, match="agreement needs two networks or more, got 1; name more folds"):
            made.predict_from_files_sequential(str(model.images), str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        initialize(loaded.list_of_parameters)
        assert made.network_names == ["1", "2"]
        made.predict_from_files_sequential(str(model.images), str(tmp_path / "out"))
        assert records(tmp_path / "out")["a"]["agreement"]["networks"] == ["1", "2"]

    def test_preprocessed_data(self, model):
        with pytest.raises(BadInputError, match="fast_export and agreement come too late"):
            predictor(model, agreement=True).predict_from_data_iterator([])

    def test_a_preprocessor_with_a_way_of_its_own(self, model, monkeypatch):
        import nnunetv2.utilities.plans_handling.plans_handler as handler
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

        class Own(DefaultPreprocessor):
            def run_case(self, *arguments):
                return super().run_case(*arguments)

        monkeypatch.setattr(handler.ConfigurationManager, "preprocessor_class", property(lambda _: Own))
        with pytest.raises(
            BadInputError, match="Own has a run_case of its own, which spacings, propagate, fast_export and agree"
        ):
            predictor(model, agreement=True).predict_from_files_sequential(str(model.images), None)

    @pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
    def test_scores_that_there_are_not(self, score):
        with pytest.raises(ValueError, match=f"min_agreement must lie between 0 and 1, got {score}"):
            Predictor(device=torch.device("cpu"), min_agreement=score)

    def test_networks_that_there_are_not(self):
        with pytest.raises(ValueError, match="network must be one of 1, 2, both, got '3'"):
            Predictor(device=torch.device("cpu"), network="3")


class TestLeastAgreement:
    @pytest.fixture
    def three(self, model):
        """Three images, of which one is uniform: no class is found in it."""
        with_image(with_image(model, "b", 2), "c", 3)
        return model

    def scores(self, output, name="spacing_report"):
        return {case: record["agreement"]["score"] for case, record in records(output, name).items()}

    def test_the_least_come_first(self, three, tmp_path, capsys):
        output = predict(three, tmp_path / "out", min_agreement=1.0)
        scores = self.scores(output)
        lines = capsys.readouterr().out.partition("Agreement is below 1 in 3 of 3 case(s), the least first:\n")[2]
        order = [line.split(":")[0].strip() for line in lines.splitlines()]
        assert order == sorted(scores, key=scores.get)

    def test_cases_done_before_are_listed_from_their_record(self, model, tmp_path, capsys):
        output = predict(model, tmp_path / "out", agreement=True)
        before = self.scores(output)["a"]
        with_image(model, "b", 2)
        capsys.readouterr()
        predict(model, output, min_agreement=1.0, overwrite=False)
        said = capsys.readouterr().out
        assert "That's 1 cases." in said
        assert "Agreement is below 1 in 2 of 2 case(s), the least first:" in said
        assert f"  a: {before:.3f}, least about " in said
        assert self.scores(output)["a"] == before

    def test_cases_done_before_without_agreement_or_by_others_are_named(self, model, tmp_path, capsys):
        output = predict(model, tmp_path / "out", nnUNetPredictor)
        with_image(model, "b", 2)
        predict(model, output, fast_export=True, overwrite=False)
        add_folds(with_image(model, "c", 3), 2)
        predict(model, output, folds=(0, 2), agreement=True, overwrite=False)
        with_image(model, "d", 4)
        capsys.readouterr()
        predict(model, output, agreement=True, overwrite=False)
        said = capsys.readouterr().out
        assert "Predicted before without --agreement, so there is no score: a, b; remove their label maps" in said
        digits = "[0-9a-f]{12}"
        before = rf"by other networks \(fold 0, network 1, {digits}; fold 2, network 1, {digits}\): c"
        assert re.search(before, said)

    def test_networks_that_were_trained_anew_are_others_and_their_order_is_none(self, model, tmp_path, capsys):
        output = predict(model, tmp_path / "out", agreement=True)
        with_image(model, "b", 2)
        capsys.readouterr()
        predict(model, output, folds=(1, 0), agreement=True, overwrite=False)
        assert "by other networks" not in capsys.readouterr().out
        change_head(model, 1, 0.5)
        with_image(model, "c", 3)
        predict(model, output, agreement=True, overwrite=False)
        assert re.search(r"by other networks \(.*\): a, b", capsys.readouterr().out)

    def test_scores_of_later_parts_are_not_lost_to_an_earlier_whole(self, model, tmp_path, capsys):
        output = predict(model, tmp_path / "out", fast_export=True)
        made = predictor(model, agreement=True)
        made.predict_from_files(str(model.images), str(output), False, True, 0, 0, num_parts=2, part_id=0)
        with_image(model, "b", 2)
        capsys.readouterr()
        predict(model, output, min_agreement=1.0, overwrite=False)
        assert "without --agreement" not in capsys.readouterr().out
        assert set(self.scores(output)) == {"a", "b"}

    def test_cases_of_other_runs_in_the_folder_are_none_of_this_one(self, model, tmp_path, capsys):
        output = predict(model, tmp_path / "out", agreement=True)
        (model.images / "a_0000.nii.gz").unlink()
        with_image(model, "b", 2)
        capsys.readouterr()
        predict(model, output, min_agreement=1.0, overwrite=False)
        said = capsys.readouterr().out
        assert "Agreement is below 1 in 1 of 1 case(s), the least first:\n  b: " in said
        assert sorted(self.scores(output)) == ["a", "b"]

    def test_a_killed_run_keeps_the_scores_that_it_had(self, three, tmp_path, monkeypatch, capsys):
        with monkeypatch.context() as patch:
            patch.setattr(SpacingReport, "add", lambda *_: None)
            output = predict(three, tmp_path / "out", agreement=True)
        capsys.readouterr()
        predict(three, output, min_agreement=1.0, overwrite=False)
        assert "Agreement is below 1 in 3 of 3 case(s)" in capsys.readouterr().out
        assert all(0 < score < 1 for score in self.scores(output).values())

    def test_parts_list_their_own(self, three, tmp_path, capsys):
        whole = self.scores(predict(three, tmp_path / "whole", agreement=True))
        capsys.readouterr()
        for part, cases in enumerate(("ac", "b")):
            output = predict(three, tmp_path / "out", min_agreement=1.0, part=(part, 2))
            said = capsys.readouterr().out
            assert f"Agreement is below 1 in {len(cases)} of {len(cases)} case(s)" in said
            assert self.scores(output, f"spacing_report_part_{part}_of_2") == {case: whole[case] for case in cases}
        predict(three, output, min_agreement=1.0, part=(1, 2), overwrite=False)
        assert "Agreement is below 1 in 1 of 1 case(s)" in capsys.readouterr().out

    def test_a_bad_case_costs_no_list(self, three, tmp_path, capsys):
        (three.images / "b_0000.nii.gz").write_bytes(b"no image")
        with pytest.raises(PredictionFailedError, match=r"1 of 3 case\(s\) failed"):
            predict(three, tmp_path / "out", min_agreement=1.0)
        said = capsys.readouterr().out
        assert "Agreement is below 1 in 2 of 2 case(s), the least first:" in said
        assert "there is no score" not in said

    def test_with_processes_it_is_the_same(self, model, tmp_path):
        expected = records(predict(model, tmp_path / "here", agreement=True))["a"]["agreement"]
        call = {"num_processes_preprocessing": 1, "num_processes_segmentation_export": 1}
        predictor(model, agreement=True).predict_from_files(str(model.images), str(tmp_path / "out"), **call)
        assert records(tmp_path / "out")["a"]["agreement"] == expected
        np.testing.assert_array_equal(read(tmp_path / "out" / "a.nii.gz"), read(tmp_path / "here" / "a.nii.gz"))


def test_no_room_for_the_logits_stops_the_run_and_leaves_nothing(model, tmp_path, monkeypatch):
    def full(self, logits):
        raise OSError(errno.ENOSPC, "No space left on device")

    with_image(model, "b", 2)
    monkeypatch.setattr(LogitsFile, "write", full)
    with pytest.raises(PredictionFailedError, match="no room on its disk") as caught:
        predict(model, tmp_path / "out", agreement=True)
    assert caught.value.not_begun == ["b"]
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["dataset.json", "plans.json", "predict_from_raw_data_args.json"]


def test_a_comparison_that_fails_costs_the_score_alone(model, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("the comparison broke")

    monkeypatch.setattr("nnunet_ext.inference.case_agreement.compare", fail)
    output = predict(model, tmp_path / "out", min_agreement=0.5)
    without = predict(model, tmp_path / "without", nnUNetPredictor)
    np.testing.assert_array_equal(read(output / "a.nii.gz"), read(without / "a.nii.gz"))
    said = capsys.readouterr().out
    assert "a: predicted, but the networks could not be compared: the comparison broke" in said
    assert "Predicted, but not compared: a; spacing_report.json says why" in said
    assert records(output)["a"]["agreement_failed"] == "the comparison broke"


def test_folders_are_made_as_without_agreement(model, tmp_path):
    made = predictor(model, agreement=True)
    images = [[str(model.images / "a_0000.nii.gz")]]
    made.predict_from_files_sequential(images, [str(tmp_path / "new" / "folder" / "a")])
    assert (tmp_path / "new" / "folder" / "a.nii.gz").is_file()


def test_a_network_that_fails_costs_its_case_alone(model, tmp_path, monkeypatch):
    with_image(model, "b", 2)
    original, calls = nnUNetPredictor.predict_sliding_window_return_logits, []

    def fails_once(self, image):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("odd")
        return original(self, image)

    monkeypatch.setattr(nnUNetPredictor, "predict_sliding_window_return_logits", fails_once)
    with pytest.raises(PredictionFailedError, match=r"1 of 2 case.*\n  a: odd"):
        predict(model, tmp_path / "out", agreement=True)
    assert list(records(tmp_path / "out")) == ["b"]


class TestCommand:
    @pytest.fixture
    def command(self, model, tmp_path, monkeypatch):
        """Call nnUNetv2_predict_from_modelfolder in this process; returns its status."""

        def command(*more):
            arguments = ["-i", model.images, "-o", tmp_path / "out", "-m", model.folder, "-device", "cpu", "-npp", 1]
            arguments += ["-nps", 1, "--disable_tta", "--disable_progress_bar", *more]
            monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict_from_modelfolder", *map(str, arguments)])
            names = vars(predict_from_raw_data)
            entry = predict_from_raw_data.predict_entry_point_modelfolder
            return run(getattr(entry, "__wrapped__", entry), names)

        return command

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (
                ["-f", 0, "--agreement"],
                "error: agreement needs two networks or more, got one (fold 0, network 1); name",
            ),
            (["-f", 0, "--min_agreement", 0.5], "error: agreement needs two networks or more, got one"),
            (["-f", 0, 0, "--agreement"], "error: -f names a fold twice (0 0), which would agree with itself"),
            (["-f", 0, "--network", "both"], "(of nnUNetTrainer) has no second network; predict with --network 1"),
            (["-f", 0, "--network", "2"], "(of nnUNetTrainer) has no second network; predict with --network 1"),
        ],
    )
    def test_what_cannot_be_is_one_line_before_anything_is_written(self, command, tmp_path, arguments, text, capsys):
        before = sorted(tmp_path.rglob("*"))
        assert command(*arguments) == 1
        error = capsys.readouterr().err
        assert text in error
        assert len(error.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before

    def test_cases_below_do_not_change_the_status(self, command, tmp_path, capsys):
        assert not command("-f", 0, 1, "--min_agreement", 1)
        assert "Agreement is below 1 in 1 of 1 case(s), the least first:\n  a: " in capsys.readouterr().out
        assert 0 < records(tmp_path / "out")["a"]["agreement"]["score"] < 1
