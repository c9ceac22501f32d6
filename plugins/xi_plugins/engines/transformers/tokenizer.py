"""The model's tokenizer, converted by transformers where there is no `tokenizer.json`. Made by engine.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xi_core.engine import hub_tokenizer

if TYPE_CHECKING:
    import tokenizers


class HubTokenizer(hub_tokenizer.HubTokenizer):
    """xi's tokenizer over Hugging Face files of every kind that transformers reads."""

    trust_remote_code: ClassVar[bool] = False

    @classmethod
    def convert(cls, directory: Path) -> tokenizers.Tokenizer:
        from transformers import AutoTokenizer

        found: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=cls.trust_remote_code)
        backend: tokenizers.Tokenizer = found.backend_tokenizer
        return backend


class TrustingTokenizer(HubTokenizer):
    """One that runs code of the directory where its files ask for it."""

    trust_remote_code = True
