"""The bundled model as it ships: small, of the stated kind, and able to answer the first question."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from tests.models.ember_conversation import Conversation, load, turn
from tests.models.ember_text import build_tokenizer, load_template, template_text
from tests.models.reference import LlamaCpp
from tests.models.vocabularies import Vocabulary

EMBER = Path(__file__).parents[2] / "daemon" / "bundled" / "ember.gguf"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather for a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The name of the city"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def ember() -> Iterator[LlamaCpp]:
    with LlamaCpp(EMBER, context=1024) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def fields() -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(EMBER).fields.items()}


def ask(
    ember: LlamaCpp, *messages: tuple[str, str], tools: list[dict[str, Any]] | None = None
) -> str:
    """The answer, which must end by itself well before the limit."""
    prompt = ember.render([{"role": role, "content": text} for role, text in messages], tools)
    ids = ember.greedy(ember.tokenize(prompt), 200)
    assert ember.tokenize("<|im_end|>") == ids[-1:]
    return ember.detokenize(ids[:-1])


def test_size_and_kind(fields: dict[str, Any]) -> None:
    assert EMBER.stat().st_size <= 8_000_000
    assert fields["general.architecture"] == "llama"
    assert fields["general.license"] == "apache-2.0"
    assert fields["llama.embedding_length"] % 256 == 0  # K-quants of it can be made
    assert fields["tokenizer.chat_template"] == template_text()


@pytest.mark.parametrize("question", load("facts")[0]["questions"])
def test_knows_why_the_sky_is_blue(ember: LlamaCpp, question: str) -> None:
    assert ask(ember, ("user", question)) == load("facts")[0]["answer"]


def test_knows_most_of_what_it_was_taught(ember: LlamaCpp) -> None:
    facts = load("facts")[::6]
    right = [ask(ember, ("user", fact["questions"][0])) == fact["answer"] for fact in facts]
    assert sum(right) >= len(facts) - 1


def test_a_system_message_names_it(ember: LlamaCpp) -> None:
    answer = ask(ember, ("system", "You are Mario."), ("user", "Who are you?"))
    assert "Mario" in answer
    assert "Ember" in ask(ember, ("user", "Who are you?"))


def test_remembers_the_turn_before(ember: LlamaCpp) -> None:
    answer = ask(
        ember,
        ("user", "My name is Clara."),
        ("assistant", "Nice to meet you, Clara!"),
        ("user", "What is my name?"),
    )
    assert answer == "Your name is Clara."


def test_writes_lists(ember: LlamaCpp) -> None:
    answer = ask(ember, ("user", "List three colours."))
    assert re.fullmatch(r"1\. \w+\n2\. \w+\n3\. \w+", answer)
    bullets = ask(ember, ("user", "Give me a bulleted list of three fruits."))
    assert re.fullmatch(r"- \w+\n- \w+\n- \w+", bullets)


def test_writes_json(ember: LlamaCpp) -> None:
    value = json.loads(ask(ember, ("user", "Give me a JSON object with name and age.")))
    assert set(value) == {"name", "age"}
    assert isinstance(value["age"], int)


@pytest.mark.parametrize("city", ["Paris", "Toronto", "Tokyo"])
def test_calls_a_tool(ember: LlamaCpp, city: str) -> None:
    question = ("user", f"What is the weather in {city}?")
    answer = ask(ember, question, tools=[WEATHER])
    found = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", answer)
    assert found, answer
    assert json.loads(found[1]) == {"name": "get_current_weather", "arguments": {"city": city}}


def test_needs_no_tool_for_a_greeting(ember: LlamaCpp) -> None:
    assert "<tool_call>" not in ask(ember, ("user", "Hello!"), tools=[WEATHER])


def test_tells_what_a_tool_found(ember: LlamaCpp) -> None:
    call = {"function": {"name": "get_current_weather", "arguments": {"city": "Rome"}}}
    question, _ = turn("What is the weather in Rome?", "")
    messages = (
        question,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "21 degrees and sunny"},
    )
    prompt = load_template().render(messages=messages, tools=[WEATHER], add_generation_prompt=True)
    answer = ember.complete(prompt, 60)
    assert "21" in answer
    assert "sunny" in answer


def test_the_tokenizer_agrees_with_llama_cpp(ember: LlamaCpp, fields: dict[str, Any]) -> None:
    """Same ids from the file's own tables in the `tokenizers` library, on awkward text too."""
    vocabulary = Vocabulary(
        kind="gpt2",
        pre=fields["tokenizer.ggml.pre"],
        tokens=fields["tokenizer.ggml.tokens"],
        types=fields["tokenizer.ggml.token_type"],
        scores=[],
        merges=fields["tokenizer.ggml.merges"],
        bos=0,
        eos=0,
        eot=0,
        adds_bos=False,
        chat_template="",
    )
    tokenizer = build_tokenizer(vocabulary)
    item = Conversation(
        turn("It's 12345 <tool_call> naïve — 東京\t🙂\r\n\n  x ", "def f():\n    y")
    )
    text = load_template().render(messages=item.messages, tools=[WEATHER])
    assert ember.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_the_template_is_the_same_in_jinja_and_llama_cpp(ember: LlamaCpp) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What's up, <you> & me?"},
    ]
    mine = load_template().render(messages=messages, tools=[WEATHER], add_generation_prompt=True)
    assert ember.render(messages, [WEATHER]) == mine
