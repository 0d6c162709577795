"""Local files with weights of encoders: what is fitted, what is refused."""

import re

import pytest
import timm
import torch
from networks.contract import NETWORKS

from nnunet_ext.networks import DeepLabV3Plus, TransUNet
from nnunet_ext.training.encoder_weights import load_encoder_weights, read_encoder_weights

STEM = "patch_embed.backbone.stem.conv.weight"


def transunet(channels=3, patch=(32, 48)):
    torch.manual_seed(0)
    return TransUNet(channels, 2, **NETWORKS["transunet"].arguments | {"patch_size": list(patch)}).encoder


def saved(folder, weights):
    torch.save(weights, folder / "weights.pth")
    return folder / "weights.pth"


def of_timm(side=3):
    """A state dict as timm has it: with a class token, a square table of positions, and a head."""
    torch.manual_seed(5)
    weights = transunet(patch=(16 * side, 16 * side)).state_dict()
    weights = {key: torch.randn_like(value) for key, value in weights.items()}
    width = weights["pos_embed"].shape[2]
    token = torch.full((1, 1, width), 9.0)
    more = {"cls_token": token, "head.weight": torch.zeros(7, width), "head.bias": torch.zeros(7)}
    return weights | more | {"pos_embed": torch.cat([token, weights["pos_embed"]], 1)}


def test_a_state_dict_of_timm(tmp_path):
    weights, encoder = of_timm(), transunet()
    said = load_encoder_weights(encoder, saved(tmp_path, weights), "transunet_weights")
    assert said == [
        "pos_embed: without the class token, which this network does not have",
        "pos_embed: interpolated from 3 x 3 to 2 x 3",
    ]
    state = encoder.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in state.items() if key != "pos_embed")
    assert state["pos_embed"].abs().max() < 9
    same = transunet(patch=(48, 48))
    assert len(load_encoder_weights(same, saved(tmp_path, weights), "transunet_weights")) == 1
    assert torch.equal(same.pos_embed, weights["pos_embed"][:, 1:])


def test_timms_own_encoder_fits():
    """Same names and shapes, but for the class token: 768 of itself and 768 of its place in the table."""
    with torch.device("meta"):
        ours = TransUNet(3, 2, (224, 224)).encoder
    theirs = timm.create_model("vit_base_r50_s16_224", num_classes=0)
    state = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert state.pop("cls_token") == (1, 1, 768)
    assert state.pop("pos_embed") == (1, 197, 768)
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == state | {"pos_embed": (1, 196, 768)}
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (theirs, ours)]
    assert counts == [97890112, 97888576]


@pytest.mark.parametrize(
    ("channels", "expected", "sentence"),
    [
        (1, [6.0], "the three channels of the file are summed for one"),
        (2, [1.5, 3.0], "the three channels of the file are repeated for 2, times 3 / 2"),
        (4, [0.75, 1.5, 2.25, 0.75], "the three channels of the file are repeated for 4, times 3 / 4"),
    ],
)
def test_other_numbers_of_channels(tmp_path, channels, expected, sentence):
    weights, encoder = transunet().state_dict(), transunet(channels)
    weights[STEM] = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand_as(weights[STEM]).clone()
    assert load_encoder_weights(encoder, saved(tmp_path, weights), "transunet_weights") == [f"{STEM}: {sentence}"]
    assert encoder.state_dict()[STEM][0, :, 0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("wrap", ["state_dict", "model", "encoder.", "no counters"])
def test_files_of_other_habits(tmp_path, wrap):
    torch.manual_seed(0)
    encoder = DeepLabV3Plus(3, 2, **NETWORKS["deeplab"].arguments).encoder
    weights = {key: value + 1 for key, value in encoder.state_dict().items()}
    written = {
        "state_dict": {"state_dict": weights, "epoch": 3},
        "model": {"model": weights},
        "encoder.": {f"encoder.{key}": value for key, value in weights.items()},
        "no counters": {key: value for key, value in weights.items() if "num_batches" not in key},
    }[wrap]
    assert load_encoder_weights(encoder, saved(tmp_path, written), "deeplab_weights") == []
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, weights[key]) or "num_batches" in key


def test_an_encoder_without_values_is_compared(tmp_path):
    with torch.device("meta"):
        encoder = transunet()
    load_encoder_weights(encoder, saved(tmp_path, of_timm()), "transunet_weights")
    assert encoder.pos_embed.is_meta


def test_weights_of_another_encoder_name_the_first_key(tmp_path):
    weights = transunet().state_dict()
    file = saved(tmp_path, weights | {STEM: weights[STEM][:4], "norm.bias": torch.zeros(5)})
    message = (
        f"transunet_weights {file} does not fit the encoder: {STEM} has shape (4, 3, 7, 7) there and (8, 3, 7, 7) "
        "here; name weights of this encoder"
    )
    before = transunet().state_dict()
    encoder = transunet()
    with pytest.raises(ValueError, match=re.escape(message)):
        load_encoder_weights(encoder, file, "transunet_weights")
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    lacking = saved(tmp_path, {key: value for key, value in weights.items() if key != "norm.weight"})
    with pytest.raises(ValueError, match="encoder: norm.weight is missing there and \\(24,\\) here"):
        load_encoder_weights(encoder, lacking, "transunet_weights")


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": Evil()}, "cannot be loaded as a checkpoint of weights and plain values"),
        ([1, 2], "holds no weights by name; name a state dict of the encoder"),
        ({"epoch": 3}, "holds no weights by name"),
    ],
)
def test_files_without_weights(tmp_path, capsys, content, message):
    with pytest.raises(ValueError, match=message):
        read_encoder_weights(saved(tmp_path, content), "deeplab_weights")
    assert "code ran" not in capsys.readouterr().out


def test_files_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"deeplab_weights .*gone.pth is no file; name a state dict"):
        read_encoder_weights(tmp_path / "gone.pth", "deeplab_weights")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match=r"cut.safetensors is no whole file of safetensors .*; copy it again"):
        read_encoder_weights(tmp_path / "cut.safetensors", "deeplab_weights")
