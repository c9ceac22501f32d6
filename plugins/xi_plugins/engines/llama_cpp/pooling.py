"""`LlamaCppEmbedder` and `LlamaCppReranker`: GGUF models that give vectors or scores, by llama.cpp's own server. Imported in the replica.

A call to the server blocks its thread until all inputs of the request are done, and returns the whole answer.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import msgspec

from xi_core.errors import ContextLengthExceeded
from xi_core.wire.manifest import Manifest, pooling_manifest
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.llama_cpp.engine import LlamaCppEngine, Run
from xi_plugins.engines.llama_cpp.gguf import Header
from xi_plugins.engines.llama_cpp.options import LlamaCppOptions
from xi_plugins.engines.llama_cpp.sizing import Size
from xi_plugins.engines.llama_cpp.translate import Refusal, refusal

_ERROR = '{"error":'
_TOO_LARGE = "too large to process"
"""What llama.cpp says of an input that is longer than its batch, with the status 500."""


class _Pooling(LlamaCppEngine):
    """What the two have in common."""

    kind: str
    field: str
    """Where a request has its inputs, for errors."""

    def _adjust(self, library: Any, params: Any, size: Size) -> None:
        """An encoder reads an input in one piece, so the batch has to hold the longest.

        With a cache per slot, llama.cpp divides inputs of unlike lengths over several passes and pools each by its last pass only.
        """
        params.embedding = params.kv_unified = True
        params.n_batch = params.n_ubatch = size.context_length

    def _manifest(self, header: Header, plan: LaunchPlan, options: LlamaCppOptions) -> Manifest:
        return pooling_manifest(self.kind)

    @abstractmethod
    def _call(self, server: Any, route: str) -> Any:
        """The server's function."""

    def _run(self, run: Run, call: Any) -> None:
        if run.aborted:
            return
        answer: str = call(msgspec.json.encode(run.request.body).decode())
        run.steps += 1
        if answer.startswith(_ERROR):
            run.refusal = self._refusal(answer)
        elif not run.aborted:
            run.sink.event(run.request.id, answer)

    def _refusal(self, answer: str) -> Refusal:
        if _TOO_LARGE in answer:
            text = f"{self.field}: an input has more tokens than the {self._limits.context_length} that this model reads; send it in parts"
            return Refusal(status=400, message=text, param=self.field, code=ContextLengthExceeded.code)
        found = refusal(answer, "")
        param = self.field if found.status < 500 else None
        return Refusal(status=found.status, message=found.message, param=param, code=found.code)


class LlamaCppEmbedder(_Pooling):
    """Vectors by the pooling that the GGUF file names, of length 1."""

    kind = "embeddings"
    field = "input"

    def _call(self, server: Any, route: str) -> Any:
        return server.handle_embeddings


class LlamaCppReranker(_Pooling):
    """Scores as llama.cpp gives them: logits, which are higher for more relevant documents."""

    kind = "rerank"
    field = "documents"

    def _adjust(self, library: Any, params: Any, size: Size) -> None:
        super()._adjust(library, params, size)
        params.pooling_type = library.llama_pooling_type.LLAMA_POOLING_TYPE_RANK

    def _call(self, server: Any, route: str) -> Any:
        return server.handle_rerank
