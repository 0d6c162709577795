import pytest

from nnunet_ext.data.failures import LABELLED, UNLABELLED, Failure, drain, format_report, record


@pytest.fixture(autouse=True)
def _nothing_left_behind():
    drain()
    yield
    drain()


def test_drain_forgets():
    first, second = Failure("a", LABELLED, "broken"), Failure("b", UNLABELLED, "broken")
    record([first])
    record([second])
    assert drain() == [first, second]
    assert drain() == []


def test_report_of_nothing_is_empty():
    assert format_report([]) == ""


def test_report_lists_labelled_cases_first_and_each_once():
    lines = format_report(
        [
            Failure("u", UNLABELLED, "has NaN", "2d"),
            Failure("l", LABELLED, "cannot be read", "2d"),
            Failure("u", UNLABELLED, "has NaN", "3d_fullres"),
            Failure("w", UNLABELLED, "is empty"),
        ]
    ).splitlines()
    assert lines[0] == "3 case(s) failed; everything else is done and kept."
    assert lines[1].startswith("LABELLED cases that failed")
    assert lines[2] == "  l [2d]: cannot be read"
    assert lines[3].startswith("Unlabelled cases that failed")
    assert lines[4:6] == ["  u [2d, 3d_fullres]: has NaN", "  w: is empty"]
    assert "run the same command again" in lines[6]
    assert len(lines) == 7


def test_a_labelled_and_an_unlabelled_case_of_one_name_are_two():
    report = format_report([Failure("a", LABELLED, "x"), Failure("a", UNLABELLED, "y")])
    assert report.startswith("2 case(s) failed")


@pytest.mark.parametrize(("kind", "absent"), [(LABELLED, "Unlabelled cases"), (UNLABELLED, "LABELLED cases")])
def test_report_has_no_empty_sections(kind, absent):
    assert absent not in format_report([Failure("a", kind, "broken")])
