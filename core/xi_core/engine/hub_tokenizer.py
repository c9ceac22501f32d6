"""`HubTokenizer`: a Hugging Face fast tokenizer behind xi's interface. Made by token engines, called on the replica's loop.

Needs the library `tokenizers`, which is imported when a tokenizer is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from xi_core.engine.base import Tokenizer
from xi_core.errors import ArtifactError
from xi_core.models import checkpoint

if TYPE_CHECKING:
    import tokenizers

_LONG = 8192
"""Characters from which a text is encoded as a batch of one: the library lets other Python threads run meanwhile only for batches."""
_SPACE = "▁"
"""SentencePiece writes a space as this character."""


def _byte_of_character() -> dict[str, int]:
    """Inverse of byte-level BPE's table, which shows each of the 256 bytes as one printable character."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE = _byte_of_character()


class HubTokenizer(Tokenizer):
    """Encodes with the `tokenizers` library; gives each token's bytes by itself, so that streams are exact."""

    def __init__(
        self, backend: tokenizers.Tokenizer, size: int, special: dict[str, str], template: str | None, begin: list[int] | None = None
    ) -> None:
        self._backend = backend
        self._size = size
        self._special = special
        self._template = template
        self._steps = _decoder_steps(backend)
        self._byte_level = any(step["type"] == "ByteLevel" for step in self._steps)
        self._added = {
            id: b"" if token.special or token.content in special.values() else token.content.encode()
            for id, token in backend.get_added_tokens_decoder().items()
        }
        self._bytes: dict[int, bytes] = {}
        self._prefix = _begin(backend) if begin is None else begin

    @classmethod
    def load(cls, directory: Path, size: int) -> Self:
        """From `tokenizer.json`, or by `convert` from what else is in `directory`. `size`: ids of the model are below it.

        Raises `ArtifactError`.
        """
        config = checkpoint.read_json(directory / "tokenizer_config.json")
        special = checkpoint.named_tokens(directory, config)
        backend = cls._read(directory)
        begin = _configured_begin(backend, config.get("add_bos_token"), special.get("bos_token"))
        return cls(backend, size, special, checkpoint.chat_template(directory, config), begin)

    @classmethod
    def convert(cls, directory: Path) -> tokenizers.Tokenizer:
        """The tokenizer of a directory without `tokenizer.json`. An engine whose library can make one overrides this."""
        raise FileNotFoundError("tokenizer.json is missing")

    @classmethod
    def _read(cls, directory: Path) -> tokenizers.Tokenizer:
        import tokenizers

        file = directory / "tokenizer.json"
        try:
            if not file.is_file():
                return cls.convert(directory)
            backend = tokenizers.Tokenizer.from_file(str(file))
            backend.no_truncation()
            backend.no_padding()
            return backend
        except Exception as error:  # the libraries raise bare Exception; each means that these files are no tokenizer
            raise ArtifactError(f"{directory}: no tokenizer that can be loaded: {error}") from error

    def encode(self, text: str) -> list[int]:
        if len(text) > _LONG:
            return list(self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        return self._prefix + self.encode(text)

    def token_bytes(self, token: int) -> bytes:
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._added[token] if token in self._added else self._piece_bytes(token)
        return found

    def special_text(self, token: int) -> str:
        return self._backend.id_to_token(token) or "" if self._added.get(token) == b"" else ""

    def token_id(self, text: str) -> int | None:
        """The id of the token written exactly `text`, if there is one."""
        found: int | None = self._backend.token_to_id(text)
        return found

    @property
    def vocabulary_size(self) -> int:
        return self._size

    @property
    def chat_template(self) -> str | None:
        return self._template

    @property
    def special_tokens(self) -> dict[str, str]:
        return self._special

    @property
    def starts_with_space(self) -> bool:
        for step in self._steps:
            if step["type"] == "Strip" and step.get("content") == " " and step.get("start", 0) > 0:
                return True
            if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
                return True
        return False

    def _piece_bytes(self, token: int) -> bytes:
        piece = self._backend.id_to_token(token)
        if piece is None:  # the model's vocabulary is often padded beyond the tokenizer's
            return b""
        if self._byte_level:
            return b"".join(bytes([_BYTE[c]]) if c in _BYTE else c.encode() for c in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        text: str = piece.replace(_SPACE, " ")
        return text.encode()


def _decoder_steps(backend: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    decoder = json.loads(bytes(backend.decoder.__getstate__()))
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return steps


def _begin(backend: tokenizers.Tokenizer) -> list[int]:
    """What the tokenizer itself writes before a text."""
    plain = backend.encode("a", add_special_tokens=False).ids
    framed = backend.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
    return list(framed[:start])


def _configured_begin(backend: tokenizers.Tokenizer, wanted: Any, begin_token: str | None) -> list[int] | None:
    """What `tokenizer_config.json` says of the begin token; None where it says nothing."""
    if wanted is False:
        return []
    token = backend.token_to_id(begin_token) if begin_token else None
    return [token] if wanted is True and token is not None else None
