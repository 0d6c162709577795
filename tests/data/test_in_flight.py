from nnunet_ext.data.in_flight import InFlight


def test_of_large_cases_two_are_under_way():
    bound = InFlight(100, len)
    for name in "ab":
        assert bound.has_room()
        bound.begin(name)
    assert not bound.has_room()  # nobody knows yet how large they are
    bound.finished("a", bytes(80))
    assert not bound.has_room()
    bound.end("a")
    assert bound.has_room()
    bound.begin("c")
    assert not bound.has_room()
    assert not bound.has_room(1)  # 80 each are expected of the others
    bound.finished("b", bytes(10))
    bound.finished("c", bytes(10))
    assert bound.has_room(80)
    assert bound.has_room(140)  # two of the largest, which it is itself
    bound.finished("x", bytes(1000))  # not under way
    assert bound.largest == 80


def test_a_large_case_is_expected_from_its_file_after_small_ones():
    bound = InFlight(100, len, {"small": 1, "other": 1, "large": 50, "larger": 51})
    bound.begin("small")
    bound.begin("other")
    bound.finished("small", bytes(2))  # two a byte of its file
    assert bound.has_room(name="large")
    bound.begin("large")
    assert not bound.has_room(name="larger")  # 100 and 102, with 2 each of the small ones
    assert not bound.has_room(name="unknown")  # as large as the largest
    bound.finished("other", bytes(5))
    bound.finished("other", bytes(5))  # asked twice, counted once: 7 for two bytes, so 175 are expected of 50
    assert bound.has_room(size=117)
    assert not bound.has_room(size=170)
    bound.end("other")
    bound.end("small")
    assert bound.has_room(name="larger")
    bound.begin("larger")
    assert not bound.has_room(name="unknown")
    bound.finished("large", bytes(10))
    bound.finished("larger", bytes(10))
    assert bound.has_room(name="small")


def test_small_cases_flow_freely():
    bound = InFlight(100, len)
    for number in range(10):
        assert bound.has_room(10)
        bound.begin(str(number), 10)
    assert not bound.has_room(10)
    bound.end("3")
    assert bound.has_room(10)
    assert not bound.has_room(11)
