"""What can be read of content that is not plain text itself: documents, search results, images.

Nothing of it is left out silently: what has no text here is refused by name. Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from daemon.api.anthropic.wire import Block, Source
from daemon.api.body import as_struct
from daemon.api.images import Parts, read_image
from daemon.errors import Invalid, NotYet

ATTACHMENTS = ("image", "document", "search_result")


def add_nested(parts: Parts, content: Any, where: str, attachments: Collection[str] = ()) -> None:
    """A string, or the blocks of a list: texts, and `attachments` among them.

    Raises Invalid, NotYet.
    """
    if content is None or isinstance(content, str):
        parts.add_text(content or "")
        return
    if not isinstance(content, list):
        raise Invalid(f"{where}: expected a string or a list of content blocks")
    for item in cast("list[Any]", content):
        _add_block(parts, as_struct(item, Block), where, attachments)


def _add_block(parts: Parts, block: Block, where: str, attachments: Collection[str]) -> None:
    if block.type == "text":
        parts.add_text(block.text)
    elif block.type in attachments:
        add_attachment(parts, block, where)
    else:
        raise Invalid(f'{where}: content blocks of type "{block.type}" are not supported here')


def add_attachment(parts: Parts, block: Block, where: str) -> None:
    """A block of `ATTACHMENTS`. Raises Invalid, NotYet."""
    if block.type == "image":
        parts.add_image(_image(as_struct(block.source, Source)))
        return
    parts.add_text(f"{block.title}\n\n" if block.title else "")
    if block.type == "search_result":
        add_nested(parts, block.content, f"{where}.content")
    else:
        _add_document(parts, block, where)
    parts.add_text("\n\n")


def _add_document(parts: Parts, block: Block, where: str) -> None:
    source = as_struct(block.source, Source)
    if source.type == "text":
        parts.add_text(source.data)
    elif source.type == "content":
        add_nested(parts, source.content, f"{where}.source.content", ("image",))
    else:
        raise NotYet(f'not supported by this version yet: "document" of source "{source.type}"')


def _image(source: Source) -> bytes:
    if source.type != "base64":
        raise Invalid(
            f"invalid image source type: {source.type}. Only base64 images are supported."
        )
    try:
        return read_image(source.data)
    except Invalid as error:
        raise Invalid(f"invalid base64 image data: {error.message}") from error
