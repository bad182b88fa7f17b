"""What a conversion can fail with. Every message names the file's own thing: tensor, key, count."""

from __future__ import annotations


class ConversionError(Exception):
    """The file cannot be converted as it is; nothing was written."""


class MalformedFile(ConversionError):
    """The bytes are not a GGUF that the format allows: counts, offsets, types, text."""


class Unsupported(ConversionError):
    """A well-formed file that this build cannot convert, named: architecture, block type, feature."""


class NoSpace(ConversionError):
    """The artifact would not fit on the filesystem; both sizes are in the message."""
