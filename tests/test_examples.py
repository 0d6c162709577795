"""The examples in the docstrings of what networks/ and losses/ offer are true."""

import doctest
import inspect

import pytest

import nnunet_ext.losses
import nnunet_ext.networks
from nnunet_ext.networks import ife_unet

PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (nnunet_ext.networks, nnunet_ext.losses)
    for name in package.__all__
} | {f"{cls.__module__}.{cls.__name__}": cls for cls in (ife_unet.IFEPlainConvUNet, ife_unet.IFEResidualEncoderUNet)}


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name):
    """Run with no name but those that it imports itself, as a reader would."""
    text = []
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(PUBLIC[name]), {}, name, None, None)
    assert example.examples, f"{name} has no example in its docstring"
    found = doctest.DocTestRunner(verbose=False).run(example, out=text.append)
    assert found.failed == 0, "".join(text)
