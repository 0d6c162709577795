"""A training step of each trainer on a device without float64, such as Apple's."""

import pytest
from training.test_devices_without_float64 import NoFloat64

# DWCE is not among them: its distances are float64 on the host.
PARTS = ("CPS", "CWCD", "GDL", "ANUNet", "IFECurvature", "IFEEntropy", "CPS_CWCD_IFECurvature", "CPS_ANUNet")


@pytest.mark.parametrize("kind", ["labels", "regions_ignore"])
@pytest.mark.parametrize("part", PARTS)
def test_no_step_needs_float64(make_trainer, part, kind):
    trainer = make_trainer(f"nnUNetTrainer{part}", kind=kind)
    trainer.contour_pseudo_labels = part.startswith("CPS_CWCD")
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    batch = next(loader)
    with NoFloat64():
        trainer.train_step(batch)
