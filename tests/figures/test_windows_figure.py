"""The picture of windows: how the scan is turned, and what is drawn."""

import numpy as np
import pytest
import SimpleITK
from matplotlib.figure import Figure
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_ext.figures.windows import AxialScan, axial, draw_windows

DIRECTIONS = {
    "usual": np.eye(3),
    "turned": np.diag([-1, -1, 1]),
    "from the head": np.diag([1, 1, -1]),
    "coronal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal": np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]]),
}


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_scan_is_looked_at_from_the_feet(tmp_path, reader, name):
    """Voxels hold their place in the patient: 100 * to the head + 10 * to the back + to the left."""
    direction, shape = DIRECTIONS[name], np.array([3, 4, 5])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))  # of x, y, z of the image
    place = np.einsum("pi,ixyz->pxyz", direction, index)
    values = np.einsum("p,pxyz->xyz", np.array([1, 10, 100]), place)
    image = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0).astype(np.float32))
    image.SetDirection([float(v) for v in direction.ravel()])
    image.SetSpacing([1.0, 2.0, 3.0])
    SimpleITK.WriteImage(image, str(tmp_path / "image.nii.gz"))
    data, properties = reader().read_images([str(tmp_path / "image.nii.gz")])
    scan = axial(data[0], properties)
    assert scan.known
    for axis, step in enumerate((100, 10, 1)):
        assert (np.diff(scan.image, axis=axis) == step).all()
    lengths = np.abs(direction) @ np.array([1, 2, 3])
    assert scan.spacing == pytest.approx(tuple(lengths[::-1]))


def test_without_a_direction_it_stays_as_it_is():
    image = np.arange(24.0).reshape(2, 3, 4)
    scan = axial(image, {"spacing": [3, 2, 1]})
    assert scan.image is image
    assert (scan.spacing, scan.known) == ((3.0, 2.0, 1.0), False)


def test_each_window_has_its_bounds_and_values(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("nnunet_ext.figures.windows.save_figure", lambda figure, path: drawn.append(figure))
    image = np.zeros((3, 2, 2), np.float32)
    image[1] = [[-1000, 50], [250, 1300]]
    draw_windows(
        tmp_path / "a.png", "case", AxialScan(image, (3, 1, 1), True), {"soft": (-150, 250), "bone": (0, 1000)}
    )
    figure: Figure = drawn[0]
    assert figure.get_suptitle() == "case: slice 2 of 3, position 0.50 from the feet"
    assert [axes.get_title() for axes in figure.axes] == ["soft: -150 to 250 HU", "bone: 0 to 1000 HU"]
    soft, bone = (axes.images[0].get_array() for axes in figure.axes)
    np.testing.assert_allclose(soft, [[0, 0.5], [1, 1]], atol=1e-6)
    np.testing.assert_allclose(bone, [[0, 0.05], [0.25, 1]], atol=1e-6)
