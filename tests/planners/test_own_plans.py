import json

import pytest
from data.tiny_dataset import NAME, TinyDataset
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

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
