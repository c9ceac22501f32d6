"""Built-in parsers of model output."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.hookspecs import hookimpl
from xi_core.serving.parser import ParserInfo


@hookimpl
def xi_parsers() -> Iterable[ParserInfo]:
    """Tool calls and reasoning in the forms that families of open models write."""
    return [
        _tool("hermes", "hermes:HermesParser", 'Hermes and Qwen: <tool_call>{"name": …, "arguments": …}</tool_call>'),
        _tool("llama3_json", "llama3_json:Llama3JsonParser", 'Llama 3: {"name": …, "parameters": …} as the whole answer'),
        _tool("mistral", "mistral:MistralParser", "Mistral: [TOOL_CALLS] and a list of calls, or NAME[ARGS]{…}"),
        _tool("deepseek", "deepseek:DeepseekParser", "DeepSeek V3, R1 and V3.1: calls between their own special tokens"),
        _tool("pythonic", "pythonic:PythonicParser", "Llama 4 and others: [name(argument=value)] as the whole answer"),
        _tool("gpt-oss-tools", "gpt_oss:GptOssParser", "gpt-oss: messages to functions.NAME in harmony's form"),
        _reasoning("deepseek-r1", "deepseek_r1:DeepseekR1Parser", "Models that always think: all before </think>"),
        _reasoning("qwen3", "qwen3:Qwen3Parser", "Models that may think: what <think> opens, in the prompt or the answer"),
        _reasoning("gpt-oss", "gpt_oss:GptOssParser", "gpt-oss: the channel analysis of harmony's form"),
    ]


def _tool(name: str, parser: str, description: str) -> ParserInfo:
    return ParserInfo(name=name, kind="tool", parser=f"xi_plugins.parsers.{parser}", description=description)


def _reasoning(name: str, parser: str, description: str) -> ParserInfo:
    return ParserInfo(name=name, kind="reasoning", parser=f"xi_plugins.parsers.{parser}", description=description)
