"""What can be read of content that is not plain text itself: documents, search results, images.

Nothing of it is left out silently: what has no text here is refused by name. Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from daemon.api.anthropic.wire import Block, Source
from daemon.api.body import as_struct
from daemon.api.conversation import refuse_later_fields
from daemon.errors import Invalid, NotYet

ATTACHMENTS = ("image", "document", "search_result")


def nested_text(content: Any, where: str, attachments: Collection[str] = ()) -> str:
    """The text of a string or of blocks in a list: texts, and `attachments` among them.

    Raises Invalid, NotYet.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise Invalid(f"{where}: expected a string or a list of content blocks")
    blocks = [as_struct(item, Block) for item in cast("list[Any]", content)]
    return "".join(_block_text(block, where, attachments) for block in blocks)


def _block_text(block: Block, where: str, attachments: Collection[str]) -> str:
    if block.type == "text":
        return block.text
    if block.type in attachments:
        return attached_text(block, where)
    raise Invalid(f'{where}: content blocks of type "{block.type}" are not supported here')


def attached_text(block: Block, where: str) -> str:
    """The text of a block of `ATTACHMENTS`. Raises Invalid, NotYet."""
    match block.type:
        case "search_result":
            return _titled(block.title, nested_text(block.content, f"{where}.content"))
        case "document":
            return _titled(block.title, _document_text(block, where))
        case _:
            _refuse_image(as_struct(block.source, Source))
            return ""


def _document_text(block: Block, where: str) -> str:
    source = as_struct(block.source, Source)
    if source.type == "text":
        return source.data
    if source.type == "content":
        return nested_text(source.content, f"{where}.source.content", ("image",))
    raise NotYet(f'not supported by this version yet: "document" of source "{source.type}"')


def _refuse_image(source: Source) -> None:
    if source.type != "base64":
        raise Invalid(
            f"invalid image source type: {source.type}. Only base64 images are supported."
        )
    refuse_later_fields({"images": True})


def _titled(title: str, text: str) -> str:
    return f"{title}\n\n{text}\n\n" if title else f"{text}\n\n"
