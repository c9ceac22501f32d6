from xi_core.wire.manifest import YES, limited, no, of_fields


def test_narrowing_keeps_the_stricter_cell() -> None:
    wide = of_fields(chat={"n": YES, "seed": YES, "stop": limited(maximum=4)}, completions={"n": YES})
    narrow = of_fields(chat={"n": no("one at a time"), "stop": YES, "tools": YES})
    both = wide.narrowed_by(narrow)
    assert both == narrow.narrowed_by(wide)
    assert both.endpoints == {"/v1/chat/completions": {"n": no("one at a time"), "stop": limited(maximum=4)}}


def test_what_is_not_in_it_is_not_served() -> None:
    assert of_fields(chat={}).serves("/v1/chat/completions")
    assert not of_fields(chat={}).serves("/v1/completions")
