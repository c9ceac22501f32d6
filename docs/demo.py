"""`make demo`: from nothing to a model's answer, by the commands that a user would type, and a clean stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

XI = str(Path(sys.executable).with_name("xi"))
QUESTIONS = ("What is xi?", "What is the capital of France?")
NEXT = """
That was xi-tiny, a model of 1 M parameters that ships with xi. To go on, start the server and launch the model yourself:

    {bin}/xi serve &
    {bin}/xi launch xi-tiny

and talk to it, with curl:

    curl http://127.0.0.1:9997/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{{"model": "xi-tiny", "messages": [{{"role": "user", "content": "What is xi?"}}]}}'

or with openai-python (pip install openai):

    from openai import OpenAI
    client = OpenAI(base_url="http://127.0.0.1:9997/v1", api_key="none")
    answer = client.chat.completions.create(model="xi-tiny", messages=[{{"role": "user", "content": "What is xi?"}}])
    print(answer.choices[0].message.content)
"""


def free_port() -> int:
    """A port that is free now; the demo must not disturb a server that runs already."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def show(*arguments: str, environment: dict[str, str]) -> None:
    """Run a command as a user would, after showing it."""
    print("$ xi " + " ".join(f'"{word}"' if " " in word else word for word in arguments), flush=True)
    subprocess.run([XI, *arguments], env=environment, check=True, timeout=120)
    print(flush=True)


def main() -> int:
    """Serve, launch, ask, stop."""
    with tempfile.TemporaryDirectory(prefix="xi-demo-") as home:
        port = free_port()
        environment = {**os.environ, "XI_HOME": home, "XI_ENDPOINT": f"http://127.0.0.1:{port}"}
        print(f"$ xi serve --port {port} &", flush=True)
        server = subprocess.Popen([XI, "serve", "--port", str(port)], env=environment)
        try:
            show("launch", "xi-tiny", "--model-engine", "llama.cpp", environment=environment)
            for question in QUESTIONS:
                show("chat", "xi-tiny", "--prompt", question, "--temperature", "0", environment=environment)
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(timeout=30)
    print(NEXT.format(bin=os.path.relpath(Path(XI).parent)))
    return status


if __name__ == "__main__":
    sys.exit(main())
