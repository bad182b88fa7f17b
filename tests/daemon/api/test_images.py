"""Images in requests: their bytes, their order, and the texts that refuse them."""

from __future__ import annotations

import base64

import pytest

from backends.types import Message
from daemon.api.anthropic.turns import Turns
from daemon.api.anthropic.wire import WireMessage as AnthropicMessage
from daemon.api.body import as_struct
from daemon.api.growth import may_not_fit
from daemon.api.images import Parts, image_count, placed_images, read_image
from daemon.api.ollama.reading import read_wishes
from daemon.api.ollama.wire import ChatRequest, GenerateRequest
from daemon.api.openai.messages import read_messages
from daemon.api.openai.responses.reading import read_input
from daemon.api.openai.responses.wire import ResponsesRequest
from daemon.api.openai.wire import WireMessage
from daemon.errors import Invalid, NotYet
from tests.daemon.api.test_growth import chat

RED, BLUE = b"\x89PNG red", b"\x89PNG blue"


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


def data_uri(image: bytes) -> str:
    return f"data:image/png;base64,{encoded(image)}"


@pytest.mark.parametrize("size", [0, 1, 2, 3, (3 << 18) - 1, 3 << 18, (3 << 18) + 1, 2_000_000])
def test_images_of_every_size_are_decoded(size: int) -> None:
    image = bytes(i * 7 % 251 for i in range(size))
    assert read_image(encoded(image)) == image
    assert read_image(base64.encodebytes(image).decode()) == image


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("data:image/png;base64,aGk=", 4),
        ("aGk", 3),
        ("aGk=aGk=", 3),
        ("aG-_", 2),
        ("aGké", 3),
        ("A" * (1 << 20) + "A?==", (1 << 20) + 1),
        ("A" * ((1 << 20) - 1) + "=AAAA", (1 << 20) - 1),
    ],
)
def test_what_is_no_standard_base64_is_refused(text: str, place: int) -> None:
    with pytest.raises(Invalid, match=f"^illegal base64 data at input byte {place}$"):
        read_image(text)


@pytest.mark.parametrize("data", [b"RIFF\0\0\0\0WAVEfmt ", b"ID3\x04", b"\xff\xfb\x90"])
def test_audio_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(NotYet, match="audio"):
        read_image(encoded(data))


def test_webp_is_no_audio() -> None:
    assert read_image(encoded(b"RIFF\0\0\0\0WEBPVP8 "))


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("what is this?", 1, ("what is this?", ())),
        ("[img] and [img]?", 2, (" and ?", (0, 5))),
        ("[img] and [img]?", 1, (" and [img]?", (0,))),
        ("see [img]", 3, ("see ", (4,))),
        ("say [img]", 0, ("say [img]", ())),
    ],
)
def test_placeholders_say_where_images_stand(
    text: str, count: int, expected: tuple[str, tuple[int, ...]]
) -> None:
    assert placed_images(text, count) == expected


def test_line_breaks_stand_between_texts_only() -> None:
    parts = Parts("\n")
    parts.add_image(RED)
    parts.add_text("a")
    parts.add_text("b")
    parts.add_image(BLUE)
    parts.add_text("c")
    assert (parts.text, parts.images, parts.places) == ("a\nbc", (RED, BLUE), (0, 3))


def test_images_before_all_text_need_no_places() -> None:
    parts = Parts()
    parts.add_image(RED)
    parts.add_text("what?")
    assert (parts.images, parts.places) == ((RED,), ())


def test_ollama_chat_and_generate() -> None:
    images = [encoded(RED), encoded(BLUE)]
    sent = {"role": "USER", "content": "is [img] bluer?", "images": images}
    messages = read_wishes(as_struct({"messages": [sent]}, ChatRequest)).messages
    (prompted,) = read_wishes(
        as_struct({"prompt": "is [img] bluer?", "images": images}, GenerateRequest)
    ).messages
    wanted = Message(role="user", content="is  bluer?", images=(RED, BLUE), image_places=(3,))
    assert messages == (wanted,)
    assert prompted == wanted


def test_openai_parts_keep_their_order() -> None:
    content = [
        {"type": "text", "text": "first"},
        {"type": "image_url", "image_url": {"url": data_uri(RED), "detail": "low"}},
        {"type": "text", "text": "second"},
        {"type": "image_url", "image_url": data_uri(BLUE)},
    ]
    (message,) = read_messages((as_struct({"role": "user", "content": content}, WireMessage),))
    assert message.content == "firstsecond"
    assert (message.images, message.image_places) == ((RED, BLUE), (5, 11))


def test_images_in_the_output_of_a_function() -> None:
    image = {"type": "input_image", "image_url": data_uri(RED)}
    items = [
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [image]},
        {"role": "user", "content": [{"type": "input_text", "text": "so?"}, image]},
    ]
    _, output, asked = read_input(as_struct({"input": items}, ResponsesRequest))
    assert (output.role, output.tool_name, output.images) == ("tool", "look", (RED,))
    assert (asked.content, asked.images, asked.image_places) == ("so?", (RED,), (3,))


def test_what_an_assistant_said_has_no_images() -> None:
    image = {"type": "input_image", "image_url": data_uri(RED)}
    request = as_struct({"input": [{"role": "assistant", "content": [image]}]}, ResponsesRequest)
    with pytest.raises(Invalid, match="assistant message cannot have images"):
        read_input(request)


def test_anthropic_blocks_and_results_of_tools() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "x", "data": encoded(RED)}}
    document = {
        "type": "document",
        "title": "Page",
        "source": {"type": "content", "content": [image, {"type": "text", "text": "below"}]},
    }
    result = {"type": "tool_result", "tool_use_id": "1", "content": [image]}
    sent = {"role": "user", "content": [result, {"type": "text", "text": "see "}, document]}
    turns = Turns()
    turns.add(as_struct(sent, AnthropicMessage), "messages.0")
    tool, asked = turns.messages
    assert (tool.role, tool.content, tool.images) == ("tool", "", (RED,))
    assert asked.content == "see Page\n\nbelow\n\n"
    assert (asked.images, asked.image_places) == ((RED,), (10,))


def test_an_image_alone_is_a_message() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": encoded(RED)}}
    turns = Turns()
    turns.add(as_struct({"role": "user", "content": [image]}, AnthropicMessage), "messages.0")
    assert [message.images for message in turns.messages] == [(RED,)]


def test_only_the_model_knows_how_much_room_images_take() -> None:
    seen = chat("hi")
    assert not may_not_fit(seen)
    message = Message(role="user", content="hi", images=(RED,))
    with_image = type(seen)(request_id="1", messages=(message,), limits=seen.limits)
    assert may_not_fit(with_image)
    assert image_count(with_image, "[img-0] hi [img-1]") == 1
    assert image_count(with_image, "hi") == 0
