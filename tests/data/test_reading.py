"""What is asked of the files of a case beyond what nnU-Net's readers ask."""

import gzip
import os
import re
import struct
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from data.tiny_dataset import write_image
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io as skimage_io

from nnunet_ext.data.completeness import check_complete
from nnunet_ext.data.reading import read_checked, read_labels

SHAPE = (8, 12, 10)
SPACING = (3.6, 0.6, 0.8)  # mm, array order
TILT = np.deg2rad(12)
OBLIQUE = (1, 0, 0, 0, np.cos(TILT), -np.sin(TILT), 0, np.sin(TILT), np.cos(TILT))
READERS = (SimpleITKIO, NibabelIO)


def voxels(seed=0, kind=np.float32):
    array = np.random.default_rng(seed).normal(100, 30, SHAPE)
    array[:2] = 0
    return array.astype(kind)


def two_channels(folder, **of_second):
    """Write T2 and ADC of one case; the second may differ in spacing, origin or direction."""
    first = write_image(folder / "case_0000.nii.gz", voxels(0), SPACING, direction=OBLIQUE)
    geometry = {"spacing": SPACING, "direction": OBLIQUE} | of_second
    second = write_image(folder / "case_0001.nii.gz", voxels(1), **geometry)
    return str(first), str(second)


class TestSeveralChannels:
    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize("reader", READERS)
    def test_anisotropic_oblique_ones_are_read(self, tmp_path, reader, strict):
        files = two_channels(tmp_path)
        data, properties = read_checked(files, reader, 2, strict)
        expected, _ = reader().read_images(list(files))
        np.testing.assert_array_equal(data, expected)
        np.testing.assert_allclose(properties["spacing"], SPACING, rtol=1e-5)

    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize("reader", READERS)
    def test_another_spacing_is_refused_in_array_order(self, tmp_path, reader, strict):
        files = two_channels(tmp_path, spacing=(3.0, 0.6, 0.8))
        expected = re.escape("case_0001.nii.gz has spacing [3.0, 0.6, 0.8], but ") + ".*" + re.escape("[3.6, 0.6, 0.8]")
        with pytest.raises(ValueError, match=expected):
            read_checked(files, reader, 2, strict)

    def test_another_place_is_refused_where_labels_do_not_tell(self, tmp_path):
        files = two_channels(tmp_path, origin=(5, 0, 0))
        read_checked(files, SimpleITKIO, 2, strict=False)
        with pytest.raises(ValueError, match=r"case_0001\.nii\.gz has origin \[5\.0, 0\.0, 0\.0\], but "):
            read_checked(files, SimpleITKIO, 2)


def half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-40] ^= 0x10  # near the end: in the voxels
    path.write_bytes(content)


class TestHalfCopied:
    @pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32])
    @pytest.mark.parametrize("name", ["case_0000.nii.gz", "case_0000.nii", "case_0000.mha", "case_0000.nrrd"])
    def test_images_and_labels_are_refused_by_name(self, tmp_path, name, kind):
        path = write_image(tmp_path / name, voxels(kind=kind), SPACING)
        read_checked((str(path),), SimpleITKIO, 1)
        half(path)
        with pytest.raises(ValueError, match=rf"^{path} (is|ends|cannot be read)"):
            read_checked((str(path),), SimpleITKIO, 1)
        with pytest.raises(ValueError, match=rf"^{path} (is|ends|cannot be read)"):
            read_labels(str(path), SimpleITKIO, SHAPE)

    def test_gipl(self, tmp_path):
        path = write_image(tmp_path / "case_0000.gipl", voxels(kind=np.int16), SPACING)
        read_checked((str(path),), SimpleITKIO, 1)
        half(path)
        with pytest.raises(ValueError, match=rf"{path} ends after \d+ of 2176 bytes"):  # 256 + 8 * 12 * 10 * 2
            read_checked((str(path),), SimpleITKIO, 1)

    def test_the_length_is_told_against_the_header(self, tmp_path):
        path = write_image(tmp_path / "case_0000.nii", voxels(kind=np.int16), SPACING)
        half(path)
        with pytest.raises(ValueError, match=r"ends after 1136 of 2272 bytes.*copy it again"):  # 352 + 8 * 12 * 10 * 2
            check_complete(path)

    def test_a_stream_that_ends_well_but_early(self, tmp_path):
        path = write_image(tmp_path / "case_0000.nii.gz", voxels(kind=np.int16), SPACING)
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-2]))
        with pytest.raises(ValueError, match="ends after 2270 of 2272 bytes"):
            check_complete(path)

    @pytest.mark.parametrize("kind", [np.int16, np.float32])
    @pytest.mark.parametrize("ending", [".hdr", ".img"])
    def test_voxels_in_a_file_of_their_own(self, tmp_path, ending, kind):
        image = nibabel.Nifti1Pair(voxels(kind=kind).transpose(2, 1, 0), np.diag([0.8, 0.6, 3.6, 1]))
        nibabel.save(image, tmp_path / "case_0000.img")
        path = str(tmp_path / f"case_0000{ending}")
        read_checked((path,), SimpleITKIO, 1)
        half(tmp_path / "case_0000.img")
        with pytest.raises(
            ValueError, match=rf"case_0000\.img ends after \d+ of {960 * np.dtype(kind).itemsize} bytes"
        ):
            read_checked((path,), SimpleITKIO, 1)
        other = "img" if ending == ".hdr" else "hdr"
        (tmp_path / f"case_0000.{other}").unlink()
        with pytest.raises(ValueError, match=rf"case_0000\{ending} has no case_0000\.{other} beside it.*copy it again"):
            read_checked((path,), SimpleITKIO, 1)

    def test_endings_in_capitals(self, tmp_path):
        image = nibabel.Nifti1Pair(voxels().transpose(2, 1, 0), np.diag([0.8, 0.6, 3.6, 1]))
        nibabel.save(image, tmp_path / "small.img")
        for kind in ("hdr", "img"):
            (tmp_path / f"small.{kind}").rename(tmp_path / f"CASE_0000.{kind.upper()}")
        check_complete(tmp_path / "CASE_0000.HDR")
        check_complete(tmp_path / "CASE_0000.IMG")
        (tmp_path / "CASE_0000.IMG").unlink()
        with pytest.raises(ValueError, match=r"CASE_0000\.HDR has no CASE_0000\.IMG beside it"):
            check_complete(tmp_path / "CASE_0000.HDR")

    def test_packed_voxels_in_a_file_of_their_own(self, tmp_path):
        image = nibabel.Nifti1Pair(voxels().transpose(2, 1, 0), np.diag([0.8, 0.6, 3.6, 1]))
        nibabel.save(image, tmp_path / "case_0000.img")
        (tmp_path / "case_0000.img.gz").write_bytes(gzip.compress((tmp_path / "case_0000.img").read_bytes()))
        (tmp_path / "case_0000.img").unlink()
        check_complete(tmp_path / "case_0000.hdr")
        half(tmp_path / "case_0000.img.gz")
        with pytest.raises(ValueError, match=r"case_0000\.img\.gz is cut off"):
            check_complete(tmp_path / "case_0000.hdr")

    def test_tiff(self, tmp_path):
        path = tmp_path / "case_0000.tif"
        tifffile.imwrite(path, voxels())
        half(path)
        with pytest.raises(ValueError, match=rf"{path} cannot be read"):
            read_checked((str(path),), Tiff3DIO, 1)

    @pytest.mark.parametrize("name", ["case_0000.nii.gz", "case_0000.mha"])
    def test_a_flipped_byte_of_packed_data(self, tmp_path, name):
        image = SimpleITK.GetImageFromArray(voxels(kind=np.int16))
        SimpleITK.WriteImage(image, str(tmp_path / name), True)
        flip(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} is damaged .*copy it again"):
            read_checked((str(tmp_path / name),), SimpleITKIO, 1)


class TestWholeFiles:
    """What other programs write, and ITK reads, is no damage."""

    def test_padding_and_parts(self, tmp_path):
        path = write_image(tmp_path / "case_0000.nii.gz", voxels(kind=np.int16), SPACING)
        content = gzip.decompress(path.read_bytes())
        for packed in (
            content,  # not packed at all
            gzip.compress(content[:1000]) + gzip.compress(content[1000:]),
            gzip.compress(content + b"\0" * 500),
            gzip.compress(content) + b"\0" * 500,
        ):
            path.write_bytes(packed)
            check_complete(path)

    def test_parts_whose_border_is_that_of_a_chunk(self, tmp_path, monkeypatch):
        path = write_image(tmp_path / "case_0000.nii.gz", voxels(kind=np.int16), SPACING)
        content = gzip.decompress(path.read_bytes())
        first = gzip.compress(content[:1000])
        path.write_bytes(first + gzip.compress(content[1000:]))
        for beyond in (-1, 0, 1, 2):
            monkeypatch.setattr("nnunet_ext.data.completeness._CHUNK", len(first) + beyond)
            check_complete(path)

    @pytest.mark.parametrize("packing", [gzip.compress, zlib.compress, None])
    def test_meta_images_as_other_programs_write_them(self, tmp_path, packing):
        header = (
            "ObjectType = Image\nNDims = 3\nBinaryData = {}\nBinaryDataByteOrderMSB = False\nCompressedData = {}\n"
            "ElementSpacing = 1 1 3\nDimSize = 10 12 8\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        )
        array = voxels(kind=np.int16)
        if packing is None:
            text = header.format(False, False).encode() + " ".join(map(str, array.ravel())).encode()
        else:
            text = header.format(True, True).encode() + packing(array.tobytes())
        (tmp_path / "a.mha").write_bytes(text)
        check_complete(tmp_path / "a.mha")

    @pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_headers_of_both_versions_and_byte_orders(self, tmp_path, kind, order, ending):
        array = voxels().astype(f"{order}f8")
        nibabel.save(kind(array, np.diag([0.8, 0.6, 3.6, 1]), dtype=array.dtype), tmp_path / f"a{ending}")
        check_complete(tmp_path / f"a{ending}")
        array[-1, -1, -1] = np.nan
        nibabel.save(kind(array, np.diag([0.8, 0.6, 3.6, 1]), dtype=array.dtype), tmp_path / f"a{ending}")
        with pytest.raises(ValueError, match="has NaN or infinite values"):
            check_complete(tmp_path / f"a{ending}")

    def test_values_across_the_chunks_of_reading(self, tmp_path, monkeypatch):
        monkeypatch.setattr("nnunet_ext.data.completeness._CHUNK", 1001)  # no multiple of a value
        array = voxels()
        path = write_image(tmp_path / "a.nii.gz", array, SPACING)
        check_complete(path)
        for place in (0, 137, array.size - 1):
            other = array.copy()
            other.flat[place] = np.inf
            with pytest.raises(ValueError, match="has NaN or infinite values"):
                check_complete(write_image(path, other, SPACING))


class TestNoFiles:
    def test_pipes_folders_and_dangling_links_are_named(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.nii.gz")
        (tmp_path / "folder.nii.gz").mkdir()
        (tmp_path / "link.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
        for name, what in (
            ("pipe", "no regular file"),
            ("folder", "a folder"),
            ("link", "missing, a link that leads nowhere"),
            ("none", "missing"),
        ):
            with pytest.raises(ValueError, match=rf"{name}\.nii\.gz cannot be read \(it is {what}\)"):
                read_checked((str(tmp_path / f"{name}.nii.gz"),), SimpleITKIO, 1)


class TestValues:
    @pytest.mark.parametrize("value", [1e38, -1e16])
    def test_absurd_ones_are_refused(self, tmp_path, value):
        array = voxels()
        array[4, 5, 6] = value
        path = write_image(tmp_path / "case_0000.nii.gz", array)
        with pytest.raises(ValueError, match=rf"^{path} has values from .*{value:g}".replace("+", r"\+")):
            read_checked((str(path),), SimpleITKIO, 1)

    def test_large_ones_are_not(self, tmp_path):
        array = voxels()
        array[4, 5, 6] = 1e9
        read_checked((str(write_image(tmp_path / "a.nii.gz", array)),), SimpleITKIO, 1)

    @pytest.mark.parametrize("reader", READERS)
    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
    def test_complex_ones_are_refused(self, tmp_path, reader, name):
        nibabel.save(nibabel.Nifti1Image(voxels().astype(np.complex64), np.eye(4)), tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} has complex or coloured voxels \(complex64\)"):
            read_checked((str(tmp_path / name),), reader, 1)

    def test_complex_ones_of_formats_that_we_do_not_look_into(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", voxels().astype(np.complex64))
        with pytest.raises(ValueError, match=r"a\.tif cannot be read \(complex values\); save e\.g\. their magnitude"):
            read_checked((str(tmp_path / "a.tif"),), Tiff3DIO, 1)


def write_without_third_size(path, affine):
    """Write an image with pixdim[3] = 0 and an affine (the sform) that says what it is."""
    image = nibabel.Nifti1Image(voxels().transpose(2, 1, 0), affine)
    image.set_sform(affine, 1)
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 76 + 3 * 4, 0)
    path.write_bytes(content)


class TestHeaders:
    @pytest.mark.parametrize("reader", READERS)
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
    def test_a_voxel_size_that_is_none_is_refused(self, tmp_path, reader, value):
        path = write_image(tmp_path / "a.nii", voxels(), SPACING)
        content = bytearray(path.read_bytes())
        struct.pack_into("<f", content, 76 + 3 * 4, value)  # pixdim[3]
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.nii has the voxel size 0\.8 x 0\.6 x .* mm .*correct the header"):
            read_checked((str(path),), reader, 1)

    def test_an_axis_of_one_voxel_needs_none(self, tmp_path):
        path = write_image(tmp_path / "a.nii", voxels()[:1], SPACING)
        content = bytearray(path.read_bytes())
        struct.pack_into("<f", content, 76 + 3 * 4, 0)
        path.write_bytes(content)
        check_complete(path)

    @pytest.mark.parametrize("reader", READERS)
    def test_one_that_is_left_out_is_taken_where_readers_put_what_the_affine_says(self, tmp_path, reader):
        affine = np.diag([0.8, 0.6, 1.0, 1])
        write_without_third_size(tmp_path / "a.nii", affine)
        _, properties = read_checked((str(tmp_path / "a.nii"),), reader, 1)
        np.testing.assert_allclose(properties["spacing"], [1.0, 0.6, 0.8], rtol=1e-6)

    @pytest.mark.parametrize("reader", READERS)
    def test_one_that_is_left_out_is_refused_where_the_affine_says_another(self, tmp_path, reader):
        write_without_third_size(tmp_path / "a.nii", np.diag([0.8, 0.6, 3.6, 1]))
        expected = r"a\.nii has the voxel size 0\.8 x 0\.6 x 0 mm .*for which readers take 1 mm.*0\.8 x 0\.6 x 3\.6 mm"
        with pytest.raises(ValueError, match=expected):
            read_checked((str(tmp_path / "a.nii"),), reader, 1)

    def test_sheared_axes_get_a_remedy(self, tmp_path):
        affine = np.diag([0.8, 0.6, 3.6, 1])
        affine[0, 1] = 0.3
        nibabel.save(nibabel.Nifti1Image(voxels(), affine), tmp_path / "a.nii.gz")
        with pytest.raises(ValueError, match=r"a\.nii\.gz cannot be read .*sheared.*rewrite its header.*NibabelIO"):
            read_checked((str(tmp_path / "a.nii.gz"),), SimpleITKIO, 1)
        read_checked((str(tmp_path / "a.nii.gz"),), NibabelIO, 1)


class TestNaturalImages:
    @pytest.mark.parametrize(("colours", "kind"), [(4, r"RGB with transparency \(RGBA\)"), (1, "grey")])
    def test_others_among_rgb_are_told_what_to_be(self, tmp_path, colours, kind):
        array = np.random.default_rng(0).integers(0, 255, (20, 30, colours)).astype(np.uint8)
        path = str(tmp_path / "case_0000.png")
        skimage_io.imsave(path, array.squeeze(), check_contrast=False)
        with pytest.raises(ValueError, match=rf"{path} is {kind}, expected RGB, .*save it so \(the case has {path}\)"):
            read_checked((path,), NaturalImage2DIO, 3)

    def test_rgb_is_read(self, tmp_path):
        path = str(tmp_path / "case_0000.png")
        skimage_io.imsave(path, np.ones((20, 30, 3), np.uint8), check_contrast=False)
        assert read_checked((path,), NaturalImage2DIO, 3)[0].shape == (3, 1, 20, 30)

    def test_all_files_of_a_case_are_named(self, tmp_path):
        files = [str(tmp_path / f"case_{channel:04d}.png") for channel in range(2)]
        for path in files:
            skimage_io.imsave(path, np.ones((20, 30, 3), np.uint8), check_contrast=False)
        with pytest.raises(ValueError, match=rf"is RGB, expected 2 grey image\(s\).*has {', '.join(files)}"):
            read_checked(tuple(files), NaturalImage2DIO, 2)
