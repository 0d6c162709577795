"""Whether the file of an image is whole, looked at without nnU-Net's readers.

ITK reads what is missing of a NIfTI file as 0, puts 1 mm in the place of a voxel size that is no number, turns NaN into
0, and says nothing of it. What the readers of other formats refuse themselves is left to them.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np

COPY_AGAIN = "copy it again, or remove it"
_CHUNK = 2**20  # bytes
_READ_FOR_NONE = 1.0  # mm; what ITK and nibabel take for a voxel size of 0, whatever the affine says
_PAIR = re.compile(r"(.+)\.(hdr|img)(?:\.gz)?", re.IGNORECASE | re.DOTALL)
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP, _EITHER = 31, 47  # of zlib: which wrapping to expect, with its checksum
_META_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_GIPL_BYTES = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
_GIPL_HEADER = 256  # bytes


def check_complete(path: str | Path) -> None:
    """Look at a whole image file: its length against its header, its checksums, and what its reader would hide.

    Args:
        path: Image or label map in a format that nnU-Net reads.

    Raises:
        ValueError: If the file is no regular one, is cut off or damaged, or is a NIfTI file with complex voxels, a
            voxel size that is none, or NaN or infinite values; names it, and says what to do.
    """
    path = str(path)
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "no regular file" if os.path.exists(path) else "missing"
        link = ", a link that leads nowhere" if os.path.islink(path) and not os.path.exists(path) else ""
        raise ValueError(f"{path} cannot be read (it is {what}{link}); replace or remove it")
    pair = nifti_pair(path)
    if pair is not None:
        _check_nifti_pair(*pair)
    elif path.endswith((".nii", ".nii.gz")):
        _check_nifti(path)
    elif path.endswith(".mha"):
        _check_meta_image(path)
    elif path.endswith(".gipl"):
        _check_gipl(path)


def nifti_pair(path: str) -> tuple[str, str] | None:
    """Return the files of the header and of the voxels of a NIfTI image that lies in two of them.

    Args:
        path: Header file or voxel file.

    Returns:
        None for a file of another kind. The partner of ``path`` need not exist.
    """
    match = _PAIR.fullmatch(path)
    if match is None:
        return None
    stem, kind = match.groups()
    is_header = kind.lower() == "hdr"
    other = "img" if is_header else "hdr"
    other = other.upper() if kind.isupper() else other  # readers want both endings written alike
    partner = next(
        (file for file in (f"{stem}.{other}", f"{stem}.{other}.gz") if os.path.isfile(file)), f"{stem}.{other}"
    )
    return (path, partner) if is_header else (partner, path)


def _check_nifti(path: str) -> None:
    with open(path, "rb") as file:
        packed, chunks = _content(file, path)
        start = _read_start(chunks)
        header = _nifti_header(start, path)
        offset, size, dtype = _nifti_layout(header, path)
        _check_voxel_size(header, path)
        offset = max(offset, header.single_vox_offset)
        _check_voxels(path, packed, itertools.chain([start], chunks), offset, size, dtype)


def _check_nifti_pair(header_file: str, voxel_file: str) -> None:
    for file, partner in ((header_file, voxel_file), (voxel_file, header_file)):
        if not os.path.isfile(partner):
            raise ValueError(f"{file} has no {os.path.basename(partner)} beside it; {COPY_AGAIN}")
    with open(header_file, "rb") as opened:
        header = _nifti_header(_read_start(_content(opened, header_file)[1]), header_file)
    offset, size, dtype = _nifti_layout(header, header_file)
    _check_voxel_size(header, header_file)
    with open(voxel_file, "rb") as opened:
        _check_voxels(voxel_file, *_content(opened, voxel_file), offset, size, dtype)


def _content(file: BinaryIO, path: str) -> tuple[bool, Iterator[bytes]]:
    """Return whether an open file is packed, and what it holds, unpacked."""
    packed = file.read(2) == _GZIP_MAGIC
    file.seek(0)
    return packed, _unpacked(file, path, _GZIP) if packed else iter(lambda: file.read(_CHUNK), b"")


def _check_voxels(path: str, packed: bool, chunks: Iterator[bytes], offset: int, size: int, dtype: np.dtype) -> None:
    if not packed and dtype.kind != "f":  # its length says all
        _check_length(path, os.path.getsize(path), offset + size)
        return
    length, finite = _go_through(chunks, offset, size, dtype)
    _check_length(path, length, offset + size)
    if not finite:
        raise ValueError(f"{path} has NaN or infinite values; replace them by values that mean something")


def _read_start(chunks: Iterator[bytes]) -> bytes:
    """Return enough of a file for the header of NIfTI-1 and 2."""
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= 1024:
            break
    return start


def _nifti_header(start: bytes, path: str) -> Any:
    try:
        size = int(np.frombuffer(start[:4], "<i4")[0])
        is_second_version = size in (540, int(np.array(540, "<i4").byteswap()))
        header_class: Any = nibabel.Nifti2Header if is_second_version else nibabel.Nifti1Header
        return header_class(start[: header_class.sizeof_hdr], check=False)
    except Exception as error:  # what nibabel raises at a damaged header is of many kinds
        raise ValueError(f"{path} cannot be read (it has no NIfTI header); {COPY_AGAIN}") from error


def _nifti_layout(header: Any, path: str) -> tuple[int, int, np.dtype]:
    """Return where the header says that the voxels begin, how many bytes they take, and their type."""
    shape = [int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]]
    try:
        dtype: np.dtype = header.get_data_dtype()
    except Exception as error:
        raise ValueError(f"{path} has voxels of an unknown type ({int(header['datatype'])}); convert it") from error
    if dtype.kind not in "iuf":
        raise ValueError(
            f"{path} has complex or coloured voxels ({dtype}), expected real numbers; save e.g. the magnitude, or one "
            "file a channel"
        )
    if not shape or len(shape) > 7 or min(shape) < 1:
        raise ValueError(f"{path} has the dimensions {shape} in its header, which is damaged; {COPY_AGAIN}")
    return max(0, int(header["vox_offset"])), math.prod(shape) * dtype.itemsize, dtype


def _check_voxel_size(header: Any, path: str) -> None:
    count = min(3, int(header["dim"][0]))
    sizes = [float(size) for size in header["pixdim"][1 : 1 + count]]
    affine, code = header.get_sform(coded=True)
    of_affine = np.linalg.norm(affine[:3, :count], axis=0).tolist() if code else [math.nan] * count
    sizes_read = [_READ_FOR_NONE if size == 0 else size for size in sizes]
    axes = [axis for axis in range(count) if header["dim"][1 + axis] > 1]
    if all(
        math.isfinite(sizes_read[axis])
        and (sizes[axis] != 0 or math.isclose(of_affine[axis], sizes_read[axis], rel_tol=1e-3))
        for axis in axes
    ):
        return
    remedy = "correct the header"
    if code and all(math.isfinite(size) for size in of_affine):
        remedy += f", whose affine (sform) says {_in_mm(of_affine)}"
    what_is_read = f", for which readers take {_READ_FOR_NONE:g} mm" if 0 in [sizes[axis] for axis in axes] else ""
    raise ValueError(
        f"{path} has the voxel size {_in_mm(sizes)} in its header{what_is_read}, expected positive numbers; {remedy}"
    )


def _in_mm(sizes: list[float]) -> str:
    return f"{' x '.join(f'{size:.6g}' for size in sizes)} mm"


def _go_through(chunks: Iterator[bytes], offset: int, size: int, dtype: np.dtype) -> tuple[int, bool]:
    """Return how many bytes there are, and whether all voxels are finite."""
    floats = dtype.kind == "f" and dtype.itemsize <= 8
    length, finite, remainder = 0, True, b""
    for chunk in chunks:
        if floats:
            inside = chunk[max(0, offset - length) : max(0, offset + size - length)]
            values = remainder + inside
            complete = len(values) // dtype.itemsize * dtype.itemsize
            finite = finite and bool(np.isfinite(np.frombuffer(values[:complete], dtype)).all())
            remainder = values[complete:]
        length += len(chunk)
    return length, finite


def _check_length(path: str, length: int, expected: int) -> None:
    if length < expected:
        raise ValueError(
            f"{path} ends after {length} of {expected} bytes (unpacked, if it is packed), so that a part of the image "
            f"is missing; {COPY_AGAIN}"
        )


def _unpacked(file: BinaryIO, path: str, wrapping: int) -> Iterator[bytes]:
    """Yield what a gzip or zlib stream holds, and check its checksum at the end of it."""
    unpacking = zlib.decompressobj(wrapping)
    packed = file.read(_CHUNK)
    try:
        while True:
            piece = unpacking.decompress(packed, _CHUNK)  # bounded: zeros unpack to a thousand times their size
            yield piece
            if not unpacking.eof:
                packed = unpacking.unconsumed_tail or file.read(_CHUNK)
                if not packed and not piece:
                    raise ValueError(f"{path} is cut off (its packed data has no end); {COPY_AGAIN}")
                continue
            packed = unpacking.unused_data
            if len(packed) < len(_GZIP_MAGIC):
                packed += file.read(_CHUNK)
            if wrapping != _GZIP or packed[:2] != _GZIP_MAGIC:
                return
            unpacking = zlib.decompressobj(wrapping)  # written in parts
    except zlib.error as error:
        raise ValueError(f"{path} is damaged ({error}); {COPY_AGAIN}") from error


def _check_meta_image(path: str) -> None:
    with open(path, "rb") as file:
        fields: dict[str, str] = {}
        for line in iter(file.readline, b""):
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                break
        size = _META_BYTES.get(fields.get("ElementType", ""))
        binary = fields.get("BinaryData", "").lower() == "true"
        if fields.get("ElementDataFile") != "LOCAL" or not binary or size is None or "DimSize" not in fields:
            return  # the reader's business
        shape = [int(n) for n in fields["DimSize"].split()]
        expected = math.prod(shape) * size * int(fields.get("ElementNumberOfChannels", "1"))
        if fields.get("CompressedData", "").lower() == "true":
            length = sum(len(chunk) for chunk in _unpacked(file, path, _EITHER))
        else:
            length = os.path.getsize(path) - file.tell()
    _check_length(path, length, expected)


def _check_gipl(path: str) -> None:
    with open(path, "rb") as file:
        header = file.read(_GIPL_HEADER)
    if len(header) < _GIPL_HEADER:
        _check_length(path, len(header), _GIPL_HEADER)
    shape = np.frombuffer(header[:8], ">u2")
    size = _GIPL_BYTES.get(int(np.frombuffer(header[8:10], ">u2")[0]))
    if size is not None:
        expected = math.prod(int(n) for n in shape if n) * size
        _check_length(path, os.path.getsize(path), _GIPL_HEADER + expected)


def holds_channels(image: str, channels: int) -> bool:
    """Return whether a NIfTI file is 4D with all channels of a case, which nnU-Net's readers take.

    Args:
        image: File, of which only the header is read.
        channels: Number of channels of the dataset.
    """
    if not image.endswith((".nii", ".nii.gz")):
        return False
    try:
        shape = nibabel.load(image).shape  # type: ignore[attr-defined]
    except Exception:  # whatever is wrong with it, reading it says so
        return False
    return len(shape) == 4 and shape[3] == channels
