"""A hash that a source tells names a file: one that is none never becomes a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from xi_core.errors import ArtifactError
from xi_core.models.cache import ModelCache
from xi_core.models.family import SourceRef
from xi_core.models.hub_files import HubFile, chosen

REF = SourceRef(source="huggingface", id="a/b")


@pytest.mark.parametrize("value", ["../../victim", "/etc/passwd", "", "A" * 64, "0" * 63, "0" * 65, 7])
@pytest.mark.parametrize("field", ["sha256", "git_sha1"])
def test_a_listing_with_a_hash_that_is_none_is_refused(field: str, value: object) -> None:
    file = HubFile(name="model.safetensors", size=1, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="which is none; nothing was written"):
        chosen([file], REF)


def test_a_cache_deletes_nothing_outside_its_blobs(tmp_path: Path) -> None:
    victim, cache = tmp_path / "victim", ModelCache(tmp_path / "cache")
    victim.write_text("precious")
    for name in (str(victim), "../../victim"):
        with pytest.raises(ArtifactError):
            cache.reuse(name, 5, tmp_path)
    assert victim.read_text() == "precious"


def test_real_hashes_pass() -> None:
    file = HubFile(name="model.safetensors", size=1, sha256="0a" * 32, git_sha1="0b" * 20)
    assert chosen([file], REF) == [file]
