from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from data.tiny_dataset import TinyDataset
from data.two_streams import Make, MirrorsOnly

from nnunet_ext.data.loaders import TwoStreamLoader, in_background, two_stream_loader, validation_loader
from nnunet_ext.data.transforms import with_validity
from nnunet_ext.data.unlabeled_store import read_metadata, save_case

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
}
IGNORE = {"labels": {"background": 0, "organ": 1, "ignore": 2}}


@pytest.mark.parametrize(
    ("configuration", "shape"), [("3d_fullres", (2, 1, 16, 16, 16)), ("2d", (2, 1, 16, 16))], ids=["3d", "2d"]
)
def test_two_halves_of_equal_size(make: Make, configuration, shape):
    _, loader = make(configuration=configuration)
    for _ in range(3):
        batch = next(loader)
        assert tuple(batch["data"].shape) == tuple(batch["unlabeled"].shape) == shape
        assert tuple(batch["target"].shape) == shape
        assert tuple(batch["valid"].shape) == (4, *shape[1:])
        assert batch["valid"].dtype == torch.uint8
        assert batch["data"].dtype == batch["unlabeled"].dtype == torch.float32
        assert set(batch["keys"][:2]) <= {"l", "m"}
        assert set(batch["keys"][2:]) <= {"ul", "um"}
        assert len(batch["keys"]) == 4


def test_deep_supervision_has_a_target_a_scale_and_one_mask(make: Make):
    _, loader = make(deep_supervision=True)
    batch = next(loader)
    assert isinstance(batch["target"], list)
    assert [tuple(t.shape) for t in batch["target"]] == [(2, 1, 16, 16, 16), (2, 1, 8, 8, 8)]
    assert tuple(batch["valid"].shape) == (4, 1, 16, 16, 16)
    assert tuple(batch["unlabeled"].shape) == (2, 1, 16, 16, 16)


DUMMY_2D = {"patch_size": [4, 16, 16]}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"deep_supervision": True},
        {"configuration": "2d"},
        DUMMY_2D,
        {"json_extra": REGIONS},
        {"json_extra": REGIONS, "deep_supervision": True},
        {"json_extra": IGNORE},
        {"json_extra": IGNORE | REGIONS | {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}}},
        {"use_mask_for_norm": [True]},
    ],
    ids=[
        "3d",
        "deep supervision",
        "2d",
        "dummy 2d",
        "regions",
        "regions, ds",
        "ignore",
        "regions, ignore",
        "mask norm",
    ],
)
def test_mask_follows_the_whole_augmentation(make: Make, options):
    trainer, loader = make(**options)
    dummy = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[1]
    assert dummy == (options is DUMMY_2D)
    # The images of both streams are the same, so equal draws must give equal patches and masks.
    loader.unlabelled._data.identifiers = loader.unlabelled.indices = ["ul"] * 2
    loader.labelled._data.identifiers = loader.labelled.indices = ["l"] * 2
    loader.labelled.get_do_oversample = lambda index: False
    loader.labelled.has_ignore = False
    invalid = valid = 0
    for seed in range(10):
        halves = []
        for half in (loader.labelled, loader.unlabelled):
            np.random.seed(seed)
            torch.manual_seed(seed)
            halves.append(next(half))
        labelled, unlabelled = halves
        torch.testing.assert_close(unlabelled["data"], labelled["data"], rtol=0, atol=0)
        target, mask = labelled["target"][0], labelled["target"][-1]
        assert mask.dtype == torch.uint8
        assert torch.equal(target[:, :1] == 1, mask == 1)  # of regions, the first
        assert torch.equal(unlabelled["target"][-1], mask)
        if "use_mask_for_norm" in options:
            assert bool((unlabelled["data"][mask == 0] == 0).all())
        invalid, valid = invalid + int((mask == 0).sum()), valid + int(mask.sum())
    assert min(invalid, valid) > 100


@pytest.mark.parametrize(
    "options", [{}, {"configuration": "2d"}, DUMMY_2D, {"use_mask_for_norm": [True]}], ids=["3d", "2d", "dummy", "norm"]
)
def test_mask_is_zero_exactly_in_padding_and_outside_the_nonzero_mask(make: Make, options):
    _, loader = make(MirrorsOnly, **options)
    folder = Path(loader.unlabelled._data.source_folder)
    for name in ("ul", "um"):
        # The image becomes its own non-zero mask, padded with 0 by nnU-Net's loader as any other image.
        valid = blosc2.open(str(folder / "valid" / f"{name}.b2nd"))[...]
        save_case(folder, name, valid, valid, read_metadata(folder, name), (16, 16, 16))
    zeros = 0
    for _ in range(4):
        batch = next(loader)
        labelled, unlabelled = batch["valid"][:2], batch["valid"][2:]
        assert torch.equal(unlabelled == 1, batch["unlabeled"] == 1)
        assert torch.equal(unlabelled == 0, batch["unlabeled"] == 0)
        assert torch.equal(labelled == 1, batch["target"] == 1)
        zeros += int((unlabelled == 0).sum())
    assert zeros > 0


def test_mask_is_none_when_every_voxel_is_valid(make: Make, tiny: TinyDataset, monkeypatch):
    _, loader = make(MirrorsOnly, patch_size=[4, 4, 4])
    # Patches of 4 voxels an axis; the ones in the middle of the scan have neither notch nor border.
    for half in (loader.labelled, loader.unlabelled):
        monkeypatch.setattr(half, "get_bbox", lambda *a, **k: ([6, 7, 3], [10, 11, 7]))
        half.patch_size = (4, 4, 4)
    loader.labelled.transforms = with_validity(ComposeTransforms([RemoveLabelTransform(-1, 0)]), False)
    loader.unlabelled.transforms = with_validity(ComposeTransforms([RemoveLabelTransform(-1, 0)]), True)
    batch = next(loader)
    assert batch["valid"] is None
    assert tuple(batch["unlabeled"].shape) == (2, 1, 4, 4, 4)


def test_without_unlabelled_cases_the_mask_is_that_of_the_labelled(make: Make):
    _, loader = make(unlabelled=False)
    batch = next(loader)
    assert "unlabeled" not in batch
    assert tuple(batch["valid"].shape) == (2, 1, 16, 16, 16)
    assert torch.equal(batch["target"] == 1, batch["valid"] == 1)
    assert set(batch["keys"]) <= {"l", "m"}


def test_labelled_half_is_what_stock_nnunet_loads(make: Make):
    trainer, loader = make(deep_supervision=True)
    rotation, dummy, _, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    np.random.seed(5)
    torch.manual_seed(5)
    ours = next(loader)
    stock = loader.labelled
    stock.transforms = trainer.get_training_transforms(
        trainer.configuration_manager.patch_size,
        rotation,
        trainer._get_deep_supervision_scales(),
        mirror,
        dummy,
    )
    np.random.seed(5)
    torch.manual_seed(5)
    theirs = next(stock)
    assert torch.equal(ours["data"], theirs["data"])
    for mine, other in zip(ours["target"], theirs["target"], strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("options", [{}, {"json_extra": IGNORE}, {"json_extra": REGIONS, "deep_supervision": True}])
def test_no_label_is_read_for_the_unlabelled_stream(make: Make, tiny: TinyDataset, options):
    _, loader = make(**options)
    for path in tiny.raw.rglob("labelsTr/*"):
        path.write_bytes(b"no label")
    for path in (tiny.preprocessed / "nnUNetPlans_3d_fullres").iterdir():
        path.unlink()
    for _ in range(3):
        batch = next(loader.unlabelled)
        assert set(torch.unique(batch["target"][-1]).tolist()) == {0, 1}
        assert [t.shape[1] for t in batch["target"]] == [1, 1]  # no scales and regions of a label that is not there
    with pytest.raises(
        RuntimeError, match=r"case [lm] in .* cannot be read \(No such file or directory: .*[lm]\.b2nd.*run: "
    ):
        next(loader.labelled)


def test_thread_id_reaches_both_halves(make: Make):
    _, loader = make()
    loader.set_thread_id(3)
    assert (loader.labelled.thread_id, loader.unlabelled.thread_id) == (3, 3)
    assert iter(loader) is loader
    TwoStreamLoader(loader.labelled, None).set_thread_id(4)
    assert loader.labelled.thread_id == 4


def test_validation_loader_is_stocks(make: Make):
    trainer, _ = make(deep_supervision=True)
    batch = next(validation_loader(trainer))
    assert set(batch) == {"data", "target", "keys"}
    assert set(batch["keys"]) == {"l"}
    assert [tuple(t.shape) for t in batch["target"]] == [(2, 1, 16, 16, 16), (2, 1, 8, 8, 8)]
    assert all(set(torch.unique(t).tolist()) <= {0, 1} for t in batch["target"])


def test_without_loader_processes_the_loader_runs_here(make: Make, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    _, loader = make()
    loader = in_background(loader, pin_memory=False, train=True, seed=1)
    assert isinstance(loader, SingleThreadedAugmenter)
    assert set(next(loader)) == {"data", "target", "keys", "unlabeled", "valid"}


@pytest.mark.parametrize("unlabelled", [True, False])
@pytest.mark.parametrize("steps", [[], [MirrorTransform((0,))], [RemoveLabelTransform(3, 0)]])
def test_transforms_without_the_step_that_removes_the_padding_are_refused(steps, unlabelled):
    with pytest.raises(RuntimeError, match=r"has no RemoveLabelTransform\(-1, \.\.\.\)"):
        with_validity(ComposeTransforms(steps), unlabelled)


def test_given_transforms_are_not_changed():
    stock = ComposeTransforms([MirrorTransform((0,)), RemoveLabelTransform(-1, 0)])
    before = list(stock.transforms)
    with_validity(stock, True)
    assert stock.transforms == before


@pytest.mark.parametrize("unlabelled", [True, False])
def test_mask_by_hand(unlabelled):
    image = torch.zeros(1, 2, 3)
    # As the loader hands them over: the mask of an unlabelled case padded with -1, or a segmentation.
    given = [[1, 0, -1], [1, 1, 0]] if unlabelled else [[0, -1, -1], [2, 1, -1]]
    segmentation = torch.tensor([given], dtype=torch.int16)
    transforms = with_validity(ComposeTransforms([RemoveLabelTransform(-1, 0)]), unlabelled)
    target, valid = transforms(image=image, segmentation=segmentation)["segmentation"]
    assert valid.tolist() == [[[1, 0, 0], [1, 1, 0]]]
    assert valid.dtype == torch.uint8
    assert target.tolist() == ([[[0, 0, 0], [0, 0, 0]]] if unlabelled else [[[0, 0, 0], [2, 1, 0]]])


def harm(file: Path) -> None:
    """Damage the voxels, which the head of the file does not show."""
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle - 400 : middle + 400] = bytes(800)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("nnUNetPlans_3d_fullres/l.b2nd", "run: nnUNetv2_preprocess -d 777 -plans_name nnUNetPlans -c 3d_fullres"),
        (
            "nnUNetPlans_3d_fullres_unlabeled/ul.b2nd",
            r"remove ul\.json there and run: nnUNetv2_ext preprocess_unlabeled -d Dataset777_Tiny -p nnUNetPlans -c 3d",
        ),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_file_is_named_with_the_command_that_mends_it(make: Make, tiny: TinyDataset, place, remedy, cut):
    _, loader = make(MirrorsOnly)
    file = tiny.preprocessed / place
    if cut:
        file.write_bytes(file.read_bytes()[:-9])
    else:
        harm(file)
    for half in (loader.labelled, loader.unlabelled):
        half._data.identifiers = half.indices = [half.indices[0]] * 2
    case = file.stem
    text = rf"the preprocessed case {case} in {file.parent} cannot be read \(.*\); {remedy}"
    with pytest.raises(RuntimeError, match=text):
        next(loader)


def test_the_validation_loader_names_damaged_files_too(make: Make, tiny: TinyDataset):
    trainer, _ = make(MirrorsOnly)
    loader = validation_loader(trainer)
    harm(tiny.preprocessed / "nnUNetPlans_3d_fullres" / "l.b2nd")
    with pytest.raises(RuntimeError, match=r"the preprocessed case l in .*; run: nnUNetv2_preprocess -d 777"):
        next(loader)


def test_an_error_of_another_kind_stays_what_it_is(make: Make):
    _, loader = make(MirrorsOnly)

    def fails(**_):
        raise KeyError("of a transform")

    loader.labelled.transforms = fails
    with pytest.raises(KeyError, match="of a transform"):
        next(loader)


def test_deep_supervision_of_one_scale_is_a_list_as_in_nnunet(make: Make):
    """A network of two stages has one output, for which nnU-Net's loss takes lists all the same."""
    trainer, _ = make()
    trainer._get_deep_supervision_scales = lambda: [[1.0, 1.0, 1.0]]
    target = next(two_stream_loader(trainer, None))["target"]
    assert [scale.shape[2:] for scale in target] == [(16, 16, 16)]
    assert isinstance(target, list)
