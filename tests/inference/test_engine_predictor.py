"""The predictor with another engine, another precision, and windows that are not run."""

import json
import threading

import numpy as np
import pytest
import SimpleITK
import torch
from inference.tiny_model import REGIONS, make_enhanced_model, make_model, make_nested_model, make_pair_model
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from pseudo_labels.panels import make_folds

import nnunet_ext.inference.engine_predictor as subject
from nnunet_ext.engines.engine import ConversionError, EngineChoice
from nnunet_ext.inference import Predictor
from nnunet_ext.inference.checks import BadInputError

CPU = torch.device("cpu")
IMAGE = torch.randn(1, 20, 22, 24, generator=torch.Generator().manual_seed(1))
MODELS = {
    "classes": lambda root: make_folds(root, 1, share=0.1),
    "regions": lambda root: make_folds(root, 1, share=0.1, labels=REGIONS),
    "2d": lambda root: make_folds(root, 1, share=0.1, configuration="2d"),
    "pair": lambda root: make_pair_model(root, 1),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def predictor(model, kind=Predictor, folds=(0,), **options):
    # at borders weights leave float16 no digits, so that rounding decides there, in nnU-Net as well
    plain = {"use_mirroring": options.pop("mirroring", False), "use_gaussian": options.pop("weights", False)}
    made = kind(device=CPU, allow_tqdm=False, **plain, **options)
    made.initialize_from_trained_model_folder(str(model.folder), folds, "checkpoint_final.pth")
    made.allowed_mirroring_axes = [0, 1]
    return made


def unlike(one, other):
    """How far logits are from others, as a share of these."""
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    return MODELS[request.param](tmp_path)


def test_torch_is_nnunet_s_prediction_to_the_last_bit(model):
    options = {"mirroring": True, "weights": True, "folds": (0, 1)}
    expected = predictor(model, nnUNetPredictor, **options).predict_logits_from_preprocessed_data(IMAGE)
    found = predictor(model, engine="torch", **options).predict_logits_from_preprocessed_data(IMAGE)
    assert torch.equal(found, expected)


def test_skipping_nothing_changes_nothing(model):
    expected = predictor(model, nnUNetPredictor).predict_logits_from_preprocessed_data(IMAGE)
    made = predictor(model, skip_background=True)
    assert torch.equal(made.predict_logits_from_preprocessed_data(IMAGE), expected)
    assert made.skipped == 0


def test_both_networks_are_averaged_by_an_engine(tmp_path):
    model = make_pair_model(tmp_path)
    expected = predictor(model, network="both").predict_logits_from_preprocessed_data(IMAGE)
    found = predictor(model, network="both", engine="openvino").predict_logits_from_preprocessed_data(IMAGE)
    assert unlike(found, expected) < 1e-3


def test_each_fold_has_a_converted_network_of_its_own(tmp_path):
    model = make_folds(tmp_path, 1, share=0.1)
    expected = predictor(model, nnUNetPredictor, (0, 1)).predict_logits_from_preprocessed_data(IMAGE)
    made = predictor(model, folds=(0, 1), engine="openvino")
    for _ in range(2):
        assert unlike(made.predict_logits_from_preprocessed_data(IMAGE), expected) < 1e-3
    assert len(list(model.folder.glob("openvino_*.xml"))) == 2
    assert made.engine_used == "openvino, float32"


@pytest.mark.parametrize("make", [make_nested_model, make_enhanced_model])
def test_networks_of_ours_run_by_openvino(tmp_path, make):
    model = make(tmp_path)
    options = {"prune_depth": 1} if make is make_nested_model else {}
    expected = predictor(model, **options, engine="torch").predict_logits_from_preprocessed_data(IMAGE)
    found = predictor(model, **options, engine="openvino").predict_logits_from_preprocessed_data(IMAGE)
    assert unlike(found, expected) < 1e-3
    assert list(model.folder.glob("openvino_*.xml"))


def test_the_first_engine_is_made_while_a_case_is_prepared(tmp_path, monkeypatch):
    made = []

    def make_engine(*arguments):
        made.append(threading.current_thread())
        return make(*arguments)

    make = subject.make_engine
    monkeypatch.setattr(subject, "make_engine", make_engine)
    model = make_model(tmp_path)
    expected = predictor(model, nnUNetPredictor).predict_logits_from_preprocessed_data(IMAGE)
    ours = predictor(model, engine="openvino")
    ours.warm_up()
    assert unlike(ours.predict_logits_from_preprocessed_data(IMAGE), expected) < 1e-3
    assert len(made) == 1
    assert made[0] is not threading.main_thread()
    monkeypatch.setattr(subject, "make_engine", lambda *arguments: 1 / 0)
    other = predictor(model, engine="openvino")
    other.warm_up()
    with pytest.raises(ZeroDivisionError):
        other.predict_logits_from_preprocessed_data(IMAGE)


def test_where_a_network_cannot_be_converted_torch_is_used(tmp_path, monkeypatch, capsys):
    def make_engine(choice, *arguments):
        if choice.engine == "openvino":
            raise ConversionError("no operator aten::nothing")
        return make(choice, *arguments)

    make = subject.make_engine
    monkeypatch.setattr(subject, "make_engine", make_engine)
    model = make_model(tmp_path)
    expected = predictor(model, nnUNetPredictor).predict_logits_from_preprocessed_data(IMAGE)
    made = predictor(model, engine="openvino")
    for _ in range(2):
        assert torch.equal(made.predict_logits_from_preprocessed_data(IMAGE), expected)
    text = capsys.readouterr().out
    assert text.count("no operator aten::nothing; torch is used") == 1
    assert made.engine_used == "torch, float32"


def test_an_automatic_choice_knows_how_many_windows_there_will_be(tmp_path, monkeypatch, capsys):
    asked = []

    def choose(engine, precision, device, windows, seconds):
        assert 0 < seconds < 10
        asked.append((engine, windows))
        return EngineChoice("torch", "float32", "few windows")

    monkeypatch.setattr(subject, "choose", choose)
    model = make_folds(tmp_path, 1, share=0.1)
    made = predictor(model, folds=(0, 1), engine="auto", mirroring=True)
    made.expected_cases = 5
    made.predict_logits_from_preprocessed_data(IMAGE)
    made.predict_logits_from_preprocessed_data(IMAGE)
    places = len(subject.compat.sliding_window_slicers(made, (20, 22, 24)))
    assert asked == [("auto", places * 4 * 2 * 5)]  # mirrored versions, folds, cases
    assert capsys.readouterr().out.count("--engine auto: torch, float32 (few windows).") == 1


def test_arrays_one_after_the_other_add_up(tmp_path, monkeypatch):
    asked = []

    def choose(engine, precision, device, windows, seconds):
        asked.append(windows)
        return EngineChoice("torch", "float32", "few windows")

    monkeypatch.setattr(subject, "choose", choose)
    made = predictor(make_model(tmp_path), engine="auto")
    for _ in range(3):
        made.predict_logits_from_preprocessed_data(IMAGE)
    assert asked[1] == asked[0]
    assert asked[2] == 2 * asked[0]


def test_what_is_not_there_is_refused_at_once():
    with pytest.raises(BadInputError, match="engine"):
        Predictor(device=CPU, engine="nothing")
    with pytest.raises(BadInputError, match="float16"):
        Predictor(device=CPU, precision="float16")


class Bright(torch.nn.Module):
    """Class 1 is what is no air, class 2 what is brighter than most."""

    def forward(self, image):
        smooth = torch.nn.functional.avg_pool3d(image, 3, 1, 1, count_include_pad=False)
        return torch.cat([torch.zeros_like(smooth), smooth + 2, 10 * (smooth - 1), smooth - 50], 1)


def test_a_scan_with_air_is_predicted_as_without_skipping(tmp_path):
    """Noise in air, and an organ at the border of the body; the record says what was not run."""
    statistics = {"mean": 0.0, "std": 100.0, "percentile_00_5": -1020.0, "percentile_99_5": 300.0}
    properties = {"0": statistics | {"median": 100.0, "min": -1024.0, "max": 300.0}}
    change = {"normalization_schemes": ["CTNormalization"]}
    model = make_model(tmp_path, change=change, foreground_intensity_properties_per_channel=properties)
    file = model.add("scan", 1, spacing=(2.0, 1.5, 1.25), shape=(24, 60, 64))
    image = SimpleITK.ReadImage(str(file))
    array = SimpleITK.GetArrayFromImage(image)
    array[:, 30:] = np.random.default_rng(0).normal(-1000, 30, array[:, 30:].shape)
    array[:, 30:32, 40:50] = 150  # at the border of the body
    changed = SimpleITK.GetImageFromArray(array)
    changed.CopyInformation(image)
    SimpleITK.WriteImage(changed, str(file))
    results = {}
    for name, options in {"stock": {}, "skip": {"skip_background": True, "fast_export": True}}.items():
        made = predictor(model, Predictor, mirroring=True, weights=True, **options)
        made.network, made.list_of_parameters = Bright(), [{}]
        (tmp_path / name).mkdir()
        made.predict_from_files_sequential(str(model.images), str(tmp_path / name))
        results[name] = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / name / "scan.nii.gz")))
    assert np.unique(results["stock"]).tolist() == [0, 1, 2]
    assert (results["skip"] != results["stock"]).mean() < 1e-5
    record = json.loads((tmp_path / "skip" / "spacing_report.json").read_text())["cases"]["scan"]
    assert 0 < record["patches_skipped"] < record["patches"]
    assert record["engine"] == "torch, float32"
    assert record["predicted_with"]["skip_background"] is True
