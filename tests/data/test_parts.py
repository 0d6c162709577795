import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import blosc2
import pytest
from data.tiny_dataset import TinyDataset

from nnunet_ext import files
from nnunet_ext.cli.main import main
from nnunet_ext.data import parts
from nnunet_ext.data import preprocess as preprocessing
from nnunet_ext.data.parts import ALL, Part, only_part
from nnunet_ext.data.preprocess import Summary, preprocess_unlabeled
from nnunet_ext.data.unlabeled_store import finished_cases
from nnunet_ext.files import BusyError

NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def dataset(tiny: TinyDataset) -> TinyDataset:
    for seed, name in enumerate(NAMES):
        tiny.add_unlabeled(name, seed, spacing=(1, 1, 2))
    return tiny


def run(part: Part = ALL, clean: bool = False) -> Summary:
    return preprocess_unlabeled(777, "nnUNetPlans", "3d_fullres", 1, clean, False, part)


def content(folder: Path) -> dict[str, str]:
    """Return a digest of every file below a folder; of arrays one of their values."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:  # threads of blosc2, of which other tests leave some, write their blocks in any order
            content = blosc2.open(str(path), mode="r")[:].tobytes() if path.suffix == ".b2nd" else path.read_bytes()
        except RuntimeError:  # no array, as of a case that was cut off
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_parts_are_every_nth_of_the_sorted_cases(count):
    taken = [Part(index, count).take({"c", "a", "e", "b", "d"}) for index in range(count)]
    assert taken == [NAMES[index::count] for index in range(count)]
    assert sorted(name for names in taken for name in names) == NAMES


@pytest.mark.parametrize(("index", "count", "expected"), [(4, 4, "0 to 3"), (1, 1, "0"), (-1, 2, "0 to 1")])
def test_a_part_out_of_range(index, count, expected):
    with pytest.raises(ValueError, match=f"-part_id is {index}, expected {expected}, as -num_parts is {count}"):
        Part(index, count)


def test_parts_together_equal_one_run_and_the_next_run_does_nothing(dataset: TinyDataset):
    folder = run().folder
    expected = content(folder)
    assert len(expected) == 15
    preprocessing.shutil.rmtree(folder)
    done = [run(Part(index, 3)).done for index in (2, 0, 1)]
    assert done == [["c"], ["a", "d"], ["b", "e"]]
    assert content(folder) == expected
    merged = run()
    assert (merged.done, merged.kept, merged.removed) == ([], NAMES, [])
    assert content(folder) == expected


def test_a_part_leaves_everything_of_others_alone(dataset: TinyDataset):
    folder = run().folder
    left = folder / f"{files.PREFIX}{files._machine()}_999999999_0_b.b2nd"  # of a process that is no more
    left.touch()
    (dataset.raw / "imagesUnlabeled" / "e_0000.nii.gz").unlink()
    before = content(folder)
    assert run(Part(0, 2), clean=True).done == ["a", "c"]
    assert run(Part(1, 2)).kept == ["b", "d"]
    assert content(folder) == before  # also what is of no case any more
    assert run().removed == ["e"]
    assert not left.exists()


def test_a_bad_case_is_the_failure_of_its_own_part(dataset: TinyDataset):
    (dataset.raw / "imagesUnlabeled" / "nosuffix.nii.gz").write_bytes(b"no channel")
    (dataset.raw / "imagesUnlabeled" / "bad_0000.nii.gz").write_bytes(b"no image")
    failed = [failure.case for index in range(3) for failure in run(Part(index, 3)).failures]
    assert sorted(failed) == sorted(failure.case for failure in run().failures)
    assert len(failed) == 2


def test_starting_over_with_a_part_redoes_its_own_cases(dataset: TinyDataset):
    expected = content(run().folder)
    summary = run(Part(1, 2), clean=True)
    assert (summary.done, summary.kept) == (["b", "d"], [])
    assert content(summary.folder) == expected


def test_starting_over_touches_nothing_outside_whatever_a_case_is_called(dataset: TinyDataset):
    image = str(dataset.raw / "imagesUnlabeled" / "a_0000.nii.gz")
    dataset.write_dataset_json(unlabeled={"../nnUNetPlans": {"images": [image]}})
    plans = dataset.preprocessed / "nnUNetPlans.json"
    run()
    failed = [failure.case for index in range(2) for failure in run(Part(index, 2), clean=True).failures]
    assert failed == ["../nnUNetPlans"]
    assert plans.is_file()


def test_locks_of_parts_and_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "_PATIENCE_SECONDS", 0.1)
    folder = tmp_path / "data [1]"
    here = f"by process {os.getpid()} on .* since .*; wait until it is done, or stop it"
    with only_part(folder, "preprocessed", Part(0, 2)), only_part(folder, "preprocessed", Part(1, 2)):
        for part, name in ((Part(0, 2), r" \(part 0 of 2\)"), (ALL, r" \(part 0 of 2\)")):
            expected = rf"data \[1\]{name} is being preprocessed {here}"
            with pytest.raises(BusyError, match=expected), only_part(folder, "preprocessed", part):
                pass
    with only_part(folder, "preprocessed"):
        expected = rf"data \[1\] is being preprocessed {here}"
        with pytest.raises(BusyError, match=expected), only_part(folder, "preprocessed", Part(1, 2)):
            pass
    with only_part(folder, "preprocessed", Part(1, 2)):  # nothing is left of those that were refused
        pass


def _killed_at_its_second_case() -> None:
    original = preprocessing.store.write_json

    def write_json(path: Path, *arguments, **named) -> None:
        if path.name == "c.json":  # the arrays are in place, the mark of a finished case is not
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, *arguments, **named)

    preprocessing.store.write_json = write_json
    run(Part(0, 2))


def test_a_killed_part_is_run_again(dataset: TinyDataset):
    folder = run().folder
    expected = content(folder)
    preprocessing.shutil.rmtree(folder)
    process = multiprocessing.get_context("spawn").Process(target=_killed_at_its_second_case)
    process.start()
    assert run(Part(1, 2)).done == ["b", "d"]  # at the same time
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert finished_cases(folder) == ["a", "b", "d"]
    again = run(Part(0, 2))
    assert (again.kept, again.done) == (["a"], ["c", "e"])
    assert run().kept == NAMES
    assert content(folder) == expected


def test_commands_of_parts(dataset: TinyDataset, capsys):
    def command(*more: str) -> tuple[int, str, str]:
        status = main(["preprocess_unlabeled", "-d", "777", "-np", "1", "--no_pbar", *more])
        return (status, *capsys.readouterr())

    status, printed, _ = command("-num_parts", "2", "-part_id", "1")
    assert status == 0
    assert "3d_fullres, part 1 of 2: 2 preprocessed, 0 up to date, 0 removed, 0 failed, in " in printed
    status, _, error = command("-num_parts", "2", "-part_id", "2")
    assert status == 1
    assert "error: -part_id is 2, expected 0 to 1, as -num_parts is 2; the first part is 0" in error
    with pytest.raises(SystemExit):
        command("-num_parts", "0")
    folder = dataset.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    with only_part(folder, "preprocessed", Part(0, 2)):
        status, _, error = command("-num_parts", "2")
        assert status == 1
        assert f"error: {folder} (part 0 of 2) is being preprocessed by process " in error
        began = time.monotonic()
        assert command()[0] == 1  # all of them, which would remove what is of no case
        assert time.monotonic() - began < 10
    assert command()[1].startswith("3d_fullres: 3 preprocessed, 2 up to date")
