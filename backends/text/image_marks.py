"""Images on their way through a chat template: marks in the text of messages, found again in the prompt.

A mark is made of letters and digits only, so that no template's trimming, escaping or JSON changes it, and of
random ones, so that nobody can write it. Templates that know images are given text with marks all the same,
as llama.cpp does it; what stands around an image is its kind's affair.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from backends.text.tokenizer import Tokenizer
from backends.types import Chat, EngineError, Message
from backends.vision.plan import MarkupText
from backends.vision.sight import PlannedImage, Sight

MOST_IMAGES = 512
NO_SIGHT = "this model is missing data required for image input"


class Place(NamedTuple):
    """`image.plan.vectors[part]` stand in the prompt from `start` on."""

    image: PlannedImage
    part: int
    start: int


class Layout(NamedTuple):
    """Ids of a prompt, those of images below 0, and where the images lie in it."""

    ids: tuple[int, ...]
    places: tuple[Place, ...] = ()


# Text to ids; `is_first`: it begins the prompt.
Encode = Callable[[str, bool], tuple[int, ...]]


class ImageMarks:
    """The marks of one chat. `chat` has them in its messages, and no images any more."""

    def __init__(self, chat: Chat, sight: Sight | None) -> None:
        """Raises EngineError where an image cannot be taken, or none at all."""
        files = [data for message in chat.messages for data in message.images]
        if files and sight is None:
            raise EngineError("invalid", NO_SIGHT)
        if len(files) > MOST_IMAGES:
            raise EngineError("invalid", f"there are more than {MOST_IMAGES} images")
        self._images: list[PlannedImage] = []
        if sight is not None:
            self._images = [sight.plan(data, f"image {n}") for n, data in enumerate(files, 1)]
        self._secret = f"image{secrets.token_hex(16)}n"
        self._pattern = re.compile(f"{self._secret}([0-9]+)e", re.IGNORECASE)
        self.chat = self._marked(chat) if files else chat

    def _mark(self, number: int) -> str:
        return f"{self._secret}{number}e"

    def _marked(self, chat: Chat) -> Chat:
        """A raw prompt has the images of the messages beside it in front."""
        messages: list[Message] = []
        number = 0
        for message in chat.messages:
            marks = [self._mark(number + n) for n in range(len(message.images))]
            number += len(marks)
            content = with_marks(message, marks)
            messages.append(
                msgspec.structs.replace(message, content=content, images=(), image_places=())
            )
        if chat.prompt is None:
            return msgspec.structs.replace(chat, messages=tuple(messages))
        marks = (self._mark(n) for n in range(number))
        prompt = "".join(marks) + chat.prompt
        return msgspec.structs.replace(chat, messages=(), prompt=prompt)

    def _found(self, text: str) -> list[int]:
        return [int(number) for number in self._pattern.findall(text)] if self._images else []

    def check(self, chat: Chat, text: str) -> None:
        """Each image of `chat` must stand in its prompt `text` once. Raises EngineError("template")."""
        found = self._found(text)
        for number in {n for message in chat.messages for n in self._found(message.content)}:
            name = self._images[number].name
            if number not in found:
                raise EngineError("template", f"the chat template leaves out {name}")
            if found.count(number) > 1:
                raise EngineError("template", f"the chat template repeats {name}")

    def shown(self, text: str) -> str:
        """For people: images as `[img-0]`, `[img-1]` …, counted among those that are still there."""
        kept = {number: place for place, number in enumerate(sorted(set(self._found(text))))}
        if not kept:
            return text
        return self._pattern.sub(lambda mark: f"[img-{kept[int(mark[1])]}]", text)

    def lay_out(self, text: str, tokenizer: Tokenizer, encode: Encode) -> Layout:
        """Texts between images are tokenized each on its own, as the field does it."""
        if not self._images:
            return Layout(encode(text, True))
        pieces = self._pattern.split(text)
        ids = [*encode(pieces[0], True)]
        places: list[Place] = []
        for number, following in zip(pieces[1::2], pieces[2::2], strict=True):
            self._put(self._images[int(number)], tokenizer, ids, places)
            ids += encode(following, False) if following else ()
        return Layout(tuple(ids), tuple(places))

    def _put(
        self, image: PlannedImage, tokenizer: Tokenizer, ids: list[int], places: list[Place]
    ) -> None:
        part = 0
        for piece in image.plan.parts:
            if isinstance(piece, MarkupText):
                ids += tokenizer.encode(piece.text)
                continue
            places.append(Place(image, part, len(ids)))
            ids += [image.part_id(part)] * piece.length
            part += 1


def with_marks(message: Message, marks: Sequence[str]) -> str:
    """The text with the marks of `message.images` in their places."""
    text, placed = message.content, len(message.image_places)
    pieces, begin = [*marks[placed:]], 0
    for mark, place in zip(marks, message.image_places, strict=False):
        place = max(place, begin)
        pieces += [text[begin:place], mark]
        begin = place
    return "".join([*pieces, text[begin:]])
