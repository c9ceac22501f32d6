"""Offline use: models in a Python program, without a server and without an open port.

    from xi_core import LLM, SamplingParams

    with LLM("xi-tiny") as llm:
        for output in llm.generate(["Hello, my name is"], SamplingParams(temperature=0.8)):
            print(output.prompt, output.outputs[0].text)

Called by users' programs and by `xi batch --offline`. `llm` holds `LLM`, `sampling` what a request may ask for, `outputs` what it gives;
`private` runs a supervisor and a worker in a thread of this process, and `line` carries requests to the replica.
"""

from xi_core.offline.llm import LLM
from xi_core.offline.outputs import CompletionOutput, RequestOutput
from xi_core.offline.sampling import SamplingParams

__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams"]
