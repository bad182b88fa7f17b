from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.text.conversation import Conversation
from backends.text.prompt import ModelText
from backends.types import (
    Chat,
    Delta,
    Failed,
    Finished,
    FromWorker,
    Message,
    Prefilled,
    Progress,
    Sampled,
    TokenEvent,
    Usage,
)
from tests.backends.text.small_tokenizers import byte_level

MODEL = ModelText(byte_level(), "")


def conversation(**options: object) -> Conversation:
    chat = Chat(request_id="c", prompt="p", **options)  # type: ignore[arg-type]
    return Conversation(chat, MODEL.prompt(chat), MODEL)


def sampled(*ids: int, logprob: float | None = None) -> list[TokenEvent]:
    return [Sampled(request_id="c", token_id=token_id, logprob=logprob) for token_id in ids]


def finished(reason: str = "stop", completion_tokens: int = 9) -> list[TokenEvent]:
    usage = Usage(prompt_tokens=2, completion_tokens=completion_tokens, decode_ns=5)
    return [Finished(request_id="c", reason=reason, usage=usage)]  # type: ignore[arg-type]


def deltas(messages: list[FromWorker]) -> list[Delta]:
    return [message for message in messages if isinstance(message, Delta)]


def text_of(messages: list[FromWorker]) -> str:
    return "".join(delta.text for delta in deltas(messages))


def test_texts_of_one_step_are_merged_and_the_closing_one_is_apart() -> None:
    messages = conversation().take([*sampled(*b"abc"), *finished()])
    assert [delta.text for delta in deltas(messages)] == ["abc", ""]
    last = deltas(messages)[-1]
    assert (last.finish, last.usage) == ("stop", finished()[0].usage)  # type: ignore[union-attr]
    assert last.context_ids == ()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [({}, "stop"), ({"format": b'"json"'}, "length"), ({"required_tools": ("f",)}, "length")],
)
def test_what_was_promised_whole_and_a_stop_string_cut_ends_with_length(
    asked: dict[str, object], reason: str
) -> None:
    messages = conversation(stop=("b",), **asked).take([*sampled(*b"ab"), *finished("cancelled")])
    assert deltas(messages)[-1].finish == reason


def test_prefill_is_progress() -> None:
    messages = conversation().take([Prefilled(request_id="c", done=2, total=3, cached=1)])
    assert messages == [Progress(request_id="c", done=2, total=3, cached=1)]


def test_nothing_to_show_sends_nothing() -> None:
    talk = conversation()
    assert talk.take(sampled(0xE2)) == []
    assert talk.take(sampled(0x82)) == []
    assert text_of(talk.take(sampled(0xAC))) == "€"


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    messages = conversation().take([*sampled(97, 0xE2), *finished("length")])
    assert text_of(messages) == "a\ufffd"
    assert deltas(messages)[-1].finish == "length"


def test_it_ends_once() -> None:
    talk = conversation()
    talk.take(finished())
    assert talk.is_over
    assert talk.take([*sampled(97), *finished()]) == []


def test_a_failure_comes_after_the_text_before_it() -> None:
    failure = Failed(request_id="c", code="internal", message="x")
    messages = conversation().take([*sampled(97), failure])
    assert messages == [Delta(request_id="c", text="a"), failure]


def test_a_stop_string_asks_for_cancelling_and_counts_what_was_read() -> None:
    talk = conversation(stop=("STOP",))
    first = talk.take(sampled(*b"a STO"))
    assert not talk.has_stopped
    second = talk.take(sampled(*b"Pxyz"))
    assert talk.has_stopped
    third = talk.take([*sampled(*b"more"), *finished("cancelled", completion_tokens=40)])
    assert text_of([*first, *second, *third]) == "a "
    last = deltas(third)[-1]
    assert (last.finish, last.stop_text) == ("stop", "STOP")
    assert last.usage is not None
    assert last.usage.completion_tokens == len("a STOP")
    assert last.usage.decode_ns == 5


def test_a_stop_string_in_the_last_step_counts_too() -> None:
    messages = conversation(stop=("b",)).take([*sampled(*b"abc"), *finished("length")])
    assert text_of(messages) == "a"
    assert deltas(messages)[-1].finish == "stop"


def test_a_cancelled_answer_says_so() -> None:
    messages = conversation(stop=("bc",)).take([*sampled(*b"ab"), *finished("cancelled")])
    assert text_of(messages) == "ab"
    assert deltas(messages)[-1].finish == "cancelled"


def test_an_id_that_a_stop_string_begins_inside_keeps_its_first_part() -> None:
    """257 is "hel": its first letter was let through before the rest turned out to be a stop."""
    talk = conversation(stop=("elf",), want_context=True, logprobs=True)
    first = talk.take(sampled(97, 257, logprob=-1.0))
    second = talk.take([*sampled(ord("f"), 98, logprob=-1.0), *finished("cancelled")])
    assert text_of(first) == "ah"
    assert text_of(second) == ""
    logprobs = [entry.token for delta in deltas([*first, *second]) for entry in delta.logprobs]
    assert logprobs == ["a", "hel"]
    assert deltas(second)[-1].context_ids == (258, ord("p"), 97, ord("h"))


def test_context_is_prompt_and_answer() -> None:
    messages = conversation(want_context=True).take([*sampled(257, 97), *finished()])
    assert deltas(messages)[-1].context_ids == (258, ord("p"), 257, 97)


def test_logprobs_are_bytes_and_lossy_text() -> None:
    event = Sampled(request_id="c", token_id=0xE2, logprob=-0.5, top=((97, -0.25), (257, -0.5)))
    talk = conversation(logprobs=True, top_logprobs=2)
    (delta,) = deltas(talk.take([event]))
    (entry,) = delta.logprobs
    assert (entry.token, entry.data, entry.logprob) == ("\ufffd", b"\xe2", -0.5)
    assert [(top.token, top.logprob) for top in entry.top] == [("a", -0.25), ("hel", -0.5)]


def test_a_logprob_above_zero_is_rounding() -> None:
    (delta,) = deltas(conversation(logprobs=True).take(sampled(97, logprob=1e-7)))
    assert delta.logprobs[0].logprob == 0.0


IDS = st.lists(st.sampled_from([*b"ab ", 0xE2, 0x82, 0xAC, 0xFF, 256, 257]), max_size=25)
STOPS = st.lists(st.text(alphabet="abhel€\ufffd ", min_size=1, max_size=3), max_size=3)


@given(IDS, STOPS, st.integers(1, 6))
def test_steps_of_any_size_give_the_same(ids: list[int], stops: list[str], size: int) -> None:
    def run(batch: int) -> tuple[str, object, list[object], tuple[int, ...], object]:
        talk = conversation(stop=tuple(stops), logprobs=True, want_context=True)
        messages: list[FromWorker] = []
        for start in range(0, len(ids), batch):
            messages += talk.take(sampled(*ids[start : start + batch], logprob=-1.0))
        messages += talk.take(finished("length", completion_tokens=len(ids)))
        logprobs: list[object] = [entry for d in deltas(messages) for entry in d.logprobs]
        last = deltas(messages)[-1]
        return text_of(messages), last.finish, logprobs, last.context_ids, last.usage

    text, finish, logprobs, context_ids, _ = run(1)
    assert run(size) == run(1)
    whole = b"".join(MODEL.tokenizer.piece(i) for i in ids).decode("utf-8", "replace")
    assert whole.startswith(text)
    if finish == "stop":
        assert not any(stop in text for stop in stops)
    else:
        assert text == whole
        assert len(logprobs) == len(ids)
        assert context_ids[2:] == tuple(ids)


def test_events_stay_as_they_are() -> None:
    """Every message can cross the socket."""
    messages = conversation(want_context=True).take([*sampled(97), *finished()])
    assert msgspec.msgpack.encode(messages)


THINKER = ModelText(byte_level(), "{% if enable_thinking %}<think>{% endif %}</think>")


@pytest.mark.parametrize(
    ("answer", "thoughts"),
    [
        (b"<think>hm</think>yes", len(b"<think>hm</think>")),
        (b"<think>hm", len(b"<think>hm")),
        (b"<think> \n</think> \nyes", 0),
        (b"yes<think>hm</think>", 0),
        (b"", 0),
    ],
)
def test_ids_of_thoughts_are_counted(answer: bytes, thoughts: int) -> None:
    messages: tuple[Message, ...] = (Message(role="user", content="p"),)
    chat = Chat(request_id="c", messages=messages, think=True)
    for step in (1, len(answer) or 1):
        talk = Conversation(chat, THINKER.prompt(chat), THINKER)
        assert talk.markup.thinking_tags == ("<think>", "</think>")
        found: list[FromWorker] = []
        for at in range(0, len(answer), step):
            found += talk.take(sampled(*answer[at : at + step]))
        found += talk.take(finished(completion_tokens=len(answer) + 1))
        usage = deltas(found)[-1].usage
        assert usage is not None and usage.thinking_tokens == thoughts
