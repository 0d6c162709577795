import os
import re

import pytest
from data.tiny_dataset import TinyDataset

from nnunet_ext.data.case_files import name_problem
from nnunet_ext.data.labelled import labelled_images, usable_labelled
from nnunet_ext.data.preprocess import preprocess_unlabeled
from nnunet_ext.data.unlabeled import find_unlabeled_cases, where_looked


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_union_of_folder_and_dataset_json(tiny: TinyDataset, monkeypatch):
    folder = touch(tiny.raw / "imagesUnlabeled" / "b_0000.nii.gz")
    absolute = touch(tiny.root / "elsewhere" / "scan one.nii.gz")
    relative = touch(tiny.raw / "more" / "c.nii.gz")
    monkeypatch.setenv("TINY_SCANS", str(absolute.parent))
    content = tiny.write_dataset_json(
        unlabeled={"c": {"images": ["more/c.nii.gz"]}, "a": {"images": ["${TINY_SCANS}/scan one.nii.gz"]}}
    )
    cases, failures = find_unlabeled_cases(tiny.raw, content)
    assert failures == []
    assert list(cases) == ["a", "b", "c"]
    assert [case.images for case in cases.values()] == [(str(absolute),), (str(folder),), (str(relative),)]
    assert not any(case.hidden_label for case in cases.values())


def test_relative_paths_count_from_the_folder_of_the_dataset(tiny: TinyDataset):
    outside = touch(tiny.raw.parent / "shared" / "x_0000.nii.gz")
    content = tiny.write_dataset_json(unlabeled={"x": {"images": ["../shared/x_0000.nii.gz"]}})
    cases, failures = find_unlabeled_cases(tiny.raw, content)
    assert failures == []
    assert cases["x"].images == (str(outside),)


def test_channels_are_in_order(tiny: TinyDataset):
    content = tiny.write_dataset_json(channels=3)
    files = [touch(tiny.raw / "imagesUnlabeled" / f"a_{c:04d}.nii.gz") for c in (2, 0, 1)]
    cases, _ = find_unlabeled_cases(tiny.raw, content)
    assert cases["a"].images == (str(files[1]), str(files[2]), str(files[0]))


def test_a_name_in_both_places_is_an_error(tiny: TinyDataset):
    touch(tiny.raw / "imagesUnlabeled" / "a_0000.nii.gz")
    touch(tiny.raw / "a.nii.gz")
    content = tiny.write_dataset_json(unlabeled={"a": {"images": ["a.nii.gz"]}})
    with pytest.raises(ValueError, match=r"must be unique, but \['a'\]"):
        find_unlabeled_cases(tiny.raw, content)


@pytest.mark.parametrize("labelled_in_json", [False, True])
def test_a_labelled_case_cannot_be_unlabelled_too(tiny: TinyDataset, labelled_in_json):
    touch(tiny.raw / "imagesUnlabeled" / "a_0000.nii.gz")
    touch(tiny.raw / "imagesTr" / "a_0000.nii.gz")
    dataset = {"dataset": {"a": {"images": ["imagesTr/a_0000.nii.gz"], "label": "none"}}}
    content = tiny.write_dataset_json(**dataset if labelled_in_json else {})
    with pytest.raises(ValueError, match=r"\['a'\] is a labelled case .* 'unlabeled' in splits_final.json"):
        find_unlabeled_cases(tiny.raw, content)


@pytest.mark.parametrize("name", ["../x", "a/b", "scan one", "case_seg", ".hidden", "-x", "", "a\nb", "ümlaut"])
def test_bad_names_are_named_failures_and_cost_nothing_else(tiny: TinyDataset, name):
    touch(tiny.raw / "x.nii.gz")
    content = tiny.write_dataset_json(unlabeled={name: {"images": ["x.nii.gz"]}, "good": {"images": ["x.nii.gz"]}})
    cases, failures = find_unlabeled_cases(tiny.raw, content)
    assert list(cases) == ["good"]
    assert [f.case for f in failures] == [name]
    assert repr(name) in failures[0].reason
    assert "Rename it" in failures[0].reason
    assert failures[0].kind == "unlabelled"


@pytest.mark.parametrize("name", ["a", "A.b-c_1", "0", "case_segmented"])
def test_good_names(name):
    assert name_problem(name) is None


@pytest.mark.parametrize("file", ["scan one_0000.nii.gz", "case_seg_0000.nii.gz"])
def test_bad_names_of_files(tiny: TinyDataset, file):
    touch(tiny.raw / "imagesUnlabeled" / file)
    cases, failures = find_unlabeled_cases(tiny.raw, tiny.write_dataset_json())
    assert cases == {}
    assert [f.case for f in failures] == [file[: -len("_0000.nii.gz")]]
    assert "Rename it" in failures[0].reason


@pytest.mark.parametrize(
    ("files", "case", "reason"),
    [
        (["a_0000.nii.gz"], "a", r"found channels \[0\], expected \[0, 1\]"),
        (["a_0001.nii.gz", "a_0002.nii.gz"], "a", r"found channels \[1, 2\], expected \[0, 1\]"),
        (["a_0000.nii", "b_0000.nii.gz", "b_0001.nii.gz"], "a_0000.nii", r"does not end in '.nii.gz'"),
        (["a.nii.gz"], "a.nii.gz", r"has no channel suffix; expected CASE_0000\.nii\.gz"),
    ],
)
def test_files_that_make_no_case_are_failures(tiny: TinyDataset, files, case, reason):
    for file in files:
        touch(tiny.raw / "imagesUnlabeled" / file)
    touch(tiny.raw / "imagesUnlabeled" / "notes.txt")
    touch(tiny.raw / "imagesUnlabeled" / "._a_0000.nii.gz")  # what a Mac leaves behind
    cases, failures = find_unlabeled_cases(tiny.raw, tiny.write_dataset_json(channels=2))
    assert set(cases) <= {"b"}
    assert [f.case for f in failures] == [case]
    assert re.search(reason, failures[0].reason)
    assert str(tiny.raw / "imagesUnlabeled" / case) in failures[0].reason


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"images": ["gone.nii.gz"]}, "gone.nii.gz does not exist. Correct the path in dataset.json."),
        ({"images": ["there.nrrd"]}, "there.nrrd does not end in '.nii.gz'"),
        ({"images": []}, "gives 0 image(s) for it, expected 1"),
        ({}, "gives 0 image(s) for it, expected 1"),
        ({"images": ["there.nii.gz", "there.nii.gz"]}, "gives 2 image(s) for it, expected 1"),
        ("there.nii.gz", 'expected {"images": [...]}'),
        ({"images": "there.nii.gz"}, 'expected {"images": [...]}'),
    ],
)
def test_entries_of_dataset_json_that_make_no_case_are_failures(tiny: TinyDataset, entry, reason):
    touch(tiny.raw / "there.nii.gz")
    touch(tiny.raw / "there.nrrd")
    content = tiny.write_dataset_json(unlabeled={"a": entry, "b": {"images": ["there.nii.gz"]}})
    cases, failures = find_unlabeled_cases(tiny.raw, content)
    assert list(cases) == ["b"]
    assert [f.case for f in failures] == ["a"]
    assert reason in failures[0].reason


def test_a_list_instead_of_names_says_what_was_expected(tiny: TinyDataset):
    content = tiny.write_dataset_json(unlabeled=["a.nii.gz"])
    with pytest.raises(ValueError, match=r"'unlabeled' in dataset.json must map case names"):
        find_unlabeled_cases(tiny.raw, content)


def test_nothing_found_says_where_and_how(tiny: TinyDataset):
    assert find_unlabeled_cases(tiny.raw, tiny.write_dataset_json()) == ({}, [])
    with pytest.raises(FileNotFoundError) as raised:
        preprocess_unlabeled(777, "nnUNetPlans", "3d_fullres", 1, show_progress_bar=False)
    text = str(raised.value)
    assert where_looked(tiny.raw) in text
    assert str(tiny.raw / "imagesUnlabeled") in text
    assert str(tiny.raw / "dataset.json") in text
    assert "imagesUnlabeled/CASE_0000.nii.gz" in text
    assert '"unlabeled": {"CASE": {"images": [' in text


def test_hidden_cases_come_from_the_labelled_images(tiny: TinyDataset):
    image = touch(tiny.raw / "imagesTr" / "a_0000.nii.gz")
    touch(tiny.raw / "imagesTr" / "b_0000.nii.gz")
    cases, failures = find_unlabeled_cases(tiny.raw, tiny.write_dataset_json(), ["a"])
    assert failures == []
    assert {n: (c.images, c.hidden_label) for n, c in cases.items()} == {"a": ((str(image),), True)}


def test_hidden_case_that_does_not_exist(tiny: TinyDataset):
    touch(tiny.raw / "imagesTr" / "a_0000.nii.gz")
    with pytest.raises(ValueError, match=r"lists 'gone' under 'unlabeled', but there is no such case"):
        find_unlabeled_cases(tiny.raw, tiny.write_dataset_json(), ["gone"])


def test_labelled_images_of_both_forms(tiny: TinyDataset, monkeypatch):
    image = touch(tiny.raw / "imagesTr" / "a_0000.nii.gz")
    assert labelled_images(tiny.raw, tiny.write_dataset_json()) == {"a": (str(image),)}
    monkeypatch.setenv("TINY_SCANS", str(tiny.raw / "imagesTr"))
    content = tiny.write_dataset_json(dataset={"x": {"images": ["$TINY_SCANS/a_0000.nii.gz"], "label": "none"}})
    assert labelled_images(tiny.raw, content) == {"x": (str(image),)}


def test_labelled_images_without_any(tiny: TinyDataset):
    assert labelled_images(tiny.raw, tiny.write_dataset_json()) == {}


def a_pipe(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def a_dangling_link(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.parent / "gone.nii.gz")


def a_folder(path):
    path.mkdir(parents=True)


KINDS = [
    (a_pipe, "is no regular file but a pipe, a socket or a device"),
    (a_dangling_link, "is a link to .*gone.nii.gz, which does not exist; restore that file, or remove the link"),
    (a_folder, "is a folder, expected a file"),
]


@pytest.mark.parametrize(("make", "reason"), KINDS)
@pytest.mark.parametrize("listed", [False, True])
def test_what_is_no_regular_file_is_a_failure_by_name(tiny: TinyDataset, make, reason, listed):
    bad = tiny.raw / "imagesUnlabeled" / "a_0000.nii.gz"
    if listed:
        bad = tiny.raw / "elsewhere" / "a.nii.gz"
    make(bad)
    target = touch(tiny.root / "target.nii.gz")
    (tiny.raw / "imagesUnlabeled").mkdir(exist_ok=True)
    (tiny.raw / "imagesUnlabeled" / "good_0000.nii.gz").symlink_to(target)
    content = tiny.write_dataset_json(**{"unlabeled": {"a": {"images": [str(bad)]}}} if listed else {})
    cases, failures = find_unlabeled_cases(tiny.raw, content)
    assert list(cases) == ["good"]
    assert [failure.case for failure in failures] == ["a"]
    assert re.search(f"{bad} {reason}", failures[0].reason)


@pytest.mark.parametrize(("make", "reason"), KINDS)
def test_a_labelled_case_with_something_that_is_no_file(tiny: TinyDataset, make, reason):
    """nnU-Net lists no image that is a pipe, and waits for a label that is one."""
    for name in ("a", "b", "c"):
        touch(tiny.raw / "imagesTr" / f"{name}_0000.nii.gz")
        touch(tiny.raw / "labelsTr" / f"{name}.nii.gz")
    (tiny.raw / "imagesTr" / "a_0000.nii.gz").unlink()
    (tiny.raw / "labelsTr" / "b.nii.gz").unlink()
    make(tiny.raw / "imagesTr" / "a_0000.nii.gz")
    make(tiny.raw / "labelsTr" / "b.nii.gz")
    content = tiny.write_dataset_json()
    images = {name: [str(tiny.raw / "imagesTr" / f"{name}_0000.nii.gz")] for name in ("b", "c")}
    labelled = {n: {"images": i, "label": str(tiny.raw / "labelsTr" / f"{n}.nii.gz")} for n, i in images.items()}
    usable, failures = usable_labelled(tiny.raw, content, labelled, "2d")
    assert list(usable) == ["c"]
    assert [(failure.case, failure.kind, failure.stage) for failure in failures] == [
        ("a", "labelled", "2d"),
        ("b", "labelled", "2d"),
    ]
    assert all(re.search(reason, failure.reason) for failure in failures)
    cases, failures = find_unlabeled_cases(tiny.raw, content, hidden=["a", "c"])
    assert list(cases) == ["c"]
    assert [failure.case for failure in failures] == ["a"]


def test_a_labelled_case_without_one_of_its_channels(tiny: TinyDataset):
    image, label = touch(tiny.raw / "imagesTr" / "a_0001.nii.gz"), touch(tiny.raw / "labelsTr" / "a.nii.gz")
    labelled = {"a": {"images": [str(image)], "label": str(label)}}
    usable, failures = usable_labelled(tiny.raw, tiny.write_dataset_json(channels=2), labelled, "2d")
    assert usable == {}
    assert failures[0].reason == f"1 image file(s) ['{image}'], expected 2: CASE_0000 and so on."


@pytest.mark.parametrize("images", [[5], "x.nii.gz", [["x.nii.gz"]]])
def test_images_that_are_no_paths_are_a_failure(tiny: TinyDataset, images):
    cases, failures = find_unlabeled_cases(tiny.raw, tiny.write_dataset_json(unlabeled={"a": {"images": images}}))
    assert cases == {}
    assert 'expected {"images": [...]}' in failures[0].reason
