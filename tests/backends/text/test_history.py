from __future__ import annotations

import pytest

from backends.engine.generation import TOO_LONG
from backends.text.history import truncated, without_oldest
from backends.text.prompt import ModelText
from backends.types import Chat, EngineError, Limits, Message
from tests.backends.text.small_tokenizers import byte_level

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}>"
# Refuses a history that does not begin with the user, as several published templates do.
STRICT = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + TEMPLATE
)


def turns(count: int, size: int = 10) -> tuple[Message, ...]:
    """User and assistant take turns; each message has `size` bytes, which are its ids."""
    roles = ("user", "assistant")
    return tuple(Message(role=roles[n % 2], content=f"{n:0{size}d}") for n in range(count))


def chat(messages: tuple[Message, ...], **options) -> Chat:
    return Chat(request_id="c", messages=messages, **options)


def model(template: str = TEMPLATE, **options) -> ModelText:
    return ModelText(byte_level(), template, **options)


@pytest.mark.parametrize("count", [1, 5, 41])
@pytest.mark.parametrize("context_length", [40, 100, 200])
def test_as_few_messages_go_as_must(count: int, context_length: int):
    messages = turns(count)
    prompt = model().prompt(chat(messages), context_length)
    whole = model().prompt(chat(messages)).ids
    one_by_one = next(
        n for n in range(count) if 13 * (count - n) + 2 <= context_length or n == count - 1
    )
    assert prompt.text == model().prompt_text(chat(messages[one_by_one:]))
    assert prompt.dropped == len(whole) - len(prompt.ids)
    assert (prompt.dropped > 0) == (one_by_one > 0)


def test_the_system_message_and_the_last_one_stay():
    system = Message(role="system", content="s" * 20)
    messages = (*turns(6), system, *turns(9))
    prompt = model().prompt(chat(messages), 60)
    assert prompt.text == "<s>[s]" + "s" * 20 + "[a]0000000007[u]0000000008>"
    assert without_oldest(messages, 99) == (system, messages[-1])


def test_a_template_that_refuses_half_a_turn_loses_the_whole_one():
    prompt = model(STRICT).prompt(chat(turns(9)), 60)
    assert prompt.text == "<s>[u]0000000006[a]0000000007[u]0000000008>"
    with pytest.raises(EngineError) as refusal:
        model(STRICT).prompt(chat(turns(9)[1:]), 60)
    assert refusal.value.code == "template"


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_one_message_too_long_keeps_its_beginning_and_its_end(keep: int):
    content = "".join(chr(33 + n % 90) for n in range(300))
    wanted = chat((Message(role="user", content=content),), limits=Limits(num_keep=keep))
    whole = model().prompt(wanted).ids
    prompt = model().prompt(wanted, 100)
    kept = 99 if keep < 0 else keep + 1  # and the model's BOS
    assert len(prompt.ids) == 100 - max((100 - kept) // 2, 1)
    assert prompt.ids[:kept] == whole[:kept]
    assert len(prompt.ids) == kept or prompt.ids[kept:] == whole[kept - len(prompt.ids) :]
    assert prompt.dropped == 304 + 1 - len(prompt.ids)


def test_raw_prompts_are_cut_too():
    prompt = model().prompt(Chat(request_id="c", prompt="x" * 500), 50)
    assert (len(prompt.ids), prompt.dropped) == (50 - 22, 501 - 28)


@pytest.mark.parametrize(
    "options", [{"truncate": False}, {"truncate": False, "shift": True}, {"shift": False}]
)
def test_who_allows_no_cut_is_refused(options: dict[str, bool]):
    with pytest.raises(EngineError) as refusal:
        model().prompt(chat(turns(1, size=200), **options), 100)
    assert (refusal.value.code, str(refusal.value)) == ("too_long", TOO_LONG)


def test_without_truncation_no_message_goes():
    with pytest.raises(EngineError) as refusal:
        model().prompt(chat(turns(20), truncate=False), 100)
    assert refusal.value.code == "too_long"


def test_the_model_says_whether_contexts_are_shifted():
    long = chat(turns(1, size=200))
    with pytest.raises(EngineError):
        model(shifts=False).prompt(long, 100)
    assert model(shifts=False).prompt(chat(turns(1, size=200), shift=True), 100).dropped > 0
    request = model().request(long, model().prompt(long, 100), 100)
    assert (request.shift, request.keep_length) == (True, 5)
    assert not model(shifts=False).request(long, model().prompt(long, 100), 100).shift


def test_very_long_texts_are_not_tokenized_whole():
    fitted = model().prompt(Chat(request_id="c", prompt="ab" * 4_000_000), 50)
    assert fitted.ids[1:5] == tuple(b"abab")
    assert len(fitted.ids) == 28
    assert fitted.ids[-2:] == tuple(b"ab")


@pytest.mark.parametrize("context_length", range(2, 40))
@pytest.mark.parametrize("keep", [0, 1, 5, 1000])
def test_what_is_left_fits_and_is_never_empty(context_length: int, keep: int):
    ids = tuple(range(100))
    left = truncated(ids, context_length, keep)
    assert 1 <= len(left) <= context_length - 1
    assert list(left) == sorted(left)


def test_only_a_system_prompt_is_everybodys_and_only_where_that_matters():
    system = Message(role="system", content="be kind")
    wanted = chat((system, *turns(3)), cache_scope="a key")
    prompt = model().prompt(wanted, 200)
    assert prompt.system_length == 1 + len("[s]be kind")
    assert model().request(wanted, prompt, 200).system_length == prompt.system_length
    assert model().prompt(chat((system, *turns(3))), 200).system_length == 0
    assert model().prompt(chat(turns(3), cache_scope="a key"), 200).system_length == 0
