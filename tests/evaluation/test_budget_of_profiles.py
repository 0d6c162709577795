"""The best trade of a profile, and which settings can be run."""

import math
from typing import Any

import pytest

from nnunet_ext.evaluation import runnable as runnable_module
from nnunet_ext.evaluation.budget import find_trade, for_other_images, format_trade
from nnunet_ext.evaluation.runnable import runnable
from nnunet_ext.evaluation.settings import SETTINGS, Setting


def entry(seconds: float, dice: float | None, memory: float = 100.0, **more: Any) -> dict[str, Any]:
    """Make up what was measured of a setting."""
    return {
        "command": ["predict", "-i", "/images", "-o", "/out/x", "--disable_progress_bar", "-step_size", "0.7"],
        "measured": {"seconds_per_case": seconds, "peak_memory_mb": memory},
        "quality": {"mean": {"dsc": dice, "nsd": None}},
        **more,
    }


FAILED = {"command": ["predict"], "error": "it failed"}
STOCK = entry(8.0, 0.870)


@pytest.mark.parametrize(
    ("budget", "pick"),
    [(0.0, "better"), (0.004, "better"), (0.005, "exact"), (0.02, "fast"), (0.5, "coarse")],
)
def test_the_fastest_within_the_budget_of_stock(budget, pick):
    settings = {
        "stock": STOCK,
        "better": entry(4.0, 0.881),
        "exact": entry(3.0, 0.870 - 0.005),  # in floats a little more than the budget
        "fast": entry(2.0, 0.851),
        "coarse": entry(1.0, 0.5),
        "failed": FAILED,
        "nowhere": entry(0.1, None),
        "nan": entry(0.1, math.nan),
        "half": entry(0.1, 0.9, error="its comparison failed"),
        "unlabelled": {key: value for key, value in entry(0.1, 0.9).items() if key != "quality"},
    }
    trade = find_trade(settings, budget)
    assert (trade["budget"], trade["reference"], trade["setting"]) == (budget, "stock", pick)
    assert trade["command"] == "predict -i IN -o OUT -step_size 0.7"


@pytest.mark.parametrize(
    ("second", "pick"),
    [
        (entry(3.0, 0.871), "second"),  # more DSC
        (entry(3.0, 0.869), "first"),
        (entry(3.0, 0.870, 99.0), "second"),  # less memory
        (entry(3.0, 0.870, 100.0), "first"),
    ],
)
def test_ties(second, pick):
    assert find_trade({"stock": STOCK, "first": entry(3.0, 0.870), "second": second}, 0.01)["setting"] == pick


def test_without_stock_the_highest_dice_is_what_counts():
    settings = {"stock": FAILED, "best": entry(5.0, 0.88), "fast": entry(1.0, 0.876), "faster": entry(0.5, 0.874)}
    trade = find_trade(settings, 0.005)
    assert (trade["reference"], trade["setting"]) == ("best", "fast")


@pytest.mark.parametrize("settings", [{}, {"stock": FAILED}, {"stock": entry(1.0, None)}])
def test_no_setting_was_compared(settings):
    trade = find_trade(settings, 0.005)
    assert trade == {"budget": 0.005, "reference": None, "setting": None, "command": None}
    text = format_trade({"trade": trade, "settings": settings})
    assert text == "No trade within a budget of 0.005: no setting was measured and compared with the labels."


def test_what_is_said_of_a_trade():
    settings = {"stock": STOCK, "fast": entry(2.0, 0.8675)}
    text = format_trade({"trade": find_trade(settings, 0.005), "settings": settings})
    assert text.splitlines() == [
        "Fastest within 0.005 of the mean DSC of stock: fast, 2.00 s a case (4.0 times as fast), DSC 0.8675 (-0.0025).",
        "  predict -i IN -o OUT -step_size 0.7",
    ]
    text = format_trade({"trade": find_trade(settings, 0.0), "settings": settings})
    assert text.startswith("Fastest within 0 of the mean DSC of stock: stock, 8.00 s a case, DSC 0.8700.\n  predict ")


def test_what_was_compared_with_other_labels_is_passed_over():
    settings = {"stock": entry(8.0, 0.87), "fast": entry(2.0, 0.868), "faster": entry(1.0, 0.99)}
    for name, labels in {"stock": "new", "fast": "new", "faster": "old"}.items():
        settings[name]["quality"]["labels"] = labels
    assert find_trade(settings, 0.005, "new")["setting"] == "fast"
    assert find_trade(settings, 0.005, "old")["reference"] == "faster"


def test_a_command_for_other_images_is_quoted():
    command = ["predict", "-i", "/my images", "-o", "/out", "-m", "/my model", "-f", "0", "--x=-i"]
    assert for_other_images(command) == "predict -i IN -o OUT -m '/my model' -f 0 --x=-i"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Engines and precisions that this machine has as far as settings ask."""
    there = {"torch", "compile", "openvino", "float32", "bfloat16"}

    def check(engine: str, precision: str | None, device: Any) -> None:
        for what in (engine, precision):
            if what not in (None, "auto") and what not in there:
                raise ValueError(f"there is no {what} on {device.type}")

    monkeypatch.setattr("nnunet_ext.engines.choice.available", lambda engine: engine in there)
    monkeypatch.setattr("nnunet_ext.engines.choice.check", check)
    return there


def names(*settings: Setting, device: str = "cpu") -> tuple[list[str], dict[str, str]]:
    left, reasons = runnable(settings, device)
    return [setting.name for setting in left], reasons


OURS = tuple(SETTINGS[name] for name in ("stock", "engine", "engine_bf16", "skip_background", "fastest"))


def test_on_a_cpu_with_everything_all_are_run_as_they_are(installed):
    assert runnable(OURS, "cpu") == (list(OURS), {})


def test_without_openvino_or_units_for_bfloat16(installed):
    own = Setting("own", ("--engine", "torch", "--engine=openvino"))
    installed.remove("openvino")
    left, reasons = names(*OURS, own)
    assert left == ["stock", "engine_bf16", "skip_background", "fastest"]
    assert reasons["engine"].endswith("so it would be fast_export; pip install nnunetv2-ext[openvino]")
    assert reasons["own"] == "there is no openvino on cpu"
    installed.remove("bfloat16")
    left, reasons = names(*OURS)
    assert left == ["stock", "skip_background"]
    assert reasons["fastest"] == reasons["engine_bf16"] == "there is no bfloat16 on cpu"
    with pytest.raises(ValueError, match=r"no setting can be run here \(engine_bf16: there is no bfloat16 on cpu\)"):
        runnable([SETTINGS["engine_bf16"]], "cpu")


def test_on_a_gpu_half_precision_is_nnunets_own(installed):
    installed.remove("openvino")
    own = Setting("own", ("--precision", "bfloat16"))
    left, reasons = runnable([*OURS, own], "cuda")
    flags = {setting.name: " ".join(setting.flags) for setting in left}
    assert list(flags) == ["stock", "engine", "skip_background", "fastest", "own"]
    assert flags["fastest"] == "--fast_export --disable_tta -step_size 0.7 --engine auto --skip_background"
    assert flags["own"] == "--precision bfloat16"
    assert list(reasons) == ["engine_bf16"]
    assert "so it is the same as engine" in reasons["engine_bf16"]


def test_on_other_devices_it_is_float32(installed):
    left, reasons = names(*OURS, device="mps")
    assert left == ["stock", "engine", "skip_background", "fastest"]
    assert reasons == {"engine_bf16": "on mps nnU-Net's own precision is float32, so it is the same as engine"}


def test_settings_without_engines_need_no_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runnable_module, "SETTINGS", {})
    assert names(SETTINGS["stock"], SETTINGS["fast"], SETTINGS["skip_background"])[1] == {}
