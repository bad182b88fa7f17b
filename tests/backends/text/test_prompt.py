from __future__ import annotations

import pytest

from backends.engine.contract import EngineCapabilities
from backends.engine.generation import TOO_LONG
from backends.text.prompt import ModelText, context_length_of
from backends.text.tokenizer import Tokenizer
from backends.types import (
    Chat,
    EngineError,
    Limits,
    Message,
    Sampling,
    ToolCall,
)
from tests.backends.text.small_tokenizers import byte_level, sentence_piece

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def model(template: str = TEMPLATE, tokenizer: Tokenizer | None = None) -> ModelText:
    return ModelText(tokenizer or byte_level(), template)


def chat(*turns: tuple[str, str], **options: object) -> Chat:
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    return Chat(request_id="c", messages=messages, **options)  # type: ignore[arg-type]


def test_the_template_is_used_and_bos_is_there_once() -> None:
    prompt = model().prompt(chat(("system", "s"), ("user", "u")))
    assert prompt.text == "<s>[system]s[user]u[assistant]"
    assert prompt.ids == (258, *b"[system]s[user]u[assistant]")


def test_a_raw_prompt_has_no_template() -> None:
    assert model().prompt_text(Chat(request_id="c", prompt="as it is")) == "as it is"
    assert model().prompt(Chat(request_id="c", prompt="a</s>")).ids == (258, 97, 259)


def test_a_closing_assistant_message_is_continued() -> None:
    text = model().prompt_text(chat(("user", "u"), ("assistant", "It is ")))
    assert text == "<s>[user]u[assistant]It is "


def test_an_assistant_message_alone_is_a_turn() -> None:
    assert model().prompt_text(chat(("assistant", "a"))) == "<s>[assistant]a[assistant]"


def test_without_a_template_the_texts_are_continued() -> None:
    plain = model("")
    assert plain.prompt_text(chat(("user", "Once upon"))) == "Once upon"
    turns = chat(("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"))
    assert plain.prompt_text(turns) == "s\n\nuav"


@pytest.mark.parametrize("tokenizer", [byte_level(), sentence_piece()])
def test_earlier_context_comes_first_and_keeps_its_ids(tokenizer: Tokenizer) -> None:
    text_side = model("{{ bos_token }}{{ messages[0].content }}", tokenizer)
    first = text_side.prompt(chat(("user", "hello")))
    second = text_side.prompt(chat(("user", "a b"), context_ids=first.ids))
    assert second.ids[: len(first.ids)] == first.ids
    assert second.text == "<s>hello<s>a b"


def test_message_parts_reach_the_template() -> None:
    template = (
        "{% for m in messages %}{{ m.reasoning_content }}{{ m.name }}{{ m.tool_call_id }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}"
        "{% endfor %}{% endfor %}{{ enable_thinking is defined }}{{ tools is none }}"
    )
    call = ToolCall(id="1", name="f", arguments=b'{"z": 1, "a": 2}')
    messages = (
        Message(role="assistant", thinking="hm ", tool_calls=(call,)),
        Message(role="tool", content="r", tool_name="f", tool_call_id="1"),
    )
    text = model(template).prompt_text(Chat(request_id="c", messages=messages))
    assert text == 'hm f{"z": 1, "a": 2}f1FalseTrue'


def test_thinking_switched_off_is_told_to_the_template() -> None:
    text_side = model("{{ enable_thinking }}")
    assert text_side.prompt_text(chat(("user", "u"), think=False)) == "False"


def test_arguments_that_are_no_object_are_refused() -> None:
    messages = (Message(role="assistant", tool_calls=(ToolCall(arguments=b"[1]"),)),)
    with pytest.raises(EngineError, match="JSON object") as refusal:
        model().prompt_text(Chat(request_id="c", messages=messages))
    assert refusal.value.code == "invalid"


def test_a_suffix_without_a_template_for_it_is_refused_by_name() -> None:
    with pytest.raises(EngineError, match="suffix") as refusal:
        model().prompt(chat(("user", "u"), suffix="x"))
    assert refusal.value.code == "unsupported"


def test_a_prompt_must_leave_room_for_one_id() -> None:
    text_side = model()
    assert len(text_side.prompt(Chat(request_id="c", prompt="a" * 9), 11).ids) == 10
    for length in (10, 11, 100_000):
        with pytest.raises(EngineError) as refusal:
            text_side.prompt(Chat(request_id="c", prompt="a" * length, truncate=False), 11)
        assert refusal.value.code == "too_long"
        assert str(refusal.value) == TOO_LONG
    assert "\n" not in TOO_LONG


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(EngineError, match="empty"):
        model(tokenizer=byte_level(add_bos=False)).prompt(Chat(request_id="c", prompt=""))


def test_the_request_carries_what_was_asked() -> None:
    text_side = model()
    asked = chat(
        ("user", "u"),
        sampling=Sampling(seed=3, temperature=0.0),
        limits=Limits(max_tokens=7),
        logprobs=True,
        top_logprobs=5,
    )
    request = text_side.request(asked, text_side.prompt(asked), 100)
    assert (request.max_tokens, request.context_length, request.top_logprobs) == (7, 100, 5)
    assert request.sampling == asked.sampling
    assert request.end_ids == {259}
    assert request.newline_ids == {10}


@pytest.mark.parametrize(("wanted", "expected"), [(-1, 1000), (-2, 1000), (5000, 1000), (0, 0)])
def test_max_tokens_is_bounded_by_ten_contexts(wanted: int, expected: int) -> None:
    text_side = model()
    asked = chat(("user", "u"), limits=Limits(max_tokens=wanted))
    request = text_side.request(asked, text_side.prompt(asked), 100)
    assert request.max_tokens == expected
    assert request.top_logprobs == -1


def test_the_smaller_context_counts() -> None:
    capabilities = EngineCapabilities(context_length=50, rows=1, vocabulary=9)
    assert context_length_of(chat(limits=Limits(context_length=20)), capabilities) == 20
    assert context_length_of(chat(limits=Limits(context_length=90)), capabilities) == 50
