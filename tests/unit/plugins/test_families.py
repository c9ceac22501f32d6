"""Every built-in family file: valid, named after its family, and of names that xi knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import xi_plugins.families
from xi_core.cluster.engine_choice import weights_of
from xi_core.models.family_file import HUB_ID, FamilyFile, expanded, read_family, schema
from xi_core.models.memory import parameters
from xi_plugins import parsers

FOLDER = Path(xi_plugins.families.__file__).parent
FILES = sorted(FOLDER.glob("*.json"))
VERIFIED = Path(__file__).parents[2] / "data" / "verified_hub_ids.txt"
SCHEMA = Path(__file__).parents[3] / "docs" / "reference" / "family.schema.json"
WANTED = """
qwen-chat qwen1.5-chat qwen2.5-instruct qwen2.5-coder-instruct qwen3 llama-3.1-instruct llama-3.2-instruct llama-3.3-instruct deepseek-v3
deepseek-r1 deepseek-r1-0528 deepseek-r1-distill-qwen deepseek-r1-distill-llama gemma-3-it mistral-instruct mixtral-instruct phi-4 glm-4
gpt-oss smollm2 opt xi-tiny bge-m3 bge-small-en-v1.5 bge-large-en-v1.5 qwen3-embedding gte-large jina-embeddings-v2-base-en
bge-reranker-v2-m3 qwen3-reranker
"""


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def family(request: pytest.FixtureRequest) -> FamilyFile:
    path: Path = request.param
    found = read_family(path.read_bytes(), path.name)
    assert found.name == path.stem
    return found


def test_the_families_that_were_promised_are_there() -> None:
    assert set(WANTED.split()) <= {path.stem for path in FILES}


def test_names_are_free(family: FamilyFile) -> None:
    others = {
        name for other in xi_plugins.families.xi_model_families() if other.name != family.name for name in (other.name, *other.aliases)
    }
    assert not others & {family.name, *family.aliases}


def test_parsers_are_xis_own(family: FamilyFile) -> None:
    known = {(info.kind, info.name) for info in parsers.xi_parsers()}
    named = {("tool", family.tool_parser), ("reasoning", family.reasoning_parser)}
    assert {pair for pair in named if pair[1] is not None} <= known
    assert (family.tool_parser is not None) == ("tools" in family.abilities)
    assert (family.reasoning_parser is not None) == ("reasoning" in family.abilities)


def test_specs_are_whole(family: FamilyFile) -> None:
    specs = expanded(family).specs
    keys = [(spec.format, spec.size_in_billions, spec.quantization) for spec in specs]
    assert specs
    assert len(set(keys)) == len(keys), "two specs that no launch can tell apart"
    for spec in specs:
        assert spec.architecture, spec.describe()
        assert spec.context_length, spec.describe()
        for ref in (spec.source, *spec.mirrors):
            assert "{" not in ref.id + "".join(ref.files)
            assert ref.source == "builtin" or HUB_ID.fullmatch(ref.id)
            assert ref.source == "builtin" or bool(ref.files) == (spec.format == "ggufv2"), spec.describe()


def verified() -> dict[tuple[str, str], str]:
    """Hub and id → where it was seen."""
    found, where = dict[tuple[str, str], str](), ""
    for line in VERIFIED.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            where = line.removeprefix("== ")
        elif line and not line.startswith("#"):
            hub, id = line.split(" ")
            assert (hub, id) not in found, f"{id} stands there twice"
            found[hub, id] = where
    return found


def test_every_hub_id_was_seen_in_a_public_source_and_none_is_listed_in_vain() -> None:
    refs = [ref for family in xi_plugins.families.xi_model_families() for spec in family.specs for ref in (spec.source, *spec.mirrors)]
    sources = verified()
    assert {(ref.source, ref.id) for ref in refs if ref.source != "builtin"} == set(sources), "look it up, and note where, or leave it out"
    assert all(where.startswith("https://") or where == "public code on GitHub" for where in sources.values())


def test_models_that_generate_text_know_where_it_ends(family: FamilyFile) -> None:
    if family.model_type == "LLM" and family.name != "xi-tiny":  # whose own files name all of its end tokens
        assert family.stop, family.name
    specs = expanded(family).specs
    assert all((spec.stop, spec.stop_token_ids) == (family.stop, family.stop_token_ids) for spec in specs)


def test_figures_stand_in_every_family(family: FamilyFile) -> None:
    assert all(spec.architecture_figures is not None for spec in expanded(family).specs)


def test_the_size_of_weights_is_known_and_like_the_name(family: FamilyFile) -> None:
    """Figures that were mistyped would give another number of weights than the size tells."""
    for spec in expanded(family).specs:
        billions = float(spec.size_in_billions or 0)
        assert weights_of(spec), spec.describe()
        if spec.architecture_figures is not None:  # a name rounds: gpt-oss-120b has 117, Llama-3.2-1B 1.24
            assert 0.8 * billions < parameters(spec.architecture_figures).total / 1e9 < 1.25 * billions, spec.describe()


def test_a_split_quantization_names_all_of_its_files() -> None:
    specs = expanded(read_family((FOLDER / "qwen2.5-instruct.json").read_bytes())).specs
    found = {s.quantization: s.source.files for s in specs if s.format == "ggufv2" and s.size_in_billions == "7"}
    assert found["q2_k"] == ("qwen2.5-7b-instruct-q2_k.gguf",)
    assert found["q4_k_m"] == ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "qwen2.5-7b-instruct-q4_k_m-00002-of-00002.gguf")


def test_the_published_schema_is_current() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == schema(), "run: make docs"
