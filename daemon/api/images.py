"""Images that travel inside requests, and where they stand between the texts. Pure.

They stay files: what is in them is looked at by the worker alone.
"""

from __future__ import annotations

import base64
import binascii
import re

from backends.types import Chat
from daemon.errors import Invalid, NotYet

# Decoding holds the interpreter's lock: in slices, so that other threads have their turns.
_SLICE_CHARACTERS = 4 << 18
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
_AUDIO = re.compile(rb"RIFF....WAVE|ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", re.DOTALL)


def read_image(text: str) -> bytes:
    """Of standard padded base64, line breaks left out. Raises Invalid, NotYet for audio."""
    if "\n" in text or "\r" in text:
        text = text.replace("\n", "").replace("\r", "")
    starts = range(0, len(text), _SLICE_CHARACTERS)
    data = b"".join(_decoded(text, start, start + _SLICE_CHARACTERS) for start in starts)
    if _AUDIO.match(data):
        raise NotYet('not supported by this version yet: "audio"')
    return data


def _decoded(text: str, start: int, end: int) -> bytes:
    is_last = end >= len(text)
    try:
        if is_last or "=" not in text[end - 2 : end]:
            return base64.b64decode(text[start:end], validate=True)
    except (binascii.Error, ValueError):
        pass
    found = _NOT_BASE64.search(text, start)
    place = found.start() if found else len(text)
    raise Invalid(f"illegal base64 data at input byte {place}")


class Parts:
    """Texts and images in the order in which a message has them. `separator`: between two texts."""

    def __init__(self, separator: str = "") -> None:
        self._separator = separator
        self._texts: list[str] = []
        self._length = 0
        self._is_behind_text = False
        self._images: list[bytes] = []
        self._places: list[int] = []

    def add_text(self, text: str) -> None:
        self._append(self._separator + text if self._is_behind_text else text)
        self._is_behind_text = True

    def _append(self, text: str) -> None:
        self._texts.append(text)
        self._length += len(text)

    def add_image(self, image: bytes) -> None:
        self._images.append(image)
        self._places.append(self._length)
        self._is_behind_text = False

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def images(self) -> tuple[bytes, ...]:
        return tuple(self._images)

    @property
    def places(self) -> tuple[int, ...]:
        """As `Message.image_places`; none where all images stand before the text anyway."""
        return tuple(self._places) if any(self._places) else ()


def placed_images(text: str, count: int, mark: str = "[img]") -> tuple[str, tuple[int, ...]]:
    """The text without the first `count` marks in it, and where these stood."""
    pieces = text.split(mark, count) if count else [text]
    places: list[int] = []
    for piece in pieces[:-1]:
        places.append(len(piece) + (places[-1] if places else 0))
    return "".join(pieces), tuple(places)


def image_count(chat: Chat, prompt: str) -> int:
    """How many of the chat's images are in its rendered prompt, where they are numbered."""
    sent = sum(len(message.images) for message in chat.messages)
    return sum(f"[img-{number}]" in prompt for number in range(sent))
