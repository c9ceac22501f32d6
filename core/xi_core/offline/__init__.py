"""Offline use: models in a Python program, without a server and without an open port.

    from xi_core import LLM, SamplingParams

    with LLM("xi-tiny") as llm:
        for output in llm.generate(["Hello, my name is"], SamplingParams(temperature=0.8)):
            print(output.prompt, output.outputs[0].text)

Called by users' programs and by `xi batch --offline`. `llm` holds `LLM`, `launching` what it launches, `prompts` and `sampling` what a
request may ask for, `outputs` what it gives; `private` runs a supervisor and a worker in a thread of this process, and `line` carries
requests to a replica.
"""

from xi_core.offline.llm import LLM
from xi_core.offline.outputs import CompletionOutput, EmbeddingRequestOutput, RequestOutput, ScoringRequestOutput
from xi_core.offline.sampling import SamplingParams, StructuredOutputsParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "EmbeddingRequestOutput",
    "RequestOutput",
    "SamplingParams",
    "ScoringRequestOutput",
    "StructuredOutputsParams",
]
