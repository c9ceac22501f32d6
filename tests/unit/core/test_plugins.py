"""The hub: every plugin on its own, and whatever one does wrong, the others load."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xi_core.errors import ConfigError, InvalidRequest, PluginError, UnknownEngine
from xi_core.importing import import_path
from xi_core.plugins import PluginHub, PluginRecord, parse_selection

ROUTER = "from xi_core.cluster.routing import RouterInfo\nfrom xi_core.hookspecs import hookimpl\n"


def routers(*names: str, aliases: str = "()") -> str:
    infos = ", ".join(f"RouterInfo(name={name!r}, router='x:Y', aliases={aliases})" for name in names)
    return f"{ROUTER}\n@hookimpl\ndef xi_routers():\n    return [{infos}]\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a distribution with one plugin module."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, code: str, requires: str = "", point: str | None = None) -> None:
        module = f"plugin_{name}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        requirement = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requirement}")
        (info / "entry_points.txt").write_text(f"[xi]\n{point or name} = {module}\n")

    return install


def record(hub: PluginHub, name: str) -> PluginRecord:
    return next(record for record in hub.records if record.name == name)


def test_built_ins_load_through_entry_points_and_offer_every_hook() -> None:
    hub = PluginHub.load()
    ours = [record for record in hub.records if record.distribution == "xi-inference"]
    assert {record.state for record in ours} == {"loaded"}
    assert all(len(registry) > 0 for registry in hub.registries.values())
    assert {"llama.cpp", "transformers"} <= set(hub.engines.names())


def test_a_third_partys_plugin_is_as_good(install: Callable[..., None]) -> None:
    install("mine", routers("mine"))
    hub = PluginHub.load()
    assert "mine" in hub.routers
    assert record(hub, "mine").offers == {"xi_routers": ["mine"]}
    assert record(hub, "mine").distribution == "mine"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("import no_such_module", "no_such_module"),
        ("def f(:", "SyntaxError"),
        (f"{ROUTER}\n@hookimpl\ndef xi_routers():\n    return 1 / 0\n", "ZeroDivisionError"),
        (f"{ROUTER}\n@hookimpl\ndef xi_routers():\n    return [5]\n", "name"),
        (f"{ROUTER}\n@hookimpl\ndef xi_routerz():\n    return []\n", "xi_routerz"),
        (routers("least_loaded"), "taken by plugin 'routers'"),
        (routers("one", "ONE"), "itself"),
        (routers("new", aliases="('least_loaded',)"), "least_loaded"),
    ],
)
def test_a_bad_plugin_is_quarantined_and_offers_nothing(install: Callable[..., None], code: str, words: str) -> None:
    install("bad", code)
    install("good", routers("good"))
    hub = PluginHub.load()
    bad = record(hub, "bad")
    assert bad.state == "quarantined"
    assert words in bad.error + bad.trace
    assert bad.offers == {}
    assert "good" in hub.routers
    assert len(hub.routers) == 3, "the built-in ones and the good one"


def test_the_traceback_is_kept(install: Callable[..., None]) -> None:
    install("bad", "def inner():\n    raise RuntimeError('deep')\ninner()\n")
    assert "in inner" in record(PluginHub.load(), "bad").trace


@pytest.mark.parametrize(
    ("requires", "state"),
    [
        ("xi-inference>=0.1,<0.2", "loaded"),
        ("xi-inference (>=0.1)", "loaded"),
        ("xi_inference[llama-cpp]~=0.1.0", "loaded"),
        ("xi-inference>=99", "quarantined"),
        ("XI.Inference<0.1", "quarantined"),
        ("xi-inference!=0.1.0", "quarantined"),
        ("other>=99", "loaded"),
    ],
)
def test_a_plugin_for_another_xi_is_refused_before_its_code_runs(install: Callable[..., None], requires: str, state: str) -> None:
    install("versioned", "import sys\nsys.xi_test_ran = True\n" + routers("versioned"), requires)
    sys.__dict__.pop("xi_test_ran", None)
    assert record(PluginHub.load(), "versioned").state == state
    assert hasattr(sys, "xi_test_ran") == (state == "loaded")


def test_selection_by_name(install: Callable[..., None]) -> None:
    install("mine", routers("mine"))
    only = PluginHub.load("mine")
    assert [one.name for one in only.records if one.state == "loaded"] == ["mine"]
    without = PluginHub.load("-mine, -parsers")
    assert record(without, "mine").state == "blocked"
    assert "XI_PLUGINS" in record(without, "mine").error
    assert len(without.parsers) == 0
    assert "llama.cpp" in without.engines


@pytest.mark.parametrize("selection", ["nope", "-nope", "-schedulers,-schedulars"])
def test_a_selection_of_what_is_not_installed_is_a_mistake(selection: str) -> None:
    with pytest.raises(ConfigError, match=r"no installed plugin is named '\w+'; installed: .*schedulers"):
        PluginHub.load(selection)


def test_a_hub_without_the_plugin_says_where_to_look() -> None:
    with pytest.raises(ConfigError, match="known: none, for no plugin that is loaded offers one; see `xi plugins`"):
        PluginHub.load("-schedulers").schedulers.get("idle_first")


def test_an_unknown_name_in_a_request_is_the_callers_mistake() -> None:
    hub = PluginHub.load()
    for registry, noun in ((hub.sources, "model source"), (hub.schedulers, "scheduler")):
        with pytest.raises(ConfigError, match=f"unknown {noun} 'nope'; known: ") as of_a_setting:
            registry.get("nope", param="XI_SETTING")
        with pytest.raises(InvalidRequest) as of_a_request:
            registry.asked("nope", param="field")
        assert (of_a_request.value.message, of_a_request.value.param) == (of_a_setting.value.message, "field")
    assert hub.sources.asked("HuggingFace", param="source").name == "huggingface"
    with pytest.raises(UnknownEngine):  # which says more
        hub.engines.asked("nope", param="model_engine")


def test_a_mixed_selection_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="not both"):
        parse_selection("a,-b")


def test_registries_find_by_name_alias_and_case_and_list_what_they_know() -> None:
    hub = PluginHub.load()
    assert hub.engines.get("LLAMA.CPP") is hub.engines.get("llama_cpp")
    with pytest.raises(UnknownEngine, match=r"llama\.cpp.*transformers") as caught:
        hub.engines.get("lama", param="model_engine")
    assert caught.value.param == "model_engine"


def test_import_path() -> None:
    assert import_path("xi_core.plugins:PluginHub") is PluginHub
    for path, words in (("xi_core.plugins", "module:Class"), ("xi_core.plugins:Nothing", "has no 'Nothing'")):
        with pytest.raises(PluginError, match=words):
            import_path(path)
    with pytest.raises(ImportError):
        import_path("no_such_module:Thing")
