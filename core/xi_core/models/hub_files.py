"""Which files of a hub's repository a launch gets: no code and no pickles, unless it may have them. Used by `hub.py`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatch, fnmatchcase
from pathlib import Path

from msgspec import Struct

from xi_core.errors import ArtifactError
from xi_core.models.family import SourceRef
from xi_core.models.hashing import SHA1_DIGITS, SHA256_DIGITS, checked_hash, checked_name
from xi_core.models.inspect import OPT_IN, PICKLES, read_json

_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
_QUANTIZATION = re.compile(r"\*([^*]+)\*\.gguf")
"""The pattern of a quantization (`hub_id.py`)."""
WEIGHTS = ("*.safetensors", "*.gguf")
PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
"""Pickled weights that torch's `weights_only` loading reads."""
CODE = ".py"
PROJECTOR = "mmproj"
"""In the name of a GGUF file: it turns images into what the model reads, which lies in another."""
UNWANTED = (
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.tflite", "*.mlmodel", "*.pkl",
    "*.md", ".gitattributes", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.pdf", "original/*", "onnx/*", "openvino/*", "coreml/*", "figures/*",
)  # fmt: skip
"""Files that no engine is to load: pickles above all."""
_NAMING_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


class HubFile(Struct, kw_only=True, frozen=True):
    """A file as the hub lists it. `sha256` is None where the hub doesn't tell."""

    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None
    """Git's own hash of the content, where the hub has no other."""


def chosen(files: Iterable[HubFile], ref: SourceRef) -> list[HubFile]:
    """The files to get: those that the reference names, or all but what no engine is to load. Raises `ArtifactError`.

    Code comes where `ref.code` allows it; pickled weights where `ref.pickled` does and there are no others.
    A file that is listed twice comes once, as it was listed last.
    """
    listed = list(files)
    for file in listed:
        checked_name(file.name)
        for value, digits in ((file.sha256, SHA256_DIGITS), (file.git_sha1, SHA1_DIGITS)):
            if value is not None:
                checked_hash(value, digits)
    by_name = {file.name: file for file in listed}
    if ref.files:
        for pattern in ref.files:
            _check_pattern(pattern, list(by_name), ref)
        names = named(by_name, ref.files)
        _check_named(names, ref)
        return [by_name[name] for name in names]
    wanted = {name for name in by_name if _is_wanted(name, ref)}
    if not _any(wanted, WEIGHTS):
        check_weights({name for name in by_name if name in wanted or Path(name).suffix in PICKLES}, ref)
        wanted |= {name for name in by_name if _any((name,), PICKLED)}
    return [file for name, file in by_name.items() if name in wanted]


def check_weights(names: Collection[str], ref: SourceRef) -> None:
    """Raises `ArtifactError` for a model without weights that this launch may have, saying what there is and what to do."""
    if _any(names, WEIGHTS) or (ref.pickled and _any(names, PICKLED)):
        return
    pickles = sorted(name for name in names if Path(name).suffix in PICKLES)
    if not pickles:
        raise ArtifactError(f"'{ref.id}' can't be used: it has no weights; xi loads .safetensors and .gguf files")
    readable = not ref.pickled and _any(names, PICKLED)
    raise ArtifactError(
        f"'{ref.id}' can't be used: its weights ({', '.join(pickles[:3])}) are pickles, which can run code when they are loaded; take one "
        f"with .safetensors or .gguf files" + (f"{OPT_IN}, with the engine transformers" if readable else "")
    )


def check_cached(names: Collection[str], ref: SourceRef) -> None:
    """Raises `ArtifactError` for a model in the cache that an earlier launch might have, and this one may not, or of which it could mean
    several files."""
    if ref.files:
        for pattern in ref.files:
            _check_one(pattern, named(names, (pattern,)), ref)
        _check_named(named(names, ref.files), ref)
    elif any(Path(name).suffix in PICKLES for name in names):
        check_weights(names, ref)


def lacks_code(folder: Path, names: Iterable[str]) -> bool:
    """Whether a model in the cache has files that name code of its own, and none of that code. Raises `ArtifactError`."""
    here = set(names)
    if any(name.endswith(CODE) for name in here):
        return False
    return any(_names_code(read_json(folder / name).get("auto_map")) for name in _NAMING_CODE if name in here)


def _names_code(auto_map: object) -> bool:
    """Whether there is code of the repository's own in it: `FILE.CLASS`, or several in a list. That of others reads `OWNER/NAME--…`."""
    values = auto_map.values() if isinstance(auto_map, dict) else ()
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return any(isinstance(name, str) and "--" not in name for name in names)


def named(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Those of the names that a pattern (`*q4_k_m*.gguf`, `*.gguf`) has, in any case, in the patterns' order.

    The projector of a model that sees, `mmproj-….gguf`, is had by its full name alone: it is no model by itself.
    """
    listed = sorted(names)
    return list(dict.fromkeys(name for one in patterns for name in listed if name == one or _matches(name.lower(), one.lower())))


def _matches(name: str, pattern: str) -> bool:
    """A quantization is a whole word of the name: `q6_k` is not `q6_k_l`, nor `f16` `bf16`. Both are in lower case."""
    if PROJECTOR in Path(name).name:
        return False
    word = _QUANTIZATION.fullmatch(pattern)
    if word is None:
        return fnmatchcase(name, pattern)
    return re.fullmatch(rf"(.*[-._/])?{re.escape(word[1])}([-./].*)?\.gguf", name) is not None


def naming(error: ArtifactError, ref: SourceRef, file: HubFile) -> ArtifactError:
    """The error, with the file that it befell."""
    return error if file.name in error.message else ArtifactError(f"{ref.id}: {file.name}: {error.message}", param=error.param)


def _any(names: Iterable[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)


def _is_wanted(name: str, ref: SourceRef) -> bool:
    return not _any((name,), UNWANTED) and (ref.code or not name.endswith(CODE))


def _check_named(names: list[str], ref: SourceRef) -> None:
    """A reference doesn't get by naming them what it may not have otherwise."""
    for name in names:
        if name.endswith(CODE) and not ref.code:
            raise ArtifactError(
                f"'{ref.id}': {name} is code of the model's own; to have it, launch with --trust-remote-code, "
                f"where the operator allows that (XI_ALLOW_REMOTE_CODE=1)",
                param="trust_remote_code",
            )
        if Path(name).suffix in (*PICKLES, ".pkl") and not (ref.pickled and _any((name,), PICKLED)):
            raise ArtifactError(f"'{ref.id}': {name} is a pickle, which can run code when it is loaded; name .safetensors or .gguf files")


def _check_pattern(pattern: str, names: list[str], ref: SourceRef) -> None:
    """A pattern has to mean one file, or the parts of one."""
    found = named(names, (pattern,))
    if not found:
        kind = named(names, (f"*{Path(pattern).suffix}",))
        hint = " (a quantization is a whole word: q4_k_m, not q4)" if _QUANTIZATION.fullmatch(pattern) else ""
        raise ArtifactError(f"'{ref.id}' has no file {pattern}{hint}; it has {', '.join(kind[:30]) or 'none of this kind'}")
    _check_one(pattern, found, ref)


def _check_one(pattern: str, found: list[str], ref: SourceRef) -> None:
    """The files that a pattern has are one, or its parts."""
    if "*" in pattern and len({_PART.sub("", name) for name in found}) > 1:
        raise ArtifactError(
            f"'{ref.id}' has several files {pattern}: {', '.join(found[:30])}; say which by its quantization (-q)", param="quantization"
        )
