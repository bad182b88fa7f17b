"""`hearth run`: one answer, or a conversation. Ctrl-C stops the answer, not the program."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from daemon.cli.client import Client, ClientError
from daemon.cli.images import named_pictures, taken_out

_HELP = """\
  /set system TEXT           set the system message
  /set parameter NAME VALUE  set an option, such as temperature 0.2
  /clear                     forget the conversation
  /show                      what is set
  /bye                       leave (or Ctrl-D)
  \"\"\"                        begin or end a message of several lines
The path of a picture, such as ./photo.jpg, shows it to a model that can see.
Ctrl-C stops the answer."""


def run_model(arguments: argparse.Namespace) -> int:
    with Client() as client:
        shown = client.request("POST", "/api/show", {"model": arguments.model})
        prompt = " ".join(arguments.prompt)
        if not sys.stdin.isatty():
            prompt = "\n\n".join(part for part in (prompt, sys.stdin.read().strip()) if part)
        conversation = Conversation(client, arguments.model, arguments, Sight(shown))
        if prompt:
            return 0 if conversation.ask(prompt) else 130
        conversation.preload()
        return conversation.loop()


class Sight:
    """What becomes of pictures that a prompt names. `shown`: the answer of /api/show."""

    def __init__(self, shown: dict[str, Any]) -> None:
        self._can_see = "vision" in shown.get("capabilities", ())
        refusal = shown.get("hearth", {}).get("vision", {}).get("refusal", "")
        self._why = f" ({refusal})" if refusal else ""

    def message(self, prompt: str) -> dict[str, Any]:
        """What the user says, with the pictures where the model can see. Raises ClientError."""
        images: list[str] = []
        if self._can_see:
            prompt, images = taken_out(prompt, _tell)
        elif any(path.is_file() for path, _, _ in named_pictures(prompt)):
            _tell(f"this model takes no images{self._why}: it is given the path as text")
        return {"role": "user", "content": prompt} | ({"images": images} if images else {})


def is_command(line: str) -> bool:
    """A picture's path begins as commands do."""
    pictures = named_pictures(line)
    is_picture = any(start == 0 and path.is_file() for path, start, _ in pictures)
    return line.startswith("/") and not is_picture


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


class Conversation:
    """The messages so far and what was `/set`. Owned by the command's only thread."""

    def __init__(
        self, client: Client, model: str, arguments: argparse.Namespace, sight: Sight
    ) -> None:
        self._client = client
        self._model = model
        self._sight = sight
        self._messages: list[dict[str, Any]] = []
        self._system = ""
        self._options: dict[str, Any] = {}
        self._verbose: bool = arguments.verbose
        self._extra = {"keep_alive": arguments.keepalive} if arguments.keepalive else {}

    def preload(self) -> None:
        self._client.request("POST", "/api/generate", {"model": self._model} | self._extra)

    def loop(self) -> int:
        with contextlib.suppress(ImportError):
            # Gives input() line editing and history by being imported.
            importlib.import_module("readline")
        while True:
            try:
                line = _read_message()
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print("\nUse Ctrl-D or /bye to leave.")
                continue
            if line == "/bye":
                return 0
            if is_command(line):
                print(self._command(line))
            elif line:
                self._ask_safely(line)

    def _ask_safely(self, text: str) -> None:
        before = len(self._messages)
        try:
            self.ask(text)
        except ClientError as error:
            del self._messages[before:]
            print(f"Error: {error}", file=sys.stderr)

    def ask(self, text: str) -> bool:
        """Prints the answer as it comes; False when it was stopped by Ctrl-C."""
        self._messages.append(self._sight.message(text))
        system = [{"role": "system", "content": self._system}] if self._system else []
        body = {"model": self._model, "messages": system + self._messages} | self._extra
        body |= {"options": self._options} if self._options else {}
        events = self._client.stream("/api/chat", body)
        answer: list[str] = []
        try:
            final = self._print_answer(events, answer)
        except KeyboardInterrupt:
            # Closing the stream closes the connection: the daemon frees the row at once.
            events.close()  # type: ignore[attr-defined]
            print()
            self._messages.append({"role": "assistant", "content": "".join(answer)})
            return False
        self._messages.append({"role": "assistant", "content": "".join(answer)})
        print("\n")
        if self._verbose:
            _print_times(final)
        return True

    def _print_answer(self, events: Iterator[dict[str, Any]], answer: list[str]) -> dict[str, Any]:
        final: dict[str, Any] = {}
        for final in events:
            piece = final.get("message", {}).get("content", "")
            answer.append(piece)
            print(piece, end="", flush=True)
        return final

    def _command(self, line: str) -> str:
        match line.split(maxsplit=3):
            case ["/clear"]:
                self._messages.clear()
                return "The conversation is forgotten."
            case ["/show"]:
                return f"model: {self._model}\nsystem: {self._system}\noptions: {self._options}"
            case ["/set", "system", *rest] if rest:
                self._system = " ".join(rest).strip('"')
                return "Set."
            case ["/set", "parameter", name, value]:
                return self._set_option(name, value)
            case _:
                return _HELP

    def _set_option(self, name: str, value: str) -> str:
        from daemon.api.parameters import typed_parameters
        from daemon.models.modelfile import ModelfileError

        try:
            self._options |= typed_parameters([(name, value)])
        except ModelfileError as error:
            return str(error)
        return "Set."


def _read_message() -> str:
    line = input(">>> ")
    if not line.startswith('"""'):
        return line.strip()
    lines = [line[3:]]
    while not lines[-1].endswith('"""'):
        lines.append(input("... "))
    lines[-1] = lines[-1][:-3]
    return "\n".join(lines)


def _print_times(final: dict[str, Any]) -> None:
    prompt, answer = final.get("prompt_eval_count", 0), final.get("eval_count", 0)
    prefill, decode = final.get("prompt_eval_duration", 0), final.get("eval_duration", 0)
    rows = [
        ("total duration", f"{final.get('total_duration', 0) / 1e9:.3f} s"),
        ("load duration", f"{final.get('load_duration', 0) / 1e9:.3f} s"),
        ("prompt", f"{prompt} tokens, {prompt / max(prefill, 1) * 1e9:.1f} tokens/s"),
        ("answer", f"{answer} tokens, {answer / max(decode, 1) * 1e9:.1f} tokens/s"),
    ]
    for label, value in rows:
        print(f"{label + ':':<16} {value}", file=sys.stderr)
