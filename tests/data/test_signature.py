import json
import os

import pytest
from data.tiny_dataset import make_plans
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.data.signature import case_source, changed_plans, digest, plans_signature, source_signature


@pytest.mark.parametrize(
    ("image", "files", "read_along"),
    [
        ("x_0000.nii.gz", {"x.json": "{}"}, []),
        ("x_0000.tif", {"x.json": "{}"}, ["x.json"]),
        ("x_0000.TIFF", {"x.json": "{}", "y.json": "{}"}, ["x.json"]),
        ("case_0001.tif", {"case_0001.json": "{}"}, ["case_0001.json"]),  # the label of a case with this name
        ("x_0000.hdr", {"x_0000.img": ""}, ["x_0000.img"]),
        ("x_0000.img", {"x_0000.hdr": ""}, ["x_0000.hdr"]),
        ("x.mhd", {"v.zraw": "", "x.mhd": "NDims = 3\nElementDataFile = v.zraw\n"}, ["v.zraw"]),
        ("x.mhd", {"v.raw": "", "x.mhd": "ElementDataFile = LOCAL\nv.raw\n"}, []),
        ("x.mhd", {"1.raw": "", "2.raw": "", "x.mhd": "ElementDataFile = LIST\n1.raw\n2.raw"}, ["1.raw", "2.raw"]),
        ("x.mhd", {"s02.raw": "", "s04.raw": "", "x.mhd": "ElementDataFile = s%02d.raw 2 4 2"}, ["s02.raw", "s04.raw"]),
        ("x.nhdr", {"x.raw.gz": "", "x.nhdr": "NRRD0004\ndata file: x.raw.gz\n"}, ["x.raw.gz"]),
    ],
)
def test_files_that_are_read_along_count(tmp_path, image, files, read_along):
    (tmp_path / image).write_text("")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    source = source_signature((str(tmp_path / image),))
    assert [os.path.relpath(file, tmp_path) for file in source["files"]] == [image, *read_along]
    for name in read_along:
        changed = tmp_path / name
        os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 10**9))
        assert source_signature((str(tmp_path / image),)) != source
        source = source_signature((str(tmp_path / image),))


def test_a_file_that_is_read_along_is_named_once_and_last(tmp_path):
    for name in ("x_0000.tif", "x_0001.tif", "x.json"):
        (tmp_path / name).write_text("")
    images = (str(tmp_path / "x_0000.tif"), str(tmp_path / "x_0001.tif"))
    source = case_source(images, SimpleITKIO, 2)
    assert source["files"] == [*images, str(tmp_path / "x.json")]
    assert (source["reader"], source["channels"]) == ("SimpleITKIO", 2)
    assert list(source_signature(images)) == ["files", "size", "mtime_ns"]


def test_a_header_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.mhd")
    assert source_signature((str(tmp_path / "x.mhd"),))["files"] == [str(tmp_path / "x.mhd")]


def signature(**changes) -> dict:
    manager = PlansManager(make_plans(**changes))
    return plans_signature(manager, manager.get_configuration("3d_fullres"))


def made_with(made: dict) -> dict:
    return json.loads(json.dumps({"plans_digest": digest(made), "plans_signature": made}))


def test_a_patch_size_changes_no_voxel_also_where_it_was_part_of_the_signature():
    now = signature(patch_size=[8, 8, 8])
    assert changed_plans(made_with(signature()), now) == []
    assert changed_plans(made_with(signature() | {"patch_size": [16, 16, 16]}), now) == []


def test_what_changed_is_named():
    now = signature(spacing=[2.0, 1.0, 1.0], use_mask_for_norm=[True])
    assert changed_plans(made_with(signature()), now) == ["spacing", "use_mask_for_norm"]
    assert changed_plans({"plans_digest": digest(now)}, now) == []
    assert changed_plans({"plans_digest": digest(signature())}, now) is None
    assert changed_plans({}, now) is None
    assert changed_plans(made_with(now) | {"plans_digest": "other"}, now) is None
