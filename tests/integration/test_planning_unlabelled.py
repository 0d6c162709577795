"""Fingerprints, plans and preprocessing of unlabelled scans, by nnU-Net's own commands."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

pytestmark = pytest.mark.integration

EXTRACTOR = "GlobalIntensityFingerprintExtractor"
GLOBAL_KEY = "global_intensity_properties_per_channel"
DATA = Path(os.environ.get("NNUNET_EXT_DATA", Path(__file__).parents[3] / "shared" / "data"))


def fingerprint(workspace) -> dict:
    return json.loads((workspace.preprocessed / "dataset_fingerprint.json").read_text())


def plans(workspace, name: str) -> dict:
    return json.loads((workspace.preprocessed / f"{name}.json").read_text())


def extract(workspace, *more, status: int = 0):
    command = ("nnUNetv2_extract_fingerprint", "-d", workspace.number, "-fpe", EXTRACTOR, "-np", 1, "--no_pbar", *more)
    return workspace.run(*command, status=status)


@pytest.fixture(scope="module")
def bare(new_workspace):
    """Seven unlabelled scans of CT and PET, one damaged and two lying elsewhere; no imagesTr, no labelsTr."""
    workspace = new_workspace("Dataset906_Bare")
    workspace.write_dataset({"background": 0, "large": 1, "small": 2}, modalities=("CT", "PET"), extra=7)
    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(workspace.raw / folder)
    archive = workspace.root / "archive_of_Jane_Doe"
    archive.mkdir()
    content = json.loads((workspace.raw / "dataset.json").read_text()) | {"numTraining": 0, "unlabeled": {}}
    for number in (5, 6):
        names = [f"extra_{number}_{channel}.nii.gz" for channel in ("0000", "0001")]
        for name in names:
            (workspace.raw / "imagesUnlabeled" / name).rename(archive / name)
        content["unlabeled"][f"extra_{number}"] = {"images": [f"${{ARCHIVE}}/{name}" for name in names]}
    (workspace.raw / "dataset.json").write_text(json.dumps(content))
    (workspace.raw / "imagesUnlabeled" / "extra_0_0000.nii.gz").write_bytes(b"no image")
    return workspace


@pytest.fixture(scope="module")
def bare_done(bare):
    more = ("-fpe", EXTRACTOR, "--verify_dataset_integrity")
    return bare.plan_and_preprocess("SemiSupervisedPlannerResEncM", ("2d", "3d_fullres"), status=1, more=more)


class TestUnlabelledOnly:
    def test_everything_is_made_and_the_damaged_scan_listed_once(self, bare, bare_done):
        assert "1 case(s) failed; everything else is done and kept." in bare_done.output
        assert re.search(
            r"extra_0 \[verify, fingerprint, 2d, 3d_fullres\]: .+extra_0_0000\.nii\.gz cannot be", bare_done.output
        )
        found = fingerprint(bare)
        assert len(found["unlabeled_spacings"]) == 6
        assert found["foreground_intensity_properties_per_channel"] == found[GLOBAL_KEY]
        made = plans(bare, "SemiSupervisedResEncMPlans")
        assert (made["intensity_source"], made["spacing_source"]) == ("global", "all")
        assert made["foreground_intensity_properties_per_channel"] == found[GLOBAL_KEY]
        assert made["configurations"]["2d"]["batch_size"] <= 12
        for configuration in ("2d", "3d_fullres"):
            folder = bare.preprocessed / f"SemiSupervisedResEncMPlans_{configuration}_unlabeled"
            assert sorted(path.stem for path in folder.glob("*.b2nd")) == [f"extra_{n}" for n in range(1, 7)]

    def test_the_printed_memory_is_that_of_every_configuration(self, bare_done):
        for name in ("2d", "3d_fullres"):
            assert re.search(rf"  {name}: \d+\.\d GB \(patch [\d x]+, \d+ \+ \d+\)", bare_done.output)

    def test_plans_move_there_and_from_there(self, bare, bare_done, blobs, prepared):
        both = {"nnUNet_raw": str(bare.root / "both_raw"), "nnUNet_preprocessed": str(bare.root / "both_pre")}
        for folder, workspaces in zip(
            both.values(), (("raw", bare, blobs), ("preprocessed", bare, blobs)), strict=True
        ):
            Path(folder).mkdir()
            for workspace in workspaces[1:]:
                (Path(folder) / workspace.dataset).symlink_to(getattr(workspace, workspaces[0]))
        for file in (bare.raw / "imagesUnlabeled").glob("extra_0_*.nii.gz"):
            file.unlink()  # the first image is nnU-Net's example
        move = "nnUNetv2_move_plans_between_datasets"
        names = ("-sp", "SemiSupervisedPlans", "-tp", "FromBlobs")
        bare.run(move, "-s", blobs.number, "-t", bare.number, *names, **both)
        moved = plans(bare, "FromBlobs")
        assert moved["image_reader_writer"] == "SimpleITKIO"
        assert moved["intensity_source"] == "global"
        names = ("-sp", "SemiSupervisedResEncMPlans", "-tp", "FromBare")
        bare.run(move, "-s", bare.number, "-t", blobs.number, *names, **both)
        assert plans(blobs, "FromBare")["configurations"]["3d_fullres"]["data_identifier"] == "FromBare_3d_fullres"
        bare.run("nnUNetv2_preprocess", "-d", bare.number, "-plans_name", "FromBlobs", "-c", "3d_fullres", "-np", 1)
        assert len(list((bare.preprocessed / "FromBlobs_3d_fullres_unlabeled").glob("*.b2nd"))) == 6

    def test_nnunets_own_extractor_says_what_to_use(self, bare, bare_done):
        done = bare.run("nnUNetv2_extract_fingerprint", "-d", bare.number, "-np", 1, "--clean", status=1)
        assert "Use -fpe GlobalIntensityFingerprintExtractor" in done.last_line


class TestFlags:
    def test_no_pp_spacing_memory_and_plans_name(self, blobs, prepared):
        more = ("-fpe", EXTRACTOR, "--no_pp", "-overwrite_plans_name", "Tight", "-gpu_memory_target", 3)
        spacing = ("-overwrite_target_spacing", 2, 2, 2)
        done = blobs.plan_and_preprocess("SemiSupervisedPlanner", more=(*more, *spacing))
        made = plans(blobs, "Tight")
        assert made["configurations"]["3d_fullres"]["spacing"] == [2, 2, 2]
        assert re.search(r"[02] read now, 0 failed", done.output)  # at most the two that were mended since
        assert not (blobs.preprocessed / "Tight_3d_fullres").exists()
        (needed,) = re.findall(r"3d_fullres: (\d+\.\d) GB", done.output)
        assert float(needed) <= 2

    def test_clean_starts_over(self, blobs, prepared):
        extract(blobs)  # with the scans that were mended since
        before = fingerprint(blobs)
        done = extract(blobs, "--clean", "--verify_dataset_integrity")
        assert "9 read now, 0 failed" in done.output
        assert fingerprint(blobs) == before

    def test_a_killed_extraction_continues(self, bare, new_workspace):
        many = new_workspace("Dataset907_Many")
        shutil.copytree(bare.raw / "imagesUnlabeled", many.raw / "imagesUnlabeled")
        for file in (many.raw / "imagesUnlabeled").glob("extra_0_*.nii.gz"):
            file.unlink()
        images = [f"imagesUnlabeled/extra_1_{channel}.nii.gz" for channel in ("0000", "0001")]
        listed = {f"again_{n:03d}": {"images": images} for n in range(400)}
        content = json.loads((bare.raw / "dataset.json").read_text()) | {"unlabeled": listed}
        (many.raw / "dataset.json").write_text(json.dumps(content))
        name = "nnUNetv2_extract_fingerprint"
        program = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
        with open(many.root / "output", "w") as output:
            process = subprocess.Popen(
                [program, "-d", str(many.number), "-fpe", EXTRACTOR, "-np", "1"],
                env=many.environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        kept = many.preprocessed / "fingerprint_cases" / "unlabelled"
        deadline = time.monotonic() + 120
        while not (kept.is_dir() and len(list(kept.glob("again_*.npz"))) > 5):
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (many.preprocessed / "dataset_fingerprint.json").exists()
        before = len([path for path in kept.glob("*.npz") if not path.name.startswith(".")])
        done = extract(many)
        total = 400 + len(list((many.raw / "imagesUnlabeled").glob("*_0000.nii.gz")))
        assert f"{total - before} read now, 0 failed" in done.output
        assert len(fingerprint(many)["unlabeled_spacings"]) == total
        assert not list(kept.glob(".*"))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA} (NNUNET_EXT_DATA)")
class TestRealData:
    def test_hippocampus_keeps_nnunets_keys_and_plans(self, new_workspace):
        workspace = new_workspace("Dataset904_HippocampusSSL")
        (workspace.root / "raw" / workspace.dataset).symlink_to(DATA / workspace.dataset)
        stock = ("nnUNetv2_extract_fingerprint", "-d", 904, "-np", 1, "--no_pbar")
        workspace.run(*stock)
        before = fingerprint(workspace)
        extract(workspace)
        completed = fingerprint(workspace)
        assert {key: completed[key] for key in before} == before
        assert len(completed["unlabeled_spacings"]) == 150
        extract(workspace, "--clean")
        assert fingerprint(workspace) == completed
        images = [*DATA.glob("Dataset904*/imagesTr/*.nii.gz"), *DATA.glob("Dataset904*/imagesUnlabeled/*.nii.gz")]
        voxels = np.concatenate([SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(i))).ravel() for i in images])
        found = completed[GLOBAL_KEY]["0"]
        assert found["percentile_99_5"] == pytest.approx(np.percentile(voxels, 99.5), rel=1e-3)
        assert found["mean"] == pytest.approx(voxels.astype(np.float64).mean(), rel=1e-6)

    def test_ct_is_exact(self, new_workspace):
        workspace = new_workspace("Dataset908_CT")
        folder = workspace.raw / "imagesUnlabeled"
        folder.mkdir(parents=True)
        for name in ("example_ct", "example_ct_sm"):
            shutil.copy(DATA / "ct" / f"{name}.nii.gz", folder / f"{name}_0000.nii.gz")
        content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}}
        content |= {"numTraining": 0, "file_ending": ".nii.gz"}
        (workspace.raw / "dataset.json").write_text(json.dumps(content))
        extract(workspace)
        images = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(i))) for i in folder.iterdir()]
        voxels = np.concatenate([image.ravel() for image in images]).astype(np.float64)
        found = fingerprint(workspace)[GLOBAL_KEY]["0"]
        for key, percentage in (("percentile_00_5", 0.5), ("median", 50), ("percentile_99_5", 99.5)):
            assert found[key] == np.percentile(voxels, percentage)
        assert (found["min"], found["max"]) == (voxels.min(), voxels.max())
        assert found["std"] == pytest.approx(voxels.std(), rel=1e-9)
        drawn = workspace.run("nnUNetv2_ext", "fingerprint", "-d", workspace.number, "-np", 1)
        assert "unlabelled  channel CT: clipping window " in drawn.output
        assert (workspace.preprocessed / "fingerprint.png").stat().st_size > 10000
