import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ext.training.safe_load import check_weights, load_checkpoint

WHOLE = {"network_weights": {"w": torch.zeros(1)}, "trainer_name": "nnUNetTrainer", "init_args": {}}


class RunsCode:
    """Creates a file where it is unpickled, as any code could."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_numpy_scalars_and_devices_are_plain_values(tmp_path):
    values = [kind(1) for kind in (np.float16, np.float32, np.float64, np.int32, np.int64)]
    more = {"logging": {"mean_fg_dice": values}, "_best_ema": np.float64(0.5), "device": torch.device("cuda", 0)}
    torch.save(WHOLE | more, tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth")
    assert loaded["logging"]["mean_fg_dice"] == values
    assert [type(v) for v in loaded["logging"]["mean_fg_dice"]] == [type(v) for v in values]
    assert loaded["_best_ema"] == 0.5


def test_arrays_are_plain_values_and_arrays_of_objects_are_not(tmp_path):
    arrays = [np.arange(3.0), np.zeros((2, 2), np.uint8), np.array([True, False]), np.float32([1, 2])]
    torch.save(WHOLE | {"logging": {"mine": arrays}}, tmp_path / "c.pth")
    for loaded, array in zip(load_checkpoint(tmp_path / "c.pth")["logging"]["mine"], arrays, strict=True):
        np.testing.assert_array_equal(loaded, array)
        assert loaded.dtype == array.dtype
    marker = tmp_path / "ran"
    torch.save(WHOLE | {"logging": np.array([RunsCode(marker)], object)}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="cannot be loaded as a checkpoint of weights and plain values"):
        load_checkpoint(tmp_path / "c.pth")
    assert not marker.exists()


@pytest.mark.parametrize("place", ["beside", "in the weights", "alone"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, place):
    marker = tmp_path / "ran"
    evil = RunsCode(marker)
    content = {
        "beside": WHOLE | {"logging": evil},
        "in the weights": WHOLE | {"network_weights": {"w": evil}},
        "alone": evil,
    }[place]
    torch.save(content, tmp_path / "c.pth")
    message = (
        r"c\.pth cannot be loaded as a checkpoint of weights and plain values \(it also holds \S+, which may run code"
    )
    with pytest.raises(
        ValueError, match=rf"{message}\); if you trust whoever made it, set nnUNet_ext_trust_weights=1$"
    ):
        load_checkpoint(tmp_path / "c.pth")
    assert not marker.exists()
    torch.load(tmp_path / "c.pth", weights_only=False)
    assert marker.exists()  # it would have run


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half"])
def test_a_damaged_file(tmp_path, content):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"c\.pth cannot be loaded .*; it is damaged or something else, so copy or tra"
    ):
        load_checkpoint(tmp_path / "c.pth")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*c\.pth"):
        load_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("missing", sorted(WHOLE))
def test_a_checkpoint_of_something_else(tmp_path, missing):
    torch.save({key: value for key, value in WHOLE.items() if key != missing}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=rf"lacks \['{missing}'\]; expected a checkpoint of nnUNetv2_train"):
        load_checkpoint(tmp_path / "c.pth")


def test_a_file_of_weights_alone(tmp_path):
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(ValueError, match="expected a checkpoint of nnUNetv2_train"):
        load_checkpoint(tmp_path / "c.pth")


def rename_global(path: Path, old: str, new: str) -> None:
    """Write a checkpoint as another numpy would have, which has the same function elsewhere."""
    with zipfile.ZipFile(path) as archive:
        entries = {one: archive.read(one) for one in archive.namelist()}
    for name in entries:
        if name.endswith("data.pkl"):
            assert old.encode() in entries[name]
            entries[name] = entries[name].replace(old.encode(), new.encode())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_scalars_of_numpy_1_and_2(tmp_path, module):
    torch.save(WHOLE | {"_best_ema": np.float64(0.5)}, tmp_path / "c.pth")
    own = np.float64(0).__reduce__()[0].__module__
    rename_global(tmp_path / "c.pth", f"c{own}\nscalar", f"c{module}\nscalar")
    assert load_checkpoint(tmp_path / "c.pth")["_best_ema"] == 0.5
    assert torch.load(tmp_path / "c.pth", weights_only=False)["_best_ema"] == 0.5  # stock reads both


def test_checkpoints_of_before_torch_1_6_are_read_though_they_cannot_be_mapped(tmp_path):
    torch.save(WHOLE, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(tmp_path / "c.pth", mapped=True)["network_weights"]["w"], torch.zeros(1))


def test_the_oldest_torch_is_named(tmp_path, monkeypatch):
    torch.save(WHOLE, tmp_path / "c.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(RuntimeError, match=r"2\.5\.1\+cpu cannot load checkpoints safely; use torch 2\.6 or later, or"):
        load_checkpoint(tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth", trusted=True)["trainer_name"] == WHOLE["trainer_name"]


@pytest.mark.parametrize("value", [np.array([]), np.str_("a text"), np.array(["a", "b"]), np.longdouble(0.5)])
def test_texts_and_nothing_are_plain_values(tmp_path, value):
    torch.save(WHOLE | {"logging": value}, tmp_path / "c.pth")
    np.testing.assert_array_equal(load_checkpoint(tmp_path / "c.pth")["logging"], value)


def test_what_torch_cannot_build_is_named_with_the_way_out(tmp_path):
    torch.save(WHOLE | {"logging": np.array([{}, None], object)}, tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=r"it also holds \S+, which may run code\); if you trust whoever made it, set "
    ):
        load_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_trusted_checkpoints_run_what_is_in_them(tmp_path, monkeypatch, by):
    torch.save(WHOLE | {"logging": RunsCode(tmp_path / "ran")}, tmp_path / "c.pth")
    if by == "environment":
        monkeypatch.setenv("nnUNet_ext_trust_weights", "1")
    load_checkpoint(tmp_path / "c.pth", trusted=True if by == "argument" else None)
    assert (tmp_path / "ran").exists()


def test_files_that_stock_will_load_are_checked_and_the_way_out_is_said(tmp_path):
    torch.save({"network_weights": {}}, tmp_path / "good.pth")
    torch.save({"network_weights": RunsCode(tmp_path / "ran")}, tmp_path / "bad.pth")
    check_weights([tmp_path / "good.pth"], "say so", ("network_weights",))
    with pytest.raises(ValueError, match=r"bad\.pth cannot be loaded .*; if you trust whoever made it, say so$"):
        check_weights([tmp_path / "good.pth", tmp_path / "bad.pth"], "say so", ("network_weights",))
    assert not (tmp_path / "ran").exists()
