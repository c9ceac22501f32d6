"""`xi_core.models.template_traits`: pieces of the templates of families as they are published."""

import pytest

from xi_core.importing import import_path
from xi_core.models.template_traits import Traits, traits_of

TABLE = {
    "plain": ("{% for m in messages %}{{ m.content }}{% endfor %}", Traits()),
    "qwen2.5": ('within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>', Traits("hermes")),
    "qwen3": ("<tool_call>{% if '</think>' in content %}{% if enable_thinking is false %}<think>\\n\\n</think>", Traits("hermes", "qwen3", hybrid=True)),
    "qwen3-thinking": ("<tool_call>{{- '<|im_start|>assistant\\n<think>\\n' }}", Traits("hermes", "qwen3")),
    "qwen3-coder": ("<tool_call>\\n<function=example>\\n<parameter=x>", Traits()),
    "glm-4.5": ("<tool_call>{function-name}\\n<arg_key>{% if enable_thinking %}<think>", Traits(None, "qwen3", hybrid=True)),
    "deepseek-v3": ("'<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'", Traits("deepseek")),
    "deepseek-r1": ("content.split('</think>')[-1] '<｜tool▁calls▁begin｜>' '<｜Assistant｜><think>\\n'", Traits("deepseek", "deepseek-r1")),
    "deepseek-v3.1": ("{% if not thinking is defined %} '<｜Assistant｜>' '</think>' '<｜tool▁calls▁begin｜>'", Traits("deepseek", "deepseek-r1", hybrid=True)),
    "mistral": ('{{- "[TOOL_CALLS] [" }}', Traits("mistral")),
    "llama-3.1": ('<|python_tag|> {"name": function name, "parameters": dictionary', Traits("llama3_json")),
    "llama-3.2": ('Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.', Traits("llama3_json")),
    "llama-4": ("[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]", Traits("pythonic")),
    "gpt-oss": ("<|start|>assistant<|channel|>analysis<|message|>", Traits("gpt-oss-tools", "gpt-oss")),
}  # fmt: skip


@pytest.mark.parametrize("family", TABLE)
def test_what_a_template_tells(family: str) -> None:
    template, expected = TABLE[family]
    assert traits_of(template) == expected


def test_abilities() -> None:
    assert traits_of(TABLE["qwen3"][0]).abilities == ["tools", "reasoning", "hybrid"]
    assert Traits().abilities == []


def test_the_parsers_are_built_in() -> None:
    offered = {(info.name, info.kind) for info in import_path("xi_plugins.parsers:xi_parsers")()}
    for _, traits in TABLE.values():
        for name, kind in ((traits.tool_parser, "tool"), (traits.reasoning_parser, "reasoning")):
            assert name is None or (name, kind) in offered
