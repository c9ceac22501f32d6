import contextlib

import pytest

from xi_core.errors import ArtifactError, InvalidRequest
from xi_core.serving import template
from xi_core.serving.template import ChatTemplate

HI = [{"role": "user", "content": "Hi <b>"}]


def test_renders_messages_and_special_tokens() -> None:
    chat = ChatTemplate("{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content }}{% endfor %}>", {"bos_token": "<s>"})
    assert chat.render(HI) == "<s>[user]Hi <b>>"


def test_tojson_does_not_escape_html_or_unicode() -> None:
    assert ChatTemplate("{{ messages[0] | tojson }}").render([{"role": "user", "content": "<é>"}]) == '{"role": "user", "content": "<é>"}'


def test_generation_blocks_show_their_content() -> None:
    assert ChatTemplate("{% generation %}x{% endgeneration %}y").render(HI) == "xy"


def test_raise_exception_is_the_callers_error() -> None:
    with pytest.raises(InvalidRequest, match="no system role") as caught:
        ChatTemplate("{{ raise_exception('no system role') }}").render(HI)
    assert caught.value.param == "messages"


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(ArtifactError, match="chat template"):
        ChatTemplate("{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self._TemplateReference__context }}",
        "{{ raise_exception.__globals__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert "class" not in ChatTemplate(source).render(HI)


def test_endless_loops_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_SECONDS", 0.2)
    chat = ChatTemplate("{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(9) %}{% endfor %}{% endfor %}{% endfor %}")
    with pytest.raises(InvalidRequest, match="longer than"):
        chat.render(HI)


def test_endless_output_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_OUTPUT", 1000)
    with pytest.raises(InvalidRequest, match="characters"):
        ChatTemplate("{% for a in range(99999) %}xxxxxxxxxx{% endfor %}").render(HI)
