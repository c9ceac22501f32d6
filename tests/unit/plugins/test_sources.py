"""`xi_plugins.sources`."""

from __future__ import annotations

from pathlib import Path

import pytest

from xi_core.errors import ArtifactError
from xi_core.importing import import_path
from xi_core.models.family import SourceRef
from xi_core.models.source import Source
from xi_plugins import families, sources
from xi_plugins.sources.builtin import FAMILIES, BuiltinSource
from xi_plugins.sources.local import LocalSource


def fetch(source: Source, text: str) -> Path:
    return source.fetch(SourceRef(source="any", id=text), Path("unused"), lambda stage, share: None)


def test_local_path_and_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "a model.gguf"
    model.write_bytes(b"GGUF")
    assert fetch(LocalSource(), str(model)) == model
    assert fetch(LocalSource(), model.as_uri()) == model
    assert fetch(LocalSource(), f"file://localhost{tmp_path}") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert fetch(LocalSource(), "a model.gguf") == model
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch(LocalSource(), "~/a model.gguf") == model


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/nowhere/at/all", "doesn't exist"),
        ("file:///nowhere", "doesn't exist"),
        ("file://other-host/model", "another machine"),
        ("file:relative", "absolute"),
        ("x" * 5000, "can't be read"),
        ("~nobody-of-this-name/model", "nobody-of-this-name"),
    ],
)
def test_local_refusals_say_why(text: str, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        fetch(LocalSource(), text)


def test_local_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="empty"):
        fetch(LocalSource(), str(tmp_path))


def test_builtin_stays_below_its_root(tmp_path: Path) -> None:
    root = tmp_path / "families"
    (root / "tiny").mkdir(parents=True)
    (root / "tiny" / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "secret").write_text("x")
    (root / "link").symlink_to(tmp_path / "secret")
    source = BuiltinSource(root)
    assert fetch(source, "tiny/m.gguf") == (root / "tiny" / "m.gguf").resolve()
    for escape in ("../secret", "/etc/passwd", "tiny/../../secret", "link", ".", "", "tiny/.."):
        with pytest.raises(ArtifactError, match="no path below"):
            fetch(source, escape)
    with pytest.raises(ArtifactError, match="missing"):
        fetch(source, "tiny/other.gguf")


def test_the_family_names_built_in_files() -> None:
    assert Path(families.__file__).parent == FAMILIES
    family = next(family for family in families.xi_model_families() if family.name == "xi-tiny")
    assert [(spec.format, spec.quantization) for spec in family.specs] == [("ggufv2", "f16"), ("pytorch", "none")]
    for spec in family.specs:
        assert spec.source.source == "builtin"
        assert (FAMILIES / spec.source.id).resolve().is_relative_to(FAMILIES)
        assert (spec.name, spec.size_in_billions, spec.context_length, spec.tool_parser) == ("xi-tiny", "0.001", 1024, "hermes")


def test_descriptors() -> None:
    for info in sources.xi_model_sources():
        assert isinstance(import_path(info.source)(), Source)
