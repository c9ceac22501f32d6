"""The tokenizer of a GGUF file, by llama.cpp's own functions, which may be called from any thread. Made by `engine.py`."""

from __future__ import annotations

import ctypes
from typing import Any

from xi_core.engine.base import Tokenizer
from xi_core.errors import EngineError
from xi_plugins.engines.llama_cpp.llama_cpp_python.model import Model

_PIECE = 256
"""Bytes that nearly every token fits in."""


class GgufTokenizer(Tokenizer):
    """Text to ids and back. Holds the model, so that its vocabulary stays in memory."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._library: Any = model.library
        self._bytes: dict[int, bytes] = {}
        begin = self._library.llama_vocab_bos(model.vocabulary) if self._library.llama_vocab_get_add_bos(model.vocabulary) else -1
        self._begin = [begin] if begin >= 0 else []

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        vocabulary, is_end = self._model.vocabulary, self._library.llama_vocab_is_eog
        return frozenset(token for token in range(self._model.size) if is_end(vocabulary, token))

    def encode(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        ids = (self._library.llama_token * room)()
        count = self._library.llama_tokenize(self._model.vocabulary, data, len(data), ids, room, False, True)
        if count < 0:  # a vocabulary that splits bytes further: it tells how much room it needs
            room = -count
            ids = (self._library.llama_token * room)()
            count = self._library.llama_tokenize(self._model.vocabulary, data, len(data), ids, room, False, True)
        if count < 0:
            raise EngineError(f"llama.cpp can't tokenize a text of {len(data)} bytes")
        return list(ids[:count])

    def encode_prompt(self, text: str) -> list[int]:
        return self._begin + self.encode(text)

    def token_bytes(self, token: int) -> bytes:
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._piece(token, special=False)
        return found

    def special_text(self, token: int) -> str:
        return "" if self.token_bytes(token) else self._piece(token, special=True).decode("utf-8", "replace")

    @property
    def vocabulary_size(self) -> int:
        return self._model.size

    @property
    def chat_template(self) -> str | None:
        return self._model.chat_template

    @property
    def special_tokens(self) -> dict[str, str]:
        named = ("bos", "eos", "pad", "sep", "mask")
        ids = {f"{name}_token": getattr(self._library, f"llama_vocab_{name}")(self._model.vocabulary) for name in named}
        return {name: self._piece(id, special=True).decode("utf-8", "replace") for name, id in ids.items() if id >= 0}

    @property
    def starts_with_space(self) -> bool:
        kinds = (self._library.LLAMA_VOCAB_TYPE_SPM, self._library.LLAMA_VOCAB_TYPE_UGM)
        if self._library.llama_vocab_type(self._model.vocabulary) not in kinds:
            return False
        return self._model.metadata("tokenizer.ggml.add_space_prefix") != "false"

    def _piece(self, token: int, *, special: bool) -> bytes:
        if not 0 <= token < self._model.size:
            return b""
        buffer = ctypes.create_string_buffer(_PIECE)
        length = self._library.llama_token_to_piece(self._model.vocabulary, token, buffer, _PIECE, 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self._library.llama_token_to_piece(self._model.vocabulary, token, buffer, -length, 0, special)
        return buffer.raw[: max(0, length)]
