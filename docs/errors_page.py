"""The page of errors, for `reference.py`: each class of `xi_core.errors` with its docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator

from page_texts import cell, code, table

from xi_core.errors import RemoteError, XiError

HEAD = """# Errors

Made from `xi_core/errors.py`. A request that fails is answered with the status and, in OpenAI's envelope, the code:

```json
{"error": {"message": "…", "type": "invalid_request_error", "param": "temperature", "code": "invalid_request"}}
```

`code` is stable: programs go by it. `message` says what to do, and `param` names the field where there is one. A stream that has begun ends
with the envelope as its last event. `Retry-After` gives whole seconds. What HTTP itself forbids has a code made of its phrase, such as
`method_not_allowed` (405).

Python programs (`xi_core.client.Client`, `LLM`) get the classes; a kind of a class is caught with it. Those without an HTTP status of their
own have 500: they are shown by commands and stand in logs.
"""


def errors() -> str:
    """Every error: code, HTTP status, class, meaning, whether to ask again."""
    return HEAD + "\n" + table(["code", "HTTP", "class", "meaning, and what to do", "retry"], map(row, _tree(XiError)))


def row(cls: type[XiError]) -> list[str]:
    """The cells of one class."""
    meaning, retry = split_retry(cls.__name__, " ".join((cls.__doc__ or "").split()))
    base = cls.__base__
    kind = f", a kind of {code(base.__name__)}" if base not in (XiError, Exception, None) else ""
    return [code(cls.code), str(cls.status), code(cls.__name__) + kind, _linked(cell(meaning)), cell(retry)]


def split_retry(name: str, text: str) -> tuple[str, str]:
    """The meaning, and what stands after `Retry:`. Raises `ValueError` where nothing does."""
    meaning, mark, retry = text.rpartition(" Retry: ")
    if not mark:
        raise ValueError(f"{name}: its docstring doesn't say after `Retry:` whether to ask again")
    return meaning, retry.removesuffix(".")


def _linked(text: str) -> str:
    return re.sub(r"docs/reference/(\w+)\.md", r"[\1](\1.md)", text)


def _tree(cls: type[XiError]) -> Iterator[type[XiError]]:
    """`cls` and its kinds in the order of the source, `RemoteError` last."""
    yield cls
    kinds = [kind for kind in cls.__subclasses__() if kind.__module__ == XiError.__module__]
    for kind in sorted(kinds, key=lambda kind: kind is RemoteError):
        yield from _tree(kind)
