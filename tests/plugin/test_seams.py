"""Each seam on a module object that looks like nnU-Net's."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from nnunet_ext.files import read_json
from nnunet_ext.plugin import (
    compat,
    seam_exit_status,
    seam_find_class,
    seam_find_trainer,
    seam_predict,
    seam_training,
)


def module_with(*functions) -> ModuleType:
    module = ModuleType("fake")
    for function in functions:
        setattr(module, function.__name__, function)
    return module


@pytest.fixture
def find_class(monkeypatch):
    def recursive_find_python_class(
        folder, class_name, current_module, base_folder=None, verbose=False, cleanup_imports_from_base_folder=False
    ):
        return {"Stock": int, "SemiSupervisedPreprocessor": float}.get(class_name)

    ours = ModuleType("nnunet_ext.planners.semi_supervised")
    ours.SemiSupervisedPlanner = type("SemiSupervisedPlanner", (), {})
    monkeypatch.setitem(sys.modules, ours.__name__, ours)
    module = module_with(recursive_find_python_class)
    seam_find_class.install(module)
    return module.recursive_find_python_class


def test_find_class_answers_for_a_planner_of_ours(find_class):
    found = find_class("folder", "SemiSupervisedPlanner", current_module="nnunetv2.experiment_planning")
    assert found is sys.modules["nnunet_ext.planners.semi_supervised"].SemiSupervisedPlanner


@pytest.mark.parametrize(
    ("name", "where", "expected"),
    [
        ("Stock", "nnunetv2.experiment_planning", int),
        ("SemiSupervisedPreprocessor", "nnunetv2.preprocessing", float),  # stock has one: stock wins
        ("SemiSupervisedPlanner", "nnunetv2.preprocessing", None),
        ("SemiSupervisedPlanner", "nnunetv2.experiment_planning.x", None),
        ("SemiSupervisedPlanner", None, None),
        ("Unknown", "nnunetv2.experiment_planning", None),
    ],
)
def test_find_class_answers_like_stock_otherwise(find_class, name, where, expected):
    assert find_class("folder", name, where, None, verbose=False) is expected


@pytest.fixture
def find_trainer(monkeypatch):
    def recursive_find_trainer_class_by_name(trainer_name):
        if trainer_name == "nnUNetTrainer":
            return int
        if trainer_name == "broken":
            raise RuntimeError("the user's module is broken")
        raise RuntimeError(f"{compat.TRAINER_NOT_FOUND} {trainer_name} in nnunetv2")

    def compose(name):
        if name.startswith("nnUNetTrainerCWCD_CPS"):
            raise ValueError(f"{name}: write nnUNetTrainerCPS_CWCD")
        return float if name in ("nnUNetTrainer", "nnUNetTrainerCPS", "broken") else None

    composition = ModuleType("nnunet_ext.trainers.names")
    composition.find_trainer = compose
    monkeypatch.setitem(sys.modules, composition.__name__, composition)
    module = module_with(recursive_find_trainer_class_by_name)
    seam_find_trainer.install(module)
    return module.recursive_find_trainer_class_by_name


def test_find_trainer_stock_wins_and_ours_is_found(find_trainer):
    assert find_trainer("nnUNetTrainer") is int
    assert find_trainer("nnUNetTrainerCPS") is float


def test_find_trainer_keeps_stocks_error_for_unknown_names(find_trainer):
    with pytest.raises(
        RuntimeError, match=r"^Could not find requested nnunet trainer nnUNetTrainerX in nnunetv2$"
    ) as got:
        find_trainer("nnUNetTrainerX")
    assert got.value.__cause__ is None
    assert got.value.__context__ is None


def test_find_trainer_explains_a_malformed_name_without_stocks_error_above(find_trainer):
    with pytest.raises(ValueError, match="write nnUNetTrainerCPS_CWCD") as got:
        find_trainer("nnUNetTrainerCWCD_CPS")
    assert got.value.__context__ is None


def test_find_trainer_passes_other_errors_on(find_trainer):
    with pytest.raises(RuntimeError, match="module is broken"):
        find_trainer("broken")


def entries(result=None):
    def plan_and_preprocess_entry():
        return result

    def preprocess_entry():
        return result

    def extract_fingerprint_entry():
        return result

    def plan_experiment_entry():
        return result

    return module_with(plan_and_preprocess_entry, preprocess_entry, extract_fingerprint_entry, plan_experiment_entry)


ENTRIES = ("plan_and_preprocess_entry", "preprocess_entry", "extract_fingerprint_entry", "plan_experiment_entry")


@pytest.fixture
def failures(monkeypatch):
    collector = ModuleType(seam_exit_status.FAILURES_MODULE)
    collector.pending = []

    def drain():
        drained, collector.pending = collector.pending, []
        return drained

    collector.drain = drain
    collector.format_report = lambda failed: f"{len(failed)} failed: {', '.join(failed)}"
    monkeypatch.setitem(sys.modules, collector.__name__, collector)
    return collector


@pytest.mark.parametrize("name", ENTRIES)
def test_exit_status_is_one_and_the_report_on_stderr_where_cases_failed(failures, capsys, name):
    module = entries()
    seam_exit_status.install(module)
    failures.pending = ["case_1", "case_2"]
    assert getattr(module, name)() == 1
    assert capsys.readouterr() == ("", "2 failed: case_1, case_2\n")
    assert getattr(module, name)() is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ENTRIES)
def test_cases_that_failed_are_reported_where_the_command_itself_fails_too(failures, capsys, name):
    module = ModuleType("fake")

    def stops():
        raise RuntimeError("nothing left to plan")

    for entry in ENTRIES:
        setattr(module, entry, stops)
    seam_exit_status.install(module)
    failures.pending = ["case_1"]
    with pytest.raises(RuntimeError, match="nothing left to plan"):
        getattr(module, name)()
    assert capsys.readouterr().err == "1 failed: case_1\n"


@pytest.mark.parametrize("name", ENTRIES)
def test_exit_status_is_stocks_where_nothing_of_ours_ran(monkeypatch, name):
    monkeypatch.delitem(sys.modules, seam_exit_status.FAILURES_MODULE, raising=False)
    module = entries(result="stock")
    seam_exit_status.install(module)
    assert getattr(module, name)() == "stock"
    assert seam_exit_status.FAILURES_MODULE not in sys.modules


def run_training_with(*replaced) -> ModuleType:
    """Return a module like nnU-Net's, with some functions of one's own; the seam is installed."""

    def maybe_load_checkpoint(nnunet_trainer, continue_training, validation_only, pretrained_weights_file=None):
        pass

    def get_trainer_from_args(
        dataset_name_or_id,
        configuration,
        fold,
        trainer_name="nnUNetTrainer",
        plans_identifier="nnUNetPlans",
        continue_training=False,
        device=None,
    ):
        pass

    def run_training_entry():
        pass

    module = module_with(maybe_load_checkpoint, get_trainer_from_args, run_training_entry, *replaced)
    seam_training.install(module)
    return module


def test_training_says_mistakes_of_users_without_a_traceback(capsys, tmp_path):
    def run_training_entry():
        read_json(tmp_path / "plans.json", "plan again")

    assert run_training_with(run_training_entry).run_training_entry() == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'plans.json'} is missing; plan again\n"


@pytest.mark.parametrize("error", [RuntimeError("of nnU-Net"), KeyError("x"), SystemExit(2), KeyboardInterrupt()])
def test_training_passes_every_other_error_on(error):
    def run_training_entry():
        raise error

    with pytest.raises(type(error)):
        run_training_with(run_training_entry).run_training_entry()


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("damaged", ["nnUNetPlans.json", "dataset.json"])
def test_damaged_json_is_named_where_a_trainer_of_ours_is_made(tmp_path, monkeypatch, ours, damaged):
    def get_trainer_from_args(
        dataset_name_or_id,
        configuration,
        fold,
        trainer_name="nnUNetTrainer",
        plans_identifier="nnUNetPlans",
        continue_training=False,
        device=None,
    ):
        json.loads((folder / damaged).read_text())

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / "Dataset777_Tiny"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text('{"configurations": {}}')
    (folder / "dataset.json").write_text("{}")
    (folder / damaged).write_text('{"half": ')
    make = run_training_with(get_trainer_from_args).get_trainer_from_args
    expected = rf"{damaged} is no JSON \(line 1, column 10" if ours else "^Expecting value"
    with pytest.raises(ValueError, match=expected):
        make("777", "3d_fullres", 0, "nnUNetTrainerCWCD" if ours else "nnUNetTrainer", continue_training=False)


def test_a_trainer_that_is_not_found_is_looked_for_once():
    def get_trainer_from_args(
        dataset_name_or_id,
        configuration,
        fold,
        trainer_name="nnUNetTrainer",
        plans_identifier="nnUNetPlans",
        continue_training=False,
        device=None,
    ):
        raise RuntimeError("Could not find requested nnunet trainer")

    make = run_training_with(get_trainer_from_args).get_trainer_from_args
    with pytest.raises(RuntimeError, match="Could not find requested") as raised:
        make("777", "3d_fullres", 0, "nnUNetTrainerNobodyWrote")
    assert raised.value.__context__ is None


@pytest.fixture
def load():
    def maybe_load_checkpoint(nnunet_trainer, continue_training, validation_only, pretrained_weights_file=None):
        nnunet_trainer.calls.append(("stock", continue_training, validation_only, pretrained_weights_file))

    return run_training_with(maybe_load_checkpoint).maybe_load_checkpoint


@pytest.fixture
def weights(tmp_path) -> str:
    torch.save({"network_weights": {}}, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def trainer_with_callback() -> SimpleNamespace:
    calls: list = []
    return SimpleNamespace(calls=calls, after_pretrained_weights=lambda path: calls.append(("ours", path)))


def test_pretrained_callback_runs_after_stock(load, weights):
    trainer = trainer_with_callback()
    load(trainer, False, False, weights)
    assert trainer.calls == [("stock", False, False, weights), ("ours", weights)]


class RunsCode:
    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return type(self.marker).touch, (self.marker,)


@pytest.mark.parametrize("kind", ["by its hooks", "by its base", "stock"])
def test_pretrained_weights_with_code_are_refused_for_our_trainers(load, tmp_path, monkeypatch, kind):
    file = str(tmp_path / "evil.pth")
    torch.save({"network_weights": RunsCode(tmp_path / "ran")}, file)
    trainer = trainer_with_callback() if kind == "by its hooks" else SimpleNamespace(calls=[])
    if kind == "by its base":
        part = type("SomePart", (), {"__module__": "nnunet_ext.trainers.some"})
        trainer = type("nnUNetTrainerMine", (SimpleNamespace, part), {})(calls=[])
    if kind != "stock":
        with pytest.raises(ValueError, match=r"evil\.pth cannot be loaded .* made it, set nnUNet_ext_trust_weights=1$"):
            load(trainer, False, False, file)
        assert trainer.calls == []
        with pytest.raises(FileNotFoundError, match="there is no checkpoint .*nowhere"):
            load(trainer, False, False, str(tmp_path / "nowhere"))
        monkeypatch.setenv("nnUNet_ext_trust_weights", "1")
    load(trainer, False, False, file)
    assert trainer.calls[0] == ("stock", False, False, file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "arguments", [(False, False), (False, False, None), (True, False, "w"), (False, True, "w"), (True, False)]
)
def test_pretrained_callback_only_at_the_start_of_a_training(load, arguments):
    trainer = trainer_with_callback()
    load(trainer, *arguments)
    assert [call[0] for call in trainer.calls] == ["stock"]


def test_pretrained_stock_trainer_sees_no_difference(load):
    trainer = SimpleNamespace(calls=[])
    load(trainer, continue_training=False, validation_only=False, pretrained_weights_file="w")
    assert trainer.calls == [("stock", False, False, "w")]


def predict_module():
    """Entry points that parse, as nnU-Net's do, and remember the predictor they would use."""
    import argparse

    module = ModuleType("fake")
    module.nnUNetPredictor = type("nnUNetPredictor", (), {})
    module.used = []

    def predict_entry_point():
        argparse.ArgumentParser().parse_args()
        module.used.append(module.nnUNetPredictor)

    def predict_entry_point_modelfolder():
        argparse.ArgumentParser().parse_args()
        module.used.append(module.nnUNetPredictor)

    module.predict_entry_point, module.predict_entry_point_modelfolder = (
        predict_entry_point,
        predict_entry_point_modelfolder,
    )
    return module


@pytest.mark.parametrize("name", ["predict_entry_point", "predict_entry_point_modelfolder"])
def test_predict_knows_our_options(monkeypatch, name):
    module = predict_module()
    seam_predict.install(module)
    seam_predict.install(module)  # again: nothing new
    for arguments in ([], ["--fast_export"], []):
        monkeypatch.setattr(sys, "argv", ["predict", *arguments])
        assert getattr(module, name)() is None
    stock, ours, again = module.used
    assert stock is again is module.nnUNetPredictor
    assert ours.__mro__[1].__name__ == "Predictor"


def test_predict_is_left_alone_without_its_predictor():
    module = predict_module()
    del module.nnUNetPredictor
    entry = module.predict_entry_point
    with pytest.raises(compat.SeamError, match="nnUNetPredictor, not found"):
        seam_predict.install(module)
    assert module.predict_entry_point is entry
