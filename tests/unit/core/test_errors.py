import json
import re
from collections.abc import Iterator

import pytest

from xi_core import errors
from xi_core.errors import ErrorBody, Overloaded, RemoteError, ReplicaLost, XiError, envelope


def tree(root: type[XiError] = XiError) -> Iterator[type[XiError]]:
    for cls in root.__subclasses__():
        if cls.__module__ == errors.__name__:
            yield cls
            yield from tree(cls)


@pytest.mark.parametrize("cls", [cls for cls in tree() if cls is not RemoteError])
def test_every_error_crosses_a_process_border_as_itself(cls: type[XiError]) -> None:
    back = XiError.from_body(cls("what happened", param="field", retry_after=2.0).body())
    assert type(back) is cls
    assert (back.message, back.param, back.retry_after, back.status) == ("what happened", "field", 2.0, cls.status)


def test_a_kind_of_an_error_without_a_code_of_its_own_crosses_as_that_error() -> None:
    class Died(ReplicaLost):
        """It ended."""

    assert type(XiError.from_body(Died("what happened").body())) is ReplicaLost


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in tree()]
    assert len(codes) == len(set(codes))


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = re.findall(r"(?:├──|└──) (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(cls.__name__ for cls in tree() if cls is not RemoteError)


def test_an_error_of_a_newer_version_keeps_its_words() -> None:
    back = XiError.from_body(ErrorBody(message="from the future", code="brand_new", status=418))
    assert isinstance(back, RemoteError)
    assert back.body().status == 418


def test_the_envelope_is_openais() -> None:
    public = json.loads(envelope(Overloaded("full", retry_after=1).body()))
    assert public == {"error": {"message": "full", "type": "rate_limit_error", "param": None, "code": "overloaded"}}
