"""The checks before a seam is installed."""

from types import ModuleType

import pytest

from nnunet_ext.plugin import compat


@pytest.mark.parametrize("version", ["2.8.1", "2.8.1.post1", "2.10", "2.99.0rc1", None])
def test_supported_versions_pass(monkeypatch, version):
    monkeypatch.setattr(compat, "nnunetv2_version", lambda: version)
    compat.check_version()


@pytest.mark.parametrize("version", ["2.8.0", "2.7", "3.0.0rc1", "3.1", "1.7.1", "unknown"])
def test_other_versions_are_refused(monkeypatch, version):
    monkeypatch.setattr(compat, "nnunetv2_version", lambda: version)
    with pytest.raises(compat.SeamError, match=rf"made for nnunetv2>=2.8.1,<3, found nnunetv2 {version}; .*untouched"):
        compat.check_version()


def test_installed_version_is_read():
    assert compat.nnunetv2_version().startswith("2.")


def test_no_metadata_is_no_version(monkeypatch):
    def missing(name):
        raise compat.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compat.importlib.metadata, "version", missing)
    assert compat.nnunetv2_version.__wrapped__() is None


def test_expected_signature_passes():
    compat.expect_signature(lambda a, b=1: None, ("a", "b"))


@pytest.mark.parametrize("function", [lambda a: None, lambda b, a: None, lambda a, b, c: None, lambda *a: None])
def test_other_signatures_are_refused(function):
    with pytest.raises(compat.SeamError, match=r"expected .*\(a, b\), found nnunetv2 2\..* with .*; nnU-Net is left"):
        compat.expect_signature(function, ("a", "b"))


def test_what_is_no_function_is_refused():
    with pytest.raises(compat.SeamError, match="expected a function, got 3"):
        compat.expect_signature(3, ())


def test_replace_changes_all_or_nothing():
    module = ModuleType("fake")

    def first():
        return 1

    def second(surprise):
        return surprise

    module.first, module.second = first, second
    targets = [compat.Target("fake", "first", ()), compat.Target("fake", "second", ())]
    with pytest.raises(compat.SeamError, match=r"second\(surprise\)"):
        compat.replace(module, targets, lambda original: lambda: 0)
    assert module.first is first
    assert module.second is second


def test_replace_of_a_missing_function_is_refused():
    with pytest.raises(compat.SeamError, match=r"expected fake\.gone, not found in nnunetv2 2\."):
        compat.replace(ModuleType("fake"), [compat.Target("fake", "gone", ())], lambda original: original)


def test_replace_is_idempotent_and_keeps_name_and_docstring():
    module = ModuleType("fake")

    def stock():
        """Stock."""
        return 1

    module.stock = stock
    for _ in range(2):
        compat.replace(module, [compat.Target("fake", "stock", ())], lambda original: lambda: original() + 1)
    assert module.stock() == 2
    assert (module.stock.__name__, module.stock.__doc__) == ("stock", "Stock.")
    assert module.stock.__wrapped__ is stock
