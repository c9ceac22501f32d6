import subprocess
from pathlib import Path

import msgspec
import pytest

from xi_core.access import check_access
from xi_core.config import XINFERENCE_NAMES, Settings, read
from xi_core.errors import ConfigError

ROOT = Path(__file__).parents[3]


def test_defaults() -> None:
    assert read({}) == Settings()
    assert read({}).home_dir == Path.home() / ".xi"


def test_each_setting_has_its_variable() -> None:
    found = read({"XI_PORT": "8000", "XI_HANG_TIMEOUT": "2.5", "XI_PLUGINS": "a,b", "XI_HOME": "/x"})
    assert (found.port, found.hang_timeout, found.plugins, found.home_dir) == (8000, 2.5, "a,b", Path("/x"))


@pytest.mark.parametrize(("setting", "variable"), XINFERENCE_NAMES.items())
def test_xinferences_names_work_and_ours_win(setting: str, variable: str) -> None:
    other, ours = ("7", "8") if setting.startswith("batch") else ("0", "1") if setting.startswith("allow") else ("theirs", "ours")
    kind = type(getattr(Settings(), setting))
    assert getattr(read({variable: other}), setting) == msgspec.convert(other, kind, strict=False)
    assert getattr(read({variable: other, f"XI_{setting.upper()}": ours}), setting) == msgspec.convert(ours, kind, strict=False)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("XI_PORT", "http"), ("XI_PORT", "70000"), ("XI_GRACE", "-1"), ("XI_BATCH_SIZE", "0"), ("XINFERENCE_BATCH_SIZE", "x")],
)
def test_a_wrong_value_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read({variable: value})
    assert caught.value.param == variable
    assert variable in caught.value.message
    assert value in caught.value.message


@pytest.mark.parametrize("variable", ["XI_GRACE", "XI_LAUNCH_TIMEOUT", "XI_HANG_TIMEOUT", "XI_REQUEST_TIMEOUT"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e300"])
def test_times_are_finite(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}='{value}'"):
        read({variable: value})


def test_a_home_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match="XI_HOME='~nobody-of-this-name/x': there is no such home directory"):
        read({"XI_HOME": "~nobody-of-this-name/x"}).home_dir  # noqa: B018 - the property raises


def test_an_empty_variable_is_none() -> None:
    assert read({"XI_PORT": ""}).port == 9997


def test_the_environment_is_read_in_one_place() -> None:
    """Elsewhere `os.environ` is only handed on to child processes, or read for what isn't ours (CUDA's own variable)."""
    hits = subprocess.run(
        ["grep", "-rnE", r"environ(\.get\(|\[)['\"](XI_|XINFERENCE_)", "--include=*.py", "core", "plugins", "server", "cli"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in hits.stdout.splitlines() if "/testing/" not in line and "] =" not in line]
    assert not lines


@pytest.mark.parametrize(
    ("host", "key", "no_auth"),
    [("127.0.0.1", "", False), ("localhost", "", False), ("::1", "", False), ("0.0.0.0", "k", False), ("0.0.0.0", "", True)],
)
def test_access_allowed(host: str, key: str, no_auth: bool) -> None:
    check_access(host, key, no_auth)


@pytest.mark.parametrize(
    ("host", "key", "no_auth", "words"),
    [
        ("0.0.0.0", "", False, "XI_API_KEY"),
        ("::", "", False, "XI_API_KEY"),
        ("example.org", "", False, "XI_API_KEY"),
        ("192.0.2.1", "", False, "XI_API_KEY"),
        ("127.0.0.1", "a b", False, "printable"),
        ("127.0.0.1", "k", True, "leave one out"),
    ],
)
def test_access_refused(host: str, key: str, no_auth: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_access(host, key, no_auth)
