import subprocess
from pathlib import Path

import msgspec
import pytest

from xi_core.access import allowed_origins, check_access
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


@pytest.mark.parametrize("value", ["99999999999999999999999", "inf", "nan"])
def test_every_number_has_an_upper_bound(value: str) -> None:
    numbers = [f"XI_{name.upper()}" for name in Settings.__struct_fields__ if type(getattr(Settings(), name)) in (int, float)]
    assert "XI_QUEUE_SIZE" in numbers
    for variable in numbers:
        with pytest.raises(ConfigError) as caught:
            read({variable: value})
        assert caught.value.param == variable
    assert read({"XI_QUEUE_SIZE": str(2**31 - 1)}).queue_size == 2**31 - 1


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


@pytest.mark.parametrize(
    ("text", "key", "origins"),
    [
        ("", "", set()),
        (" , ", "", set()),
        ("https://chat.example.org, http://localhost:3000,", "", {"https://chat.example.org", "http://localhost:3000"}),
        ("HTTPS://Chat.Example.org", "", {"https://chat.example.org"}),
        ("https://a:443,http://b:80,http://c:443", "", {"https://a", "http://b", "http://c:443"}),
        ("http://[::1]:3000,app://obsidian.md", "", {"http://[::1]:3000", "app://obsidian.md"}),
        ("chrome-extension://abc", "", {"chrome-extension://abc"}),
        ("*", "k", {"*"}),
        ("http://localhost:3000,*", "k", {"*"}),
    ],
)
def test_origins(text: str, key: str, origins: set[str]) -> None:
    assert allowed_origins(text, key) == origins


@pytest.mark.parametrize(
    "text",
    [
        "null", "chat.example.org", "localhost:3000", "https://", "https://a/", "https://a/chat", "https://a?b", "https://u:p@a", "https://a:",
        "https://a:x", "https://a:0", "https://a:65536", "https://*.example.org", "https://a b", "https://чат.рф", "file:///x",
        "http://localhost:3000 http://localhost:3001",
    ],
)  # fmt: skip
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"XI_ALLOW_ORIGINS \(--allow-origin\): '.*' is no origin") as caught:
        allowed_origins(f"http://localhost:3000,{text}", "k")
    assert f"'{text}'" in caught.value.message
    assert caught.value.param == "XI_ALLOW_ORIGINS"


@pytest.mark.parametrize("text", ["*", "https://a, *"])
def test_any_origin_wants_a_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"XI_ALLOW_ORIGINS .* set one with XI_API_KEY"):
        allowed_origins(text, "")
