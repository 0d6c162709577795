"""CPS as the first stage of a cascade."""

import shutil
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from reference import tiny

SHORT = "nnUNetTrainerCPS_1epochs_1iterations"


def test_the_log_says_where_the_next_stage_looks(make_trainer):
    trainer = make_trainer(SHORT, "3d_lowres")
    trainer.run_training()
    second = make_trainer(configuration="3d_cascade_fullres", cls=nnUNetTrainer)
    log = " ".join(Path(trainer.log_file).read_text().split())
    assert f"{SHORT} cannot train the next stage 3d_cascade_fullres" in log
    source = Path(trainer.output_folder_base) / "predicted_next_stage" / "3d_cascade_fullres"
    assert f"copy {source} to {second.folder_with_segs_from_previous_stage}" in log


def test_other_configurations_say_nothing_of_stages(make_trainer):
    trainer = make_trainer(SHORT)
    trainer.run_training()
    assert "next stage" not in Path(trainer.log_file).read_text()


@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_predicted_for_a_stage_without_cases(make_trainer, environment, monkeypatch, there):
    seen = []

    def validate(self, save_probabilities=False):
        seen.append(self.configuration_manager.next_stage_names)

    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", validate)
    monkeypatch.setattr("nnunet_ext.training.validation._move_up", lambda folder, rank: None)
    monkeypatch.setattr("nnunet_ext.trainers.cps.compare_validations", lambda trainer, titles: None)
    trainer = make_trainer(SHORT, "3d_lowres")
    trainer.initialize()
    if not there:
        shutil.rmtree(environment / "preprocessed" / tiny.NAME / f"{tiny.PLANS}_3d_fullres")
    trainer.perform_actual_validation()
    assert seen == [None, None, ["3d_cascade_fullres"] if there else None]
    assert trainer.configuration_manager.next_stage_names == ["3d_cascade_fullres"]
    said = "run nnUNetv2_preprocess -c 3d_cascade_fullres" in Path(trainer.log_file).read_text()
    assert said is not there
