"""`xi launch --lora-modules`, and the modules in `xi list`."""

import pytest

from xi_cli.lora_option import spread

LAUNCH = ("POST", "/v1/models?wait_ready=false")


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--lora-modules", "a=/x", "m"], ["--lora-modules", "a=/x", "m"]),
        (["--lora-modules", "a=/x", "b=/y", "m"], ["--lora-modules", "a=/x", "--lora-modules", "b=/y", "m"]),
        (["--lora-modules=a=/x", "b=/y"], ["--lora-modules", "a=/x", "--lora-modules", "b=/y"]),
        (["--lora-modules", "a", "/x", "m"], ["--lora-modules", "a=/x", "m"]),
        (["-lm", "a=/x=1", "--size", "b=2"], ["-lm", "a=/x=1", "--size", "b=2"]),
        (["--lora-modules", "a=/x", "./b=c"], ["--lora-modules", "a=/x", "./b=c"]),
        (["--lora-modules"], ["--lora-modules"]),
        (["--", "--lora-modules", "a", "b"], ["--", "--lora-modules", "a", "b"]),
    ],
)
def test_each_value_gets_its_flag(args, found):
    assert spread(args) == found


def test_the_launch_carries_them(xi, server, tmp_path, monkeypatch):
    server.script[LAUNCH] = {"model_uid": "m"}
    (tmp_path / "sql").mkdir()
    monkeypatch.chdir(tmp_path)
    result = xi("launch", "m", "--lora-modules", "sql=./sql", "law=/far/law", "--lora-modules", "far=elsewhere", "--no-wait", "--size", "3")
    assert result.exit_code == 0, result.output
    assert server.calls(*LAUNCH)[0].body == {
        "model_name": "m", "size": 3, "lora_modules": {"sql": str(tmp_path / "sql"), "law": "/far/law", "far": "elsewhere"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--lora-modules", "sql"], "'sql' is not NAME=PATH"),
        (["--lora-modules", "sql="], "'sql=' is not NAME=PATH"),
        (["--lora-modules", "=x"], "'=x' is not NAME=PATH"),
        (["--lora-modules", "a=/x", "a=/y"], "the name 'a' is given twice"),
        (["--lora-modules"], "requires an argument"),
    ],
)
def test_what_is_none_is_refused(xi, args, words):
    result = xi("launch", "m", *args)
    assert result.exit_code == 2
    assert words in result.output.replace("\n", " ")


def test_the_list_shows_whose_they_are_and_a_lone_launch_is_still_picked(xi, server):
    card = {"created": 1, "model_name": "xi-tiny", "model_engine": "transformers", "root": "base"}
    server.script["GET", "/v1/models"] = {"data": [{"id": "base", **card}, {"id": "sql", "parent": "base", **card}]}
    result = xi("list")
    assert result.exit_code == 0, result.output
    assert "sql" in result.output
    assert "LoRA module of base" in result.output
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}
    server.script["POST", "/v1/chat/completions"] = answer
    xi("chat", "--prompt", "Hi")
    assert [call.body["model"] for call in server.calls("POST", "/v1/chat/completions")] == ["base"]
