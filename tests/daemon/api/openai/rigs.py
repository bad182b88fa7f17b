"""The official client on the scripted models of `tests.daemon.api.rig`."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import openai

from backends.scripted.script import Rule, Script
from tests.daemon.api.rig import Rig, api_rig

TEMPLATE = (
    "{% if tools %}[tools {% for tool in tools %}{{ tool.function.name }} {% endfor %}]{% endif %}"
    "{% if enable_thinking is defined %}[think {{ enable_thinking }} {{ reasoning_effort }}]{% endif %}"
    "{% for message in messages %}{{ message.role }}{% if message.name %}({{ message.name }}){% endif %}: "
    "{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{{ '\\n' }}{% endfor %}assistant: {# <think> </think> tool_response #}"
)
CALLS = (
    "<think>hm", "</think>", "Let me see.", "<tool_call>", '{"name": "get_weather", ',
    '"arguments": {"z": "Köln", "a": 1}}', "</tool_call>\n",
    '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>',
)  # fmt: skip
SCRIPT = Script(
    rules=(
        Rule(prompt=r"tool\(get_weather\): ", pieces=("It is ", "11 degrees.")),
        Rule(prompt="user: weather", pieces=CALLS),
        Rule(
            prompt="user: time",
            pieces=('No!<tool_call>{"name": "get_time", "arguments": {}}', "</tool_call>"),
        ),
        Rule(prompt="user: json", pieces=("<think>Well.</thi", 'nk>\nHere: {"a', '": 12} ok')),
    ),
    otherwise=Rule(pieces=("<think>", " I see. ", "</think>", "\n\nHel", "lo.")),
    context_length=512,
)


def tool(name: str, **parameters: Any) -> Any:
    schema = {"type": "object", "properties": parameters}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


WEATHER = tool("get_weather", z={"type": "string"}, a={"type": "integer"})
TIME = tool("get_time")


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@asynccontextmanager
async def openai_rig(home: pathlib.Path) -> AsyncIterator[tuple[Rig, openai.AsyncOpenAI]]:
    """`able` thinks and calls tools, `plain` does neither, `vectors` embeds."""
    async with api_rig(home) as rig:
        await rig.add_model("able", script=SCRIPT, chat_template=TEMPLATE)
        await rig.add_model("plain")
        await rig.add_model("vectors", script=Script(vector_size=8, context_length=64))
        url = f"{rig.base}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            yield rig, client


def events(text: str) -> list[Any]:
    """What `data:` lines hold; the closing word as it is."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [one if one == "[DONE]" else msgspec.json.decode(one) for one in found]
