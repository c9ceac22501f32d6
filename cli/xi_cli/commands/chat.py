"""`xi chat`: a conversation on the terminal, on a pipe, or one question."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from xi_cli.answer import given, sampling_options, show
from xi_cli.group import Failure
from xi_cli.options import client_options, connect, json_option, one_of, pick_model, print_json, say
from xi_core.errors import XiError

if TYPE_CHECKING:
    from xi_core.client import Client

HELP = "Commands: /clear forgets the conversation, /exit leaves. Ctrl-C stops an answer; at the prompt it leaves."


@click.command()
@click.argument("model", required=False)
@click.option("-n", "--model", "model_option", metavar="UID", help="The model's uid; as MODEL.")
@click.option("-p", "--prompt", metavar="TEXT", help="Ask this, print the answer and leave.")
@click.option("--system", metavar="TEXT", help="A system message to begin with.")
@sampling_options
@json_option
@client_options
def chat(
    model: str | None,
    model_option: str | None,
    prompt: str | None,
    system: str | None,
    as_json: bool,
    endpoint: str | None,
    api_key: str | None,
    **sampling: Any,
) -> None:
    """Talk with a model.

    On a terminal this is a conversation: /clear forgets it, /exit or Ctrl-D leaves, Ctrl-C stops an answer. On a pipe each line is one
    turn. With --prompt one answer is printed. MODEL may be left out if only one model is launched.

    \b
    Examples:
      xi chat xi-tiny
      xi chat xi-tiny --prompt "How do I launch a model?"
      echo "What is 2 + 3?" | xi chat xi-tiny --temperature 0
    """
    client = connect(endpoint, api_key)
    uid = pick_model(client, one_of(model_option, model, "model"))
    talk = Conversation(client, uid, system, given(sampling), as_json)
    if prompt is not None:
        talk.ask(prompt)
    elif sys.stdin.isatty():
        client.model(uid)  # a wrong name shows now, not after the first question
        say(f"Talking with {uid}. {HELP}")
        _converse(talk)
    else:
        for line in sys.stdin:
            if line.strip():
                talk.ask(line.rstrip("\n"))


@dataclass
class Conversation:
    """The messages so far, and how to ask for the next."""

    client: Client
    uid: str
    system: str | None
    sampling: dict[str, Any]
    as_json: bool
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> None:
        """One turn. A question that failed is taken back; an answer that was stopped stays, as far as it came."""
        pieces: list[str] = []
        self.messages.append({"role": "user", "content": text})
        try:
            self._answer(pieces)
        finally:
            if pieces:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
            else:
                self.messages.pop()

    def _answer(self, pieces: list[str]) -> None:
        if self.as_json:
            answer = self.client.chat(self.uid, self.messages, **self.sampling)
            print_json(answer)
            pieces.append(answer.choices[0].message.content or "")
        else:
            show(self.client.chat(self.uid, self.messages, stream=True, **self.sampling), pieces)


def _converse(talk: Conversation) -> None:
    """Ask for lines until the user leaves. Errors of one turn don't end the conversation."""
    while (line := _line()) is not None:
        if line in ("/exit", "/quit"):
            return
        if line == "/clear":
            talk.clear()
            say("The conversation is forgotten.")
        elif line.startswith("/"):
            say(HELP)
        elif line:
            _turn(talk, line)


def _turn(talk: Conversation, line: str) -> None:
    try:
        talk.ask(line)
    except KeyboardInterrupt:
        say("\n(stopped)")
    except XiError as error:
        Failure(error.message).show()


def _line() -> str | None:
    """The next line that the user types; None to leave."""
    with suppress(ImportError):  # not on every system: `input` works without
        import readline  # noqa: F401 - importing it gives `input` line editing and history
    try:
        if sys.stdout.isatty():
            return input("> ").strip()
        click.echo("> ", nl=False, err=True)  # stdout is for answers only
        return input().strip()
    except (EOFError, KeyboardInterrupt):
        say("")
        return None
