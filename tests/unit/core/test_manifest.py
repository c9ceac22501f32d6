from xi_core.wire.manifest import of_fields


def test_what_is_not_in_it_is_not_served() -> None:
    assert of_fields(chat={}).serves("/v1/chat/completions")
    assert not of_fields(chat={}).serves("/v1/completions")
