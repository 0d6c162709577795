"""``nnUNetv2_ext profile`` on a trained model, with the stock command."""

import json

import pytest

pytestmark = pytest.mark.integration


def test_a_profile_of_a_trained_model(trained):
    workspace = trained.workspace
    labels, output = workspace.write_test_labels(workspace.root / "profile_labels"), workspace.root / "profile"
    command = (
        *("nnUNetv2_ext", "profile", "-i", workspace.raw / "imagesTs", "-o", output, "-m", trained.model),
        *("--labels", labels, "--settings", "stock", "no_mirroring", "-device", "cpu", "-npp", 1, "-nps", 1),
    )
    done = workspace.run(*command)
    document = json.loads((output / "profile.json").read_text())
    assert list(document["settings"]) == ["stock", "no_mirroring"]
    for name, entry in document["settings"].items():
        assert 0 < entry["measured"]["seconds_per_case"] < entry["measured"]["seconds"]
        assert 100 < entry["measured"]["peak_memory_mb"] < 10_000
        assert entry["measured"]["cpu_area_percent_s"] > 0
        assert len(entry["curves"]["memory_mb"]["values"]) > 1
        assert set(entry["quality"]["cases"]) == {"test_0", "test_1"}
        assert set(entry["quality"]["classes"]) == {"large", "small"}
        for measure in ("dsc", "nsd"):
            value = entry["quality"]["mean"][measure]
            assert value is None or 0 <= value <= 1
        assert f"\n{name} " in done.output
        assert "done with test_1" in (output / f"{name}.log").read_text()
    assert (output / "profile.png").stat().st_size > 10_000
    before = {file: file.stat().st_mtime_ns for file in output.glob("*/*.nii.gz")}
    again = workspace.run(*command, "--json")
    assert json.loads(again.output[again.output.index("{") :])["settings"] == document["settings"]
    assert {file: file.stat().st_mtime_ns for file in output.glob("*/*.nii.gz")} == before
