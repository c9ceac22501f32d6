"""Inspection: what a local directory or `.gguf` file holds, as a model spec. Called on a worker; reads headers, never tensors."""

from __future__ import annotations

import glob
import json
import re
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from xi_core.errors import ArtifactError
from xi_core.models import gguf
from xi_core.models.architecture import Architecture
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.models.template_traits import traits_of

LARGEST_JSON = 64 * 1024 * 1024
LARGEST_HEADER = 100_000_000
"""The bound that the safetensors library itself sets."""
RANK = 4
"""llama.cpp's number of the pooling that gives a score."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
OPT_IN = (
    ", or let this machine's xi read pytorch_model*.bin by torch's weights_only loading, which runs none of it (XI_ALLOW_PICKLED_WEIGHTS=1)"
)
SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
"""Name of one part of a GGUF file."""


def inspect(path: str | Path, *, pickled: bool = False) -> ModelSpec:
    """The spec of the model at `path`. Raises `ArtifactError`, saying what is missing or damaged and what to do.

    `pickled`: whether the operator lets weights be read from `pytorch_model*.bin`.
    """
    found = local_path(path)
    try:
        if found.is_dir():
            return _directory(found, pickled)
        if found.is_file() and (found.suffix.lower() == ".gguf" or gguf.is_gguf(found)):
            return _gguf_file(found)
        if found.is_file():
            raise ArtifactError(f"no engine here takes {found}: it is neither a GGUF file nor a directory with a model", param="model_path")
    except OSError as error:
        raise ArtifactError(f"{str(found)[:300]} can't be read: {error.strerror or error}", param="model_path") from None
    raise ArtifactError(f"no file or directory at {found}", param="model_path")


def inspect_config(path: str | Path) -> ModelSpec:
    """What tells of memory in a directory with a `config.json`, whether or not its weights are there. Raises `ArtifactError`."""
    found = local_path(path)
    config = read_json(found / "config.json")
    return ModelSpec(
        name=found.name,
        format="pytorch",
        source=SourceRef(source="local", id=str(found)),
        quantization=_quantization(config),
        context_length=_context_length(config),
        architecture=_class_name(config),
        model_type=_model_type(found, _class_name(config) or ""),
        architecture_figures=Architecture.from_config(config),
    )


def local_path(path: str | Path) -> Path:
    """A path, or a `file://` URL, as an absolute path.

    Raises `ArtifactError` for the home of somebody who isn't known here, and for a URL that names no place of this machine.
    """
    if isinstance(path, str) and path.startswith("file:"):
        return _of_url(path)
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise ArtifactError(f"no such home directory as that of '{path}'; write the path in full", param="model_path") from None


def _of_url(text: str) -> Path:
    url = urlsplit(text)
    if url.netloc not in ("", "localhost"):
        raise ArtifactError(f"'{text}' names another machine, '{url.netloc}'; a local path reads file:///path", param="model_path")
    path = Path(unquote(url.path))
    if not path.is_absolute():
        raise ArtifactError(f"'{text}' has no absolute path; write file:///path", param="model_path")
    return path


def _gguf_file(path: Path) -> ModelSpec:
    metadata = gguf.read_metadata(path)
    file_type = metadata.values.get("general.file_type")
    model_type = _gguf_type(metadata)
    template = str(metadata.values.get("tokenizer.chat_template") or "")
    traits = traits_of(template)
    return ModelSpec(
        name=path.stem,
        format="ggufv2",
        source=SourceRef(source="local", id=str(path)),
        quantization=gguf.FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
        context_length=metadata.number("context_length") or None,
        architecture=metadata.architecture,
        model_type=model_type,
        abilities=_abilities(bool(template), model_type) + traits.abilities,
        tool_parser=traits.tool_parser,
        reasoning_parser=traits.reasoning_parser,
        architecture_figures=Architecture.from_gguf(metadata),
        weight_bytes=_gguf_bytes(path, metadata.size),
    )


def _gguf_bytes(path: Path, size: int) -> int:
    """Bytes of a GGUF file with all parts that it is split into (`NAME-00001-of-00003.gguf`)."""
    found = SPLIT.fullmatch(path.name)
    if found is None:
        return size
    return sum(part.stat().st_size for part in path.parent.glob(f"{glob.escape(found[1])}-*-of-{found[2]}.gguf"))


def _directory(path: Path, pickled: bool) -> ModelSpec:
    config_file = path / "config.json"
    if not config_file.is_file():
        return _directory_of_gguf(path)
    config = read_json(config_file)
    weights = _weights(path, pickled)
    formats = {check_safetensors(file) for file in weights if file.suffix == ".safetensors"}
    architecture = _class_name(config)
    model_type = _model_type(path, architecture or "")
    template = _chat_template(path)
    traits = traits_of(template)
    return ModelSpec(
        name=path.name,
        format="mlx" if "mlx" in formats else "pytorch",
        source=SourceRef(source="local", id=str(path)),
        quantization=_quantization(config),
        context_length=_context_length(config),
        architecture=architecture,
        model_type=model_type,
        abilities=_abilities(bool(template), model_type) + traits.abilities,
        tool_parser=traits.tool_parser,
        reasoning_parser=traits.reasoning_parser,
        architecture_figures=Architecture.from_config(config),
        weight_bytes=sum(file.stat().st_size for file in weights),
        pickled=not formats,
    )


def _class_name(config: dict[str, Any]) -> str | None:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _directory_of_gguf(path: Path) -> ModelSpec:
    """A directory without config.json may hold one GGUF file."""
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return _gguf_file(files[0])
    if files:
        raise ArtifactError(f"{path} holds {len(files)} GGUF files; give the path of one: {', '.join(f.name for f in files[:10])}")
    raise ArtifactError(f"{path} has no config.json and no .gguf file, so it holds no model that xi can load")


def _weights(path: Path, pickled: bool) -> list[Path]:
    """The safetensors files of a directory, all that its index names; those that are pickled where there are no others."""
    index_file = path / "model.safetensors.index.json"
    if index_file.is_file():
        return indexed(index_file)
    found = sorted(path.glob("*.safetensors")) or (pickled_files(path) if pickled else [])
    if found:
        return found
    pickles = sorted(f.name for f in path.iterdir() if f.suffix in PICKLES)
    if pickles:
        raise ArtifactError(
            f"{path} holds weights as {pickles[0]} only; such files can run code when they are loaded, so xi refuses them: "
            f"convert the model to safetensors" + ("" if pickled else OPT_IN)
        )
    raise ArtifactError(f"{path} has a config.json but no weights (*.safetensors); download the model again")


def pickled_files(path: Path) -> list[Path]:
    """A directory's weights in transformers' pickled form: `pytorch_model.bin`, or all that its index names; empty where there are none.

    Raises `ArtifactError` for an index that is damaged or names what isn't there.
    """
    single, index_file = path / "pytorch_model.bin", path / "pytorch_model.bin.index.json"
    if single.is_file():
        return [single]
    return indexed(index_file) if index_file.is_file() else []


def indexed(index_file: Path) -> list[Path]:
    """The files that an index of weights names: beside it, all there, and of its own form. Raises `ArtifactError`.

    An index of safetensors that names a pickle would have it loaded by who was told that there are safetensors.
    """
    form = Path(index_file.name.removesuffix(".index.json")).suffix
    path, shards = index_file.parent, read_json(index_file).get("weight_map")
    names = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
    strange = [name for name in names if Path(name).name != name or Path(name).suffix != form]
    if strange or not names:
        raise ArtifactError(f"{index_file} is damaged: " + (f"it names '{strange[0]}'" if strange else "it names no files"))
    missing = sorted(name for name in names if not (path / name).is_file())
    if missing:
        raise ArtifactError(f"{path} is not complete: {', '.join(missing[:5])} missing ({len(missing)} of {len(names)}); download again")
    return [path / name for name in sorted(names)]


def check_safetensors(path: Path) -> str:
    """Check that a safetensors file is whole; answers the `format` that its metadata tells, or nothing. Raises `ArtifactError`."""
    try:
        size = path.stat().st_size
        text = _safetensors_header(path, size)
    except OSError as error:
        raise ArtifactError(f"{path} can't be read: {error.strerror or error}") from None
    header = _object(path, text)
    expected = 8 + len(text) + _data_end(path, header)
    if size != expected:
        raise ArtifactError(f"{path} is damaged: it has {size} bytes, its header tells of {expected}; download it again")
    metadata = header.get("__metadata__")
    return str(metadata.get("format", "")) if isinstance(metadata, dict) else ""


def _safetensors_header(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise ArtifactError(f"{path} is damaged or cut short: its header doesn't fit in its {size} bytes; download it again")
        return file.read(length)


def _data_end(path: Path, header: dict[str, Any]) -> int:
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(o, int) and o >= 0 for o in offsets)):
            raise ArtifactError(f"{path} is damaged: tensor '{name[:80]}' has no place in the file; download it again")
        end = max(end, offsets[1])
    return end


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of bounded size. Raises `ArtifactError`."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ArtifactError(f"{path} is over {LARGEST_JSON} bytes: no configuration is that large")
        return _object(path, path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} can't be read: {error.strerror or error}") from None


def _object(path: Path, text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)  # not msgspec: configurations of Mamba models hold Infinity, which strict JSON has not
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}; download it again") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} is damaged: it holds no JSON object; download it again")
    return found


def _context_length(config: dict[str, Any]) -> int | None:
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            value = place.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _quantization(config: dict[str, Any]) -> str | None:
    """`gptq-4bit` from transformers' key, `4bit` from MLX's."""
    found = config.get("quantization_config") or config.get("quantization")
    if not isinstance(found, dict):
        return None
    method, bits = found.get("quant_method"), found.get("bits")
    parts = [str(method)] if isinstance(method, str) else []
    if isinstance(bits, int):
        parts.append(f"{bits}bit")
    return "-".join(parts) or None


def has_chat_template(path: str | Path) -> bool:
    """Whether the model in this directory can chat. Raises `ArtifactError`."""
    return bool(_chat_template(Path(path)))


def _chat_template(path: Path) -> str:
    """The chat template's text, of several named ones all; empty where there is none."""
    jinja = path / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(path / name).get("chat_template") if (path / name).is_file() else None
        if found:
            return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return ""


def _model_type(path: Path, architecture: str) -> str:
    """`rerank` for a classifier, `embedding` for a sentence-transformers directory or an encoder without a head, else `LLM`."""
    if architecture.endswith("ForSequenceClassification"):
        return "rerank"
    if (path / "modules.json").is_file():
        return "embedding"
    headless = architecture.endswith(("Model", "ForMaskedLM")) and not architecture.endswith("LMHeadModel")
    return "embedding" if headless and not has_chat_template(path) else "LLM"


def _gguf_type(metadata: gguf.Metadata) -> str:
    """A model that generates text has no kind of pooling, or none (0)."""
    kinds = metadata.numbers("pooling_type")
    return "LLM" if not kinds or kinds[0] == 0 else "rerank" if kinds[0] == RANK else "embedding"


def _abilities(chats: bool, model_type: str) -> list[str]:
    if model_type != "LLM":
        return ["rerank" if model_type == "rerank" else "embed"]
    return ["generate", "chat"] if chats else ["generate"]
