"""`xi batch` against a scripted server, and offline."""

import json
import signal

import psutil
import pytest

CHAT = "/v1/chat/completions"
MODEL = {"id": "m", "object": "model", "created": 1, "owned_by": "xi", "model_name": "m", "state": "READY"}
ANSWER = {"id": "chatcmpl-1", "choices": []}


def request(custom_id, **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"messages": [], **body}})


@pytest.fixture
def files(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(request(str(n), model="m") for n in range(3)), encoding="utf-8")
    return source, target


@pytest.fixture
def served(server):
    server.script["GET", "/v1/models"] = {"object": "list", "data": [MODEL]}
    server.script["POST", CHAT] = ANSWER
    return server


def answers(target):
    return {one["custom_id"]: one for one in map(json.loads, target.read_text(encoding="utf-8").splitlines())}


def go(xi, files, *more):
    return xi("batch", "-i", str(files[0]), "-o", str(files[1]), *more)


def test_a_batch(xi, served, files):
    result = go(xi, files)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"3 of 3 requests answered, 0 failed. Answers: {files[1]}\n"
    assert {key: one["response"]["body"] for key, one in answers(files[1]).items()} == {str(n): ANSWER for n in range(3)}
    assert [call.body for call in served.calls("POST", CHAT)] == [{"messages": [], "model": "m"}] * 3
    again = go(xi, files)
    assert (again.exit_code, len(served.calls("POST", CHAT))) == (0, 3)
    assert "0 of 3 requests answered, 3 were there already, 0 failed" in again.stderr


def test_requests_with_null_are_sent_as_they_are(xi, served, files):
    files[0].write_text(request("0", model="m", prompt="why null?", stop=None), encoding="utf-8")
    assert go(xi, files).exit_code == 0
    assert [call.body for call in served.calls("POST", CHAT)] == [{"messages": [], "model": "m", "prompt": "why null?", "stop": None}]


def test_failures_are_told_and_tried_again(xi, served, files, words):
    served.script["POST", CHAT] = words.Turns([(400, words.error("too hot", "invalid_request", "temperature")), ANSWER])
    first = go(xi, files, "--concurrency", "1")
    assert first.exit_code == 1
    assert first.stderr.splitlines() == ["0: too hot", f"2 of 3 requests answered, 1 failed. Answers: {files[1]}"]
    assert answers(files[1])["0"]["response"]["status_code"] == 400
    second = go(xi, files)
    assert second.exit_code == 0
    assert "1 of 3 requests answered, 2 were there already" in second.stderr
    assert len(files[1].read_text().splitlines()) == 3


def test_a_full_server_is_asked_again(xi, served, files, words):
    served.script["POST", CHAT] = words.Turns(
        [(429, words.error("full", "overloaded")), (503, words.error("later", "unavailable")), ANSWER]
    )
    assert go(xi, files, "--concurrency", "1").exit_code == 0
    assert len(served.calls("POST", CHAT)) == 5


def test_the_model_for_all(xi, served, files):
    files[0].write_text(request("a", model="gpt-4o") + "\n" + request("b"), encoding="utf-8")
    missing = go(xi, files)
    assert missing.exit_code == 1
    assert "line 2: body.model: the request names no model" in missing.stderr
    assert not served.seen
    assert go(xi, files, "-m", "m").exit_code == 0
    assert [call.body["model"] for call in served.calls("POST", CHAT)] == ["m", "m"]


def test_a_model_that_isnt_launched(xi, served, files):
    result = go(xi, files, "-m", "other")
    assert result.exit_code == 1
    assert "name models that aren't launched: other; launched: m" in result.stderr
    assert not served.calls("POST", CHAT)


def test_the_key_is_sent(xi, served, files):
    go(xi, files, "-ak", "secret")
    assert {call.authorization for call in served.seen} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--offline"], "name it with -m"),
        (["--model-engine", "llama.cpp"], "--model-engine is for a model that is started here: add --offline"),
        (["--model-type", "embedding"], "--model-type is for a model that is started here: add --offline"),
        (["--context-length", "5"], "--context-length is for a model that is started here: add --offline"),
        (["--offline", "-m", "x", "--engine", "y"], "did you mean --model-engine?"),
        (["--concurrency", "0"], "0 is not in the range"),
    ],
)
def test_wrong_command_lines(xi, served, files, more, words):
    result = go(xi, files, *more)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not served.seen
    assert not files[1].exists()


def test_one_file_for_both(xi, served, files):
    before = files[0].read_bytes()
    result = go(xi, (files[0], files[0]))
    assert result.exit_code == 2
    assert "the same file" in result.stderr
    assert files[0].read_bytes() == before


def test_a_server_that_is_gone(xi, files):
    result = go(xi, files, "-e", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "no xi server answers" in result.stderr


def test_ctrl_c_keeps_what_is_done(spawn, served, files, words):
    files[1].write_text("", encoding="utf-8")
    served.script["POST", CHAT] = words.Turns([ANSWER, words.said("never ends")])
    served.hold = True
    process = spawn("batch", "-i", str(files[0]), "-o", str(files[1]), "--concurrency", "1")
    words.eventually(lambda: len(served.calls("POST", CHAT)) == 2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"Interrupted. The answers so far are in {files[1]}; the same command goes on from there." in stderr
    assert list(answers(files[1])) == ["0"]
    assert served.left.wait(10), "the server is told that nobody waits"


def test_offline(spawn, files, tmp_path, monkeypatch):
    monkeypatch.setenv("XI_HOME", str(tmp_path / "home"))
    files[0].write_text(
        "\n".join(request(str(n), messages=[{"role": "user", "content": "What is xi?"}], temperature=0) for n in range(20)),
        encoding="utf-8",
    )
    command = [
        "batch",
        "-i",
        str(files[0]),
        "-o",
        str(files[1]),
        "--offline",
        "-m",
        "xi-tiny",
        "-en",
        "llama.cpp",
        "--context-length",
        "256",
    ]
    process = spawn(*command)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    texts = {one["response"]["body"]["choices"][0]["message"]["content"] for one in answers(files[1]).values()}
    assert texts == {"xi launches and serves language models. Every part of it is a plugin."}
    assert len(answers(files[1])) == 20


def test_ctrl_c_offline_ends_the_model_and_the_next_run_goes_on(spawn, files, tmp_path, monkeypatch, words):
    monkeypatch.setenv("XI_HOME", str(tmp_path / "home"))
    long = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400, "ignore_eos": True}
    files[0].write_text("\n".join(request(str(n), **long) for n in range(200)), encoding="utf-8")
    command = ["batch", "-i", str(files[0]), "-o", str(files[1]), "--offline", "-m", "xi-tiny", "-en", "llama.cpp"]
    process = spawn(*command)
    words.eventually(lambda: files[1].exists() and files[1].stat().st_size)
    ran = psutil.Process(process.pid).children(recursive=True)
    assert len(ran) >= 2, "a replica and its keeper"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130, stderr
    assert "the same command goes on from there" in stderr
    _, left = psutil.wait_procs(ran, timeout=5)
    assert not left
    done = answers(files[1])
    assert 0 < len(done) < 200
    files[0].write_text("\n".join(request(key, **long) for key in [*done, "one more"]), encoding="utf-8")
    again = spawn(*command)
    _, stderr = again.communicate(timeout=60)
    assert f"1 of {len(done) + 1} requests answered, {len(done)} were there already, 0 failed" in stderr


def test_offline_errors_come_as_they_are(xi, files):
    result = go(xi, files, "--offline", "-m", "xi-tiny", "--frobnicate", "1")
    assert result.exit_code == 1
    assert "has no option 'frobnicate'" in result.stderr
