import json
import logging
import os
import sys

import pytest
import torch
from torch import nn

from nnunet_ext import files
from nnunet_ext.engines import conversion, converted, trying
from nnunet_ext.engines.choice import available
from nnunet_ext.engines.converted import ConvertedNetworks, user_cache
from nnunet_ext.engines.engine import ConversionError
from nnunet_ext.engines.identity import identity
from nnunet_ext.engines.runtime import openvino
from nnunet_ext.engines.trying import NotTriedError, compare, try_out
from nnunet_ext.networks.averaging import AverageOfNetworks

if not available("openvino"):
    pytest.skip("needs OpenVINO", allow_module_level=True)

WINDOW = (1, 8, 8)


def network(seed=0, width=2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.InstanceNorm2d(width), nn.Conv2d(width, 3, 1)).eval()


@pytest.fixture
def trials(monkeypatch):
    """Trials end well at once; the files that they were given."""
    seen = []
    monkeypatch.setattr(converted, "try_out", lambda xml, *rest: seen.append(xml))
    return seen


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nnunet_ext" / "engines"


@pytest.fixture
def conversions(monkeypatch):
    """Number of conversions, as a list's length."""
    seen, convert = [], conversion.convert
    monkeypatch.setattr(converted, "convert", lambda *call: (seen.append(call), convert(*call))[1])
    return seen


def kept(folder):
    return sorted(path.suffix for path in folder.iterdir()) if folder.is_dir() else []


def is_right(model, of=None):
    image = torch.randn(1, *WINDOW, generator=torch.Generator().manual_seed(5))
    found = openvino().Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image.numpy())[0]
    with torch.no_grad():
        return torch.allclose(torch.from_numpy(found), (network() if of is None else of)(image), atol=1e-4)


def test_a_network_is_converted_once_and_tried_once(tmp_path, trials, conversions):
    for _ in range(2):
        assert is_right(ConvertedNetworks(network(), WINDOW, "float32", tmp_path / "model").model())
    assert len(conversions) == len(trials) == 1
    assert kept(tmp_path / "model") == [".bin", ".json", ".xml"]
    name = f"openvino_{identity(network(), None, WINDOW)}"
    assert {path.stem for path in (tmp_path / "model").iterdir()} == {name}


def test_another_precision_is_tried_with_the_same_files(tmp_path, trials, conversions):
    for precision in ("float32", "bfloat16", "float32", "bfloat16"):
        ConvertedNetworks(network(), WINDOW, precision, tmp_path).model()
    assert (len(conversions), len(trials)) == (1, 2)


def test_a_fold_is_converted_with_its_own_weights(tmp_path, trials, conversions):
    of_first = ConvertedNetworks(network(), WINDOW, "float32", tmp_path)
    assert is_right(of_first.model(network(seed=1).state_dict()), of=network(seed=1))
    assert is_right(of_first.model())
    assert len(conversions) == 2
    assert is_right(ConvertedNetworks(network(seed=1), WINDOW, "float32", tmp_path).model(), of=network(seed=1))
    assert len(conversions) == 2


def test_what_a_converted_network_depends_on(monkeypatch):
    one = network()
    others = {
        "as it is": identity(one, None, WINDOW),
        "window": identity(one, None, (1, 8, 16)),
        "weights": identity(network(seed=1), None, WINDOW),
        "given weights": identity(one, network(seed=2).state_dict(), WINDOW),
        "shapes": identity(network(width=4), None, WINDOW),
        "class": identity(nn.Sequential(*one, nn.Identity()), None, WINDOW),
    }
    average = AverageOfNetworks(one, network(seed=1))
    others["average"] = identity(average, None, WINDOW)
    average.apart = True
    others["apart"] = identity(average, None, WINDOW)
    one[1].eps = 1e-3
    others["setting"] = identity(one, None, WINDOW)
    one = network()
    one.register_buffer("table", torch.zeros(2), persistent=False)
    others["table"] = identity(one, None, WINDOW)
    one.table[0] = 1
    others["values of the table"] = identity(one, None, WINDOW)
    for package in ("openvino", "torch"):
        with monkeypatch.context() as patch:
            patch.setattr("importlib.metadata.version", lambda name, other=package: "other" if name == other else "1")
            others[package] = identity(network(), None, WINDOW)
    monkeypatch.setattr("nnunet_ext.__version__", "other")
    others["nnunet_ext"] = identity(network(), None, WINDOW)
    assert len(set(others.values())) == len(others)
    assert all(len(key) == 16 for key in others.values())


def test_training_mode_gradients_and_compilers_are_no_part_of_it():
    one = network()
    key = identity(one, None, WINDOW)
    assert identity(one.train().requires_grad_(False), one.state_dict(), WINDOW) == key
    assert identity(torch.compile(one), None, WINDOW) == key


@pytest.mark.parametrize("damage", ["xml", "bin", "json", "missing bin"])
def test_a_damaged_file_is_said_and_made_again(tmp_path, trials, conversions, caplog, damage):
    networks = ConvertedNetworks(network(), WINDOW, "float32", tmp_path)
    networks.model()
    file = next(tmp_path.glob(f"*.{damage.split()[-1]}"))
    content = file.read_bytes()
    file.unlink() if damage.startswith("missing") else file.write_bytes(content[:-9])
    with caplog.at_level(logging.WARNING):
        assert is_right(networks.model())
    assert "is damaged; the network is converted again" in caplog.text
    assert len(conversions) == 2
    caplog.clear()
    assert is_right(networks.model())
    assert (len(conversions), caplog.text) == (2, "")


def test_weights_that_were_exchanged_are_noticed(tmp_path, trials, conversions):
    networks = ConvertedNetworks(network(), WINDOW, "float32", tmp_path)
    networks.model()
    file = next(tmp_path.glob("*.bin"))
    file.write_bytes(bytes(len(file.read_bytes())))
    assert is_right(networks.model())
    assert len(conversions) == 2


def test_a_folder_that_cannot_be_written_gets_the_users_cache(tmp_path, trials, conversions, caplog, cache):
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert is_right(ConvertedNetworks(network(), WINDOW, "float32", tmp_path / "file" / "model").model())
    assert caplog.text.count("cannot hold a converted network") == len(conversions) == 1
    assert kept(cache) == [".bin", ".json", ".xml"]
    assert user_cache() == cache


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path, monkeypatch, trials, caplog):
    (tmp_path / "file").write_text("no folder")
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert is_right(ConvertedNetworks(network(), WINDOW, "float32", tmp_path / "file").model())
    assert "is not kept, and is converted again for each prediction" in caplog.text
    assert not trials[0].parent.exists()


def test_a_damaged_file_in_a_folder_that_is_only_read_is_passed_by(tmp_path, trials, conversions, caplog, cache):
    networks = ConvertedNetworks(network(), WINDOW, "float32", tmp_path)
    networks.model()
    next(tmp_path.glob("*.bin")).write_bytes(b"half")
    ConvertedNetworks(network(), WINDOW, "float32", None).model()  # as where the folder could not be written
    assert len(conversions) == 2
    assert is_right(networks.model())
    assert len(conversions) == 2
    assert kept(cache) == [".bin", ".json", ".xml"]


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_disk_that_openvino_finds_full_is_as_good_as_none(tmp_path, monkeypatch, trials, caplog, cache, everywhere):
    def save(model, path):
        if everywhere or tmp_path / "model" in path.parents:
            raise RuntimeError("basic_ios::clear: iostream error")  # with room left, as where a share of it ends
        conversion.save(model, path)

    monkeypatch.setattr(converted, "save", save)
    networks = ConvertedNetworks(network(), WINDOW, "float32", tmp_path / "model")
    if everywhere:
        with pytest.raises(NotTriedError, match="cannot be written to be tried .*iostream error"):
            networks.model()
        assert kept(cache) == []
    else:
        assert is_right(networks.model())
        assert kept(cache) == [".bin", ".json", ".xml"]
    assert kept(tmp_path / "model") == []
    assert f"{tmp_path / 'model'} cannot hold a converted network" in caplog.text


def test_a_conversion_that_is_killed_leaves_nothing_that_is_taken_for_whole(tmp_path, trials, monkeypatch, conversions):
    def killed(model, path):
        conversion.save(model, path)
        path.with_suffix(".xml").write_bytes(b"half")
        raise KeyboardInterrupt

    networks = ConvertedNetworks(network(), WINDOW, "float32", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(converted, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            networks.model()
    assert not list(tmp_path.glob("openvino_*"))
    assert is_right(networks.model())


def test_what_a_killed_process_left_is_not_taken_for_whole_and_swept(tmp_path, trials):
    machine, nobody = files._machine(), 2**31 - 1
    left = tmp_path / f"{files.PREFIX}{machine}_{nobody}_0_files"
    left.mkdir()
    (left / f"openvino_{identity(network(), None, WINDOW)}.xml").write_text("half")
    assert is_right(ConvertedNetworks(network(), WINDOW, "float32", tmp_path).model())
    assert kept(tmp_path) == [".bin", ".json", ".xml"]


class Unknown(nn.Module):
    def forward(self, image):
        return torch.special.xlogy(image, image.abs())


def test_a_network_that_cannot_be_converted_names_the_operator_and_is_not_tried_again(tmp_path, conversions):
    networks = ConvertedNetworks(Unknown(), WINDOW, "float32", tmp_path)
    with pytest.raises(ConversionError, match="cannot convert the network: it knows no aten::xlogy|special_xlogy"):
        networks.model()
    assert kept(tmp_path) == [".json"]
    with pytest.raises(ConversionError, match="xlogy.*found out before; remove .*json to try again"):
        networks.model()
    assert len(conversions) == 1


def test_an_outcome_of_a_trial_is_kept(tmp_path, monkeypatch, conversions):
    def fail(*call):
        raise ConversionError("OpenVINO crashes")

    networks = ConvertedNetworks(network(), WINDOW, "float32", tmp_path)
    monkeypatch.setattr(converted, "try_out", fail)
    with pytest.raises(ConversionError, match="^OpenVINO crashes$"):
        networks.model()
    with pytest.raises(ConversionError, match="^OpenVINO crashes .found out before"):
        networks.model()
    assert len(conversions) == 1
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    (condition,) = record["tried"]
    assert condition.startswith("float32 on ")


def test_a_trial_without_outcome_is_made_again(tmp_path, monkeypatch, trials, conversions):
    def killed(*call):
        raise NotTriedError("killed")

    networks = ConvertedNetworks(network(), WINDOW, "float32", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(converted, "try_out", killed)
        with pytest.raises(ConversionError, match="killed"):
            networks.model()
    assert is_right(networks.model())


def test_a_trial_runs_the_files_and_tells_nobody(tmp_path, conversions, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = conversion.convert(conversion.copy_for_cpu(network()), WINDOW)
    conversion.save(model, tmp_path / "network.xml")
    try_out(tmp_path / "network.xml", network(), WINDOW, "float32")
    assert not (tmp_path / "intel").exists()  # where OpenVINO keeps by which number it reports
    assert sys.modules["openvino_telemetry"] is None
    with pytest.raises(ConversionError, match="in float32 gives another result than torch"):
        try_out(tmp_path / "network.xml", network(seed=1), WINDOW, "float32")
    (tmp_path / "network.xml").write_text("no network")
    with pytest.raises(ConversionError, match="OpenVINO fails with the network: "):
        try_out(tmp_path / "network.xml", network(), WINDOW, "float32")


@pytest.mark.skipif(os.name == "nt", reason="no signals")
@pytest.mark.parametrize(("number", "kind"), [(11, ConversionError), (9, NotTriedError)])
def test_a_crash_is_told_from_a_process_that_was_killed(tmp_path, monkeypatch, number, kind):
    script = tmp_path / "crash"
    script.write_text(f"#!/bin/sh\nkill -{number} $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(trying.sys, "executable", str(script))
    with pytest.raises(ConversionError, match="crashes with the network .signal 11|killed while it tried") as caught:
        try_out(tmp_path / "network.xml", network(), WINDOW, "float32")
    assert type(caught.value) is kind


def test_results_are_compared_by_error_and_winners():
    expected = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).repeat(1, 1, 50, 50)
    compare(expected + 1e-3, expected, "float32")
    compare(expected * 1.05, expected, "bfloat16")
    with pytest.raises(ConversionError, match=r"relative error 0\.05, another class in 0 %"):
        compare(expected * 1.05, expected, "float32")
    with pytest.raises(ConversionError, match="in bfloat16 gives another result"):
        compare(expected * 1.2, expected, "bfloat16")
    close = expected.clone()
    close[:, 1] = 0.9999
    other = close.clone()
    other[0, 0, 0, :3] -= 2e-4  # 3 of 2500 voxels
    compare(close, close, "float32")
    with pytest.raises(ConversionError, match=r"another class in 0\.12 %"):
        compare(other, close, "float32")
    with pytest.raises(ConversionError, match="another result"):
        compare(expected * float("nan"), expected, "bfloat16")
    with pytest.raises(ConversionError, match=r"gives \[1, 1, 50, 50\] where torch gives \[1, 2, 50, 50\]"):
        compare(expected[:, :1], expected, "float32")
