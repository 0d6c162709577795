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
from nnunet_ext.engines.choice import available
from nnunet_ext.engines.engine import ConversionError, EngineChoice
from nnunet_ext.inference import Predictor
from nnunet_ext.inference.checks import BadInputError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
needs_openvino = pytest.mark.skipif(not available("openvino"), reason="needs OpenVINO")
IMAGE = torch.randn(1, 20, 22, 24, generator=torch.Generator().manual_seed(1))
MODELS = {
    "classes": lambda root: make_folds(root, 1, share=0.1),
    "regions": lambda root: make_folds(root, 1, share=0.1, labels=REGIONS),
    "2d": lambda root: make_folds(root, 1, share=0.1, configuration="2d"),
    "pair": lambda root: make_pair_model(root, 1),
}


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


@needs_openvino
def test_both_networks_are_averaged_by_an_engine(tmp_path):
    model = make_pair_model(tmp_path)
    expected = predictor(model, network="both").predict_logits_from_preprocessed_data(IMAGE)
    found = predictor(model, network="both", engine="openvino").predict_logits_from_preprocessed_data(IMAGE)
    assert unlike(found, expected) < 1e-3


@needs_openvino
def test_each_fold_has_a_converted_network_of_its_own(tmp_path):
    model = make_folds(tmp_path, 1, share=0.1)
    expected = predictor(model, nnUNetPredictor, (0, 1)).predict_logits_from_preprocessed_data(IMAGE)
    made = predictor(model, folds=(0, 1), engine="openvino")
    for _ in range(2):
        assert unlike(made.predict_logits_from_preprocessed_data(IMAGE), expected) < 1e-3
    assert len(list(model.folder.glob("openvino_*.xml"))) == 2
    assert made.engine_used == "openvino, float32"


@needs_openvino
@pytest.mark.parametrize("make", [make_nested_model, make_enhanced_model])
def test_networks_of_ours_run_by_openvino(tmp_path, make):
    model = make(tmp_path)
    options = {"prune_depth": 1} if make is make_nested_model else {}
    expected = predictor(model, **options, engine="torch").predict_logits_from_preprocessed_data(IMAGE)
    found = predictor(model, **options, engine="openvino").predict_logits_from_preprocessed_data(IMAGE)
    assert unlike(found, expected) < 1e-3
    assert list(model.folder.glob("openvino_*.xml"))


@needs_openvino
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


@needs_openvino
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
    monkeypatch.setattr(subject, "why_only_torch", lambda device: None)
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


@pytest.mark.parametrize(("cases", "why", "timed"), [(1, None, 0), (25, None, 1), (200, None, 2), (200, "none", 0)])
def test_a_window_is_timed_where_that_costs_a_twentieth_at_most(tmp_path, monkeypatch, cases, why, timed):
    made, runs = predictor(make_model(tmp_path), engine="auto"), []
    monkeypatch.setattr(subject, "why_only_torch", lambda device: why)
    monkeypatch.setattr(subject, "choose", lambda *call: EngineChoice("torch", "float32"))
    made.network.register_forward_hook(lambda *call: runs.append(0))
    made.expected_cases = cases
    patch = made.configuration_manager.patch_size
    for number in (1, 2):
        made.predict_logits_from_preprocessed_data(torch.zeros(1, *patch))
        assert len(runs) == timed + number


def test_an_engine_that_failed_is_not_tried_for_each_image(tmp_path, monkeypatch):
    asked, make = [], subject.make_engine

    def make_engine(choice, *arguments):
        asked.append(choice.engine)
        if choice.engine == "openvino":
            raise ConversionError("no operator aten::nothing")
        return make(choice, *arguments)

    monkeypatch.setattr(subject, "make_engine", make_engine)
    monkeypatch.setattr(subject, "choose", lambda *call: EngineChoice("openvino", "float32"))
    made = predictor(make_model(tmp_path), engine="auto")
    for _ in range(3):
        made.predict_logits_from_preprocessed_data(torch.zeros(1, *made.configuration_manager.patch_size))
    assert [engine for engine in asked if engine == "openvino"] == ["openvino"]


class OnAGpu(torch.Tensor):
    """An image that goes wherever it is sent."""

    def to(self, *_):
        return self


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A predictor that takes itself to be on a GPU, and what it did: made and ran engines, for so many windows."""
    made, done = predictor(make_model(tmp_path), engine="compile"), []
    made.device, made.perform_everything_on_device = torch.device("cuda"), True
    made._choice = EngineChoice("compile", "float16")
    monkeypatch.setattr(subject, "empty_cache", lambda device: None)

    def make_engine(choice, network, window, device, folder, batch):
        done.append(f"made for {batch}")
        return type("Engine", (), {"load": lambda self, weights: None})()

    def predict(room):
        def run(image, places, flips, engine, batch):
            done.append(f"ran {batch}")
            if batch > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return image

        monkeypatch.setattr(made, "_predict", run)
        return made._on_a_device_with_room(torch.zeros(1, 8, 8, 8).as_subclass(OnAGpu), [()], ((),))

    monkeypatch.setattr(subject, "make_engine", make_engine)
    return made, done, predict


def test_engines_are_made_for_the_windows_that_they_run_and_again_for_fewer(gpu):
    """What is compiled for four windows fills up two with zeros, so that they need the same memory."""
    _, done, predict = gpu
    predict(room=2)
    assert done == ["made for 4", "ran 4", "made for 2", "ran 2"]
    predict(room=2)
    assert done[4:] == ["ran 2"]  # and that is remembered


def test_logits_go_to_main_memory_before_a_case_is_given_up(gpu, capsys):
    _, done, predict = gpu
    with pytest.raises(torch.OutOfMemoryError):
        predict(room=0)
    assert [step for step in done if step.startswith("ran")] == ["ran 4", "ran 2", "ran 1"] * 2
    assert capsys.readouterr().out.count("The GPU has no room for the logits; they are kept in main memory.") == 1


def test_windows_go_one_by_one_where_the_network_mixes_those_of_a_batch(gpu):
    made, done, predict = gpu
    made.network.add_module("scores", torch.nn.Identity())
    made.network.scores.packed = True  # entropies as the released code of IFE has them
    predict(room=4)
    assert done == ["made for 1", "ran 1"]


def test_a_network_that_nnunet_compiled_stays_so_where_no_engine_is_asked_for(tmp_path):
    model, calls = make_model(tmp_path), []
    expected = predictor(model, nnUNetPredictor).predict_logits_from_preprocessed_data(IMAGE)
    for options, compiled in (({"skip_background": True}, True), ({"engine": "torch"}, False)):
        made, calls = predictor(model, **options), []

        def compiler(graph, example, calls=calls):
            return lambda *call: (calls.append(0), graph(*call))[1]

        made.network = torch.compile(made.network, backend=compiler)
        assert torch.equal(made.predict_logits_from_preprocessed_data(IMAGE), expected)
        assert bool(calls) is compiled


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
