"""CPS of the 2D networks of the reference module, with each other and with the plans' own network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from reference import tiny
from reference.taught import networks, same, weights

from nnunet_ext.networks import DeepLabV3Plus, TransUNet
from nnunet_ext.trainers.names import find_trainer

SHORT = "_2epochs_1iterations"
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def plans():
    content = tiny.plans()
    content["configurations"]["2d"]["patch_size"] = [32, 48]
    return content


@pytest.mark.parametrize(
    ("name", "kind", "optimizers"),
    [
        ("CPS_TransUNet_DeepLabV3Plus", "regions_ignore", (torch.optim.AdamW, torch.optim.AdamW)),
        pytest.param("CPS_UNet_TransUNet", "labels", (torch.optim.SGD, torch.optim.AdamW), marks=pytest.mark.slow),
        ("CPS_CutMix_Confidence_CWCD_UNet_DeepLabV3Plus", "labels", (torch.optim.SGD, torch.optim.AdamW)),
        ("CPS_BCP_ClassBalance_TransUNet_DeepLabV3Plus", "labels", (torch.optim.AdamW, torch.optim.AdamW)),
    ],
)
def test_trains_validates_and_restores(make_trainer, name, kind, optimizers):
    trainer = make_trainer(f"nnUNetTrainer{name}{SHORT}", "2d", kind, plans=plans())
    trainer.run_training()
    curves = trainer.logger.get_checkpoint()
    for key in ("supervised_loss_1", "supervised_loss_2", "cps_loss", "train_losses"):
        assert np.isfinite(curves[key]).all(), key
    assert (type(trainer.optimizer), type(trainer.optimizer_2)) == optimizers
    rates = {torch.optim.SGD: 1e-2, torch.optim.AdamW: 1e-4}
    for optimizer, scheduler in (
        (trainer.optimizer, trainer.lr_scheduler),
        (trainer.optimizer_2, trainer.lr_scheduler_2),
    ):
        assert scheduler.initial_lr == rates[type(optimizer)]
    assert all(
        isinstance(network, {"TransUNet": TransUNet, "DeepLabV3Plus": DeepLabV3Plus}.get(part, torch.nn.Module))
        for network, part in zip(networks(trainer), name.split("_")[-2:], strict=True)
    )
    restored = make_trainer(f"nnUNetTrainer{name}{SHORT}", "2d", kind, plans=plans())
    restored.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for before, after in zip(networks(trainer), networks(restored), strict=True):
        assert same(weights(before), weights(after))


def test_settings_and_weights_of_network_2(make_trainer, tmp_path):
    """A user's subclass of the pair shapes both networks, and names weights for both."""
    cls = type("Mine", (find_trainer("nnUNetTrainerCPS_UNet_DeepLabV3Plus"),), {"deeplab_decoder_channels": 4})
    trainer = make_trainer(cls=cls, configuration="2d", plans=plans())
    torch.manual_seed(3)
    encoder = DeepLabV3Plus(1, 3, encoder_name="tu-test_efficientnet").encoder
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    trainer.deeplab_weights = str(tmp_path / "encoder.pth")
    trainer.initialize()
    second = networks(trainer)[1]
    assert second.decoder.seg_layers[0].in_channels == 4
    assert same(weights(second.encoder), weights(encoder))
    file = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(file)
    again = make_trainer(cls=cls, configuration="2d", plans=plans())
    again.deeplab_weights = str(tmp_path / "gone.pth")
    again.load_checkpoint(file)
    assert same(weights(networks(again)[1]), weights(second))
