"""`baton chat`: a conversation in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from baton.cluster.client import Endpoint, model_name, server_error
from baton.cluster.options import endpoint_options
from baton.protos.errors import BatonError, UnavailableError

if TYPE_CHECKING:
    from rich.console import Console

HELP = """/exit          leave (also Ctrl-D)
/reset         forget the conversation
/system TEXT   set the system message, and forget the conversation; without TEXT: none
Ctrl-C         stop the answer that is being written"""
# A server that sends nothing for this long, in seconds, is given up.
SILENCE_S = 300.0


@click.command()
@endpoint_options
@click.option("--model", help="Model to ask. Default: the first that the server lists.")
@click.option("--system", default="", help="System message.")
@click.option("--temperature", type=float, help="0 always takes the likeliest token. Default: 1.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of one answer.")
@click.option("--plan", is_flag=True, help="Show after each answer where it was computed.")
def command(
    endpoint: Endpoint,
    model: str | None,
    system: str,
    temperature: float | None,
    max_tokens: int | None,
    plan: bool,
) -> None:
    """Talk to the model at --url; answers appear as they are written.

    \b
    /exit, /reset and /system TEXT do what they say; Ctrl-C stops the current answer only.
    """
    from rich.console import Console

    console = Console(highlight=False)
    settings = {"temperature": temperature, "max_completion_tokens": max_tokens}
    conversation = Conversation(
        endpoint=endpoint,
        model=model or model_name(endpoint),
        system=system,
        settings={k: v for k, v in settings.items() if v is not None},
        show_plan=plan,
    )
    say(console, f"{conversation.model} at {endpoint.base}. /help lists commands.")
    talk(conversation, console)


def talk(conversation: Conversation, console: Console) -> None:
    """Reads lines and answers them until /exit or the end of input."""
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            say(console, "\n/exit leaves")
            continue
        if line == "/exit":
            return
        if line.startswith("/"):
            say(console, conversation.obey(line))
        elif line:
            _answer(conversation, line, console)


def say(console: Console, text: str, style: str = "dim") -> None:
    """Baton's own words, set apart from the model's."""
    console.print(text, style=style, markup=False)


class Conversation:
    """The messages so far and the server that continues them."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        model: str,
        system: str,
        settings: Mapping[str, Any],
        show_plan: bool = False,
    ) -> None:
        self.model = model
        self.show_plan = show_plan
        self.plan = ""
        self._endpoint = endpoint
        self._settings = settings
        self._system = system
        self._messages: list[dict[str, str]] = []

    def obey(self, line: str) -> str:
        """Carries out a command such as `/reset`; returns what to say about it."""
        name, _, rest = line.partition(" ")
        if name == "/reset":
            self._messages = []
            return "forgotten"
        if name == "/system":
            self._system, self._messages = rest.strip(), []
            return "system message set" if self._system else "no system message"
        if name == "/help":
            return HELP
        return f"there is no {name}\n{HELP}"

    def ask(self, text: str, show: Callable[[str, bool], None]) -> None:
        """Sends one message; `show(piece, is_thought)` gets the answer piece by piece.

        The exchange is remembered if it was answered, also when KeyboardInterrupt stopped the
        answer. Raises BatonError, and then it is as if nothing was asked.
        """
        asked = [*self._messages, {"role": "user", "content": text}]
        answer: list[str] = []
        try:
            for piece, is_thought in self._stream(asked):
                if not is_thought:
                    answer.append(piece)
                show(piece, is_thought)
        except KeyboardInterrupt:
            self._messages = [*asked, {"role": "assistant", "content": "".join(answer)}]
            raise
        self._messages = [*asked, {"role": "assistant", "content": "".join(answer)}]

    def _stream(self, messages: list[dict[str, str]]) -> Iterator[tuple[str, bool]]:
        import httpx

        system = [{"role": "system", "content": self._system}] if self._system else []
        body = {"model": self.model, "messages": system + messages, "stream": True}
        headers = self._endpoint.headers | ({"x-baton-explain": "1"} if self.show_plan else {})
        path = "/v1/chat/completions"
        try:
            with httpx.stream(
                "POST",
                self._endpoint.base + path,
                json=body | dict(self._settings),
                headers=headers,
                timeout=SILENCE_S,
            ) as response:
                if response.status_code != 200:
                    raise server_error(response.status_code, response.read(), path)
                self.plan = response.headers.get("x-baton-plan", "")
                yield from _pieces(response.iter_lines())
        except httpx.HTTPError as error:
            raise UnavailableError(f"lost {self._endpoint.base}: {error}") from error


def _pieces(lines: Iterator[str]) -> Iterator[tuple[str, bool]]:
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[len("data:") :].strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise server_error(200, data.encode(), "the stream")
        for choice in event.get("choices", ()):
            delta = choice.get("delta", {})
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            if thought:
                yield thought, True
            if delta.get("content"):
                yield delta["content"], False


def _answer(conversation: Conversation, line: str, console: Console) -> None:
    def show(piece: str, is_thought: bool) -> None:
        console.print(piece, end="", markup=False, style="dim" if is_thought else None)

    try:
        conversation.ask(line, show)
        console.print()
    except KeyboardInterrupt:
        say(console, "\n(stopped)")
    except BatonError as error:
        say(console, f"\n{error.message}", "red")
    if conversation.show_plan and conversation.plan:
        say(console, conversation.plan)
