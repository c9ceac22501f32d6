"""Asks llama.cpp everything in the reference, one by one and many at once, and compares answers and token ids.

    python -m training.xi_tiny.verify --model FILE.gguf --expected FILE.json

Exits with 1 if anything differs.
"""

import argparse
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from xllamacpp import CommonParams, Server

Entry = dict[str, Any]
Check = Callable[[Entry], bool]
PARALLEL = 32
MAX_TOKENS = 300


def start(model: Path) -> Server:
    """Start llama.cpp's own server in this process, on a free port of the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    params = CommonParams()
    params.model.path = str(model)
    params.n_parallel = PARALLEL
    params.n_ctx = PARALLEL * 1024
    params.cpuparams.n_threads = 1
    params.verbosity = -1
    params.port = port
    return Server(params)


class Asker:
    """Asks a running llama.cpp server for the entries of the reference."""

    def __init__(self, address: str, tools: dict[str, Any]) -> None:
        self.address = address
        self.tools = tools

    def _post(self, path: str, body: Entry) -> Any:
        """Return the answer to one request."""
        request = Request(self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request) as response:
            return json.load(response)

    def _body(self, entry: Entry) -> Entry:
        """Return the chat request of an entry."""
        body: Entry = {"messages": entry.get("messages") or [{"role": "user", "content": entry["prompt"]}]}
        if "tools" in entry:
            body["tools"] = [self.tools[name] for name in entry["tools"]]
        return body

    def same_prompt(self, entry: Entry) -> bool:
        """Say whether llama.cpp's template and tokenizer give the reference's prompt ids."""
        prompt = self._post("/apply-template", self._body(entry))["prompt"]
        tokens = self._post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
        return bool(tokens == entry["prompt_ids"])

    def same_tokens(self, entry: Entry) -> bool:
        """Say whether greedy decoding gives the reference's ids; llama.cpp keeps the end of the turn to itself."""
        body = {"prompt": entry["prompt_ids"], "temperature": 0, "n_predict": MAX_TOKENS, "return_tokens": True}
        answer = self._post("/completion", body)
        ids = entry["answer_ids"]
        same: bool = answer["stop_type"] == "eos" and answer["tokens"] in (ids, ids[:-1])
        return same

    def same_chat(self, entry: Entry) -> bool:
        """Say whether the chat API gives the reference's answer or tool calls."""
        body = self._body(entry) | {"temperature": 0, "max_tokens": MAX_TOKENS}
        message = self._post("/v1/chat/completions", body)["choices"][0]["message"]
        functions = [call["function"] for call in message.get("tool_calls") or []]
        calls: list[Any] = [{"name": f["name"], "arguments": json.loads(f["arguments"])} for f in functions]
        same: bool = calls == entry.get("calls", []) and (message["content"] or "") == entry.get("answer", "")
        return same


def failing(check: Check, entries: list[Entry], threads: int) -> list[Entry]:
    """Return the entries that fail the check, asked by `threads` at once."""
    with ThreadPoolExecutor(threads) as pool:
        return [entry for entry, right in zip(entries, pool.map(check, entries), strict=True) if not right]


def main() -> None:
    """Verify as the command line says, and exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--expected", type=Path, required=True, help="reference written by expected.py")
    options = parser.parse_args()
    reference = json.loads(options.expected.read_text(encoding="utf-8"))
    server = start(options.model)
    asker = Asker(server.listening_address, reference["tool_definitions"])
    failures = 0
    for kind in ("chat", "tools", "follow_ups"):
        entries = reference[kind]
        for check in (asker.same_prompt, asker.same_tokens, asker.same_chat):
            for threads in (1, 16, PARALLEL):
                wrong = failing(check, entries, threads)
                failures += len(wrong)
                print(f"{kind}: {check.__name__}, {threads} at once: {len(entries) - len(wrong)} of {len(entries)}")
                for entry in wrong[:3]:
                    print(f"  differs: {entry.get('prompt') or entry['messages']}")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
