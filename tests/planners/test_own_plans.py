import json

import numpy as np
import pytest
from data.tiny_dataset import NAME, TinyDataset
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_ext import files
from nnunet_ext.files import BusyError, only_here
from nnunet_ext.planners.anu_net import ANUNetPlanner
from nnunet_ext.planners.own_plans import OwnPlans
from nnunet_ext.planners.semi_supervised import SemiSupervisedPlanner


class Planner(OwnPlans):
    """Plans nothing, so that only what is around the planning is seen."""

    def __init__(self):
        self.dataset_name, self.plans_identifier = NAME, "MyPlans"


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done = []
    monkeypatch.setattr(ExperimentPlanner, "plan_experiment", lambda _: done.append("planned") or {"plans": 1})
    return done


@pytest.mark.parametrize(
    ("place", "doing"),
    [
        ("MyPlans.json", "planned"),
        ("MyPlans_3d_fullres", "preprocessed"),
        ("MyPlans_2d_unlabeled", "preprocessed"),
        ("MyPlans_mine", "preprocessed"),
    ],
)
def test_while_another_process_uses_the_plans_they_are_not_written(tiny: TinyDataset, planned, place, doing):
    (tiny.preprocessed / "MyPlans.json").write_text('{"configurations": {"mine": {}}}')
    place = tiny.preprocessed / place
    with only_here(place, doing), pytest.raises(BusyError, match=f"{place} is being {doing} by process .*; wait until"):
        Planner().plan_experiment()
    assert planned == []
    assert Planner().plan_experiment() == {"plans": 1}
    with only_here(tiny.preprocessed / "MyPlans_other_2d", "preprocessed"):  # of other plans
        assert Planner().plan_experiment() == {"plans": 1}


@pytest.mark.parametrize("planner", [SemiSupervisedPlanner, ANUNetPlanner])
@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("dataset.json", "{", r"dataset\.json is no JSON \(line 1, column 2"),
        ("dataset.json", {"file_ending": 5}, r"dataset\.json: file_ending is 5, expected text"),
        ("dataset.json", {"numTraining": None}, r"dataset\.json: numTraining is None, expected the number of labelled"),
        ("dataset_fingerprint.json", "{", r"dataset_fingerprint\.json is no JSON .*; remove it, it is made again"),
        ("{}.json", "[", r"Plans\.json is no JSON .*; restore it, or remove it to plan anew"),
    ],
)
def test_what_cannot_be_planned_from_is_one_error(tiny: TinyDataset, planner, file, text, reason):
    folder = tiny.raw if file == "dataset.json" else tiny.preprocessed
    if isinstance(text, dict):
        text = json.dumps(tiny.write_dataset_json() | text)
    (folder / file.format(planner.default_plans_name)).write_text(text)
    with pytest.raises(ValueError, match=reason):
        planner(777)


def test_what_killed_planning_left_is_swept(tiny: TinyDataset, planned):
    partial = tiny.preprocessed / f"{files.PREFIX}{files._machine()}_999999999_0_MyPlans.json"
    partial.write_text("{")
    Planner().plan_experiment()
    assert not partial.exists()


def test_plans_that_cannot_be_written_leave_the_earlier_ones_whole(tiny: TinyDataset, monkeypatch):
    file = tiny.preprocessed / "MyPlans.json"
    Planner().save_plans({"configurations": {"2d": {"batch_size": 2}}})
    before = file.read_bytes()
    monkeypatch.setattr("nnunet_ext.files.os.replace", lambda *_: exec('raise OSError("the disk is gone")'))
    with pytest.raises(OSError, match="the disk is gone"):
        Planner().save_plans({"configurations": {"2d": {"batch_size": 4}}})
    assert file.read_bytes() == before


def test_configurations_of_users_stay_and_those_of_an_earlier_planning_go(tiny: TinyDataset, capsys):
    file = tiny.preprocessed / "MyPlans.json"
    earlier = {"2d": {"batch_size": 2}, "3d_lowres": {}, "mine": {"inherits_from": "2d"}}
    file.write_text(json.dumps({"configurations": earlier}))
    plans = {"configurations": {"2d": {"batch_size": np.int64(4)}}, "plans_name": "MyPlans"}
    Planner().save_plans(plans)
    expected = {"2d": {"batch_size": 4}, "mine": {"inherits_from": "2d"}}
    assert plans["configurations"] == expected
    assert json.loads(file.read_text()) == {"configurations": expected, "plans_name": "MyPlans"}
    assert capsys.readouterr().out == f"Plans were saved to {file}\n"
