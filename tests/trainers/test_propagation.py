"""The part Propagation inside nnU-Net's trainer."""

import numpy as np
import pytest

SHORT = "_1epochs_1iterations"
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@pytest.mark.parametrize("kind", ["labels", "regions_ignore"])
def test_trains(make_trainer, kind):
    trainer = make_trainer(f"nnUNetTrainerPropagation{SHORT}", "2d", kind)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", -1))
