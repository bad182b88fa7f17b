"""Where a prompt with images may be cut: not within a span whose positions see each other.

Other images may be cut anywhere. Requests that must repeat are fed on a fixed grid, whose borders within
such a span move to its end; so equal beginnings have equal borders.
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.image_span import ImageSpan


def border_before(images: Sequence[ImageSpan], place: int) -> int:
    """The last border that is not behind `place`."""
    for span in images:
        if span.is_bidirectional and span.start < place < span.start + span.length:
            return span.start
    return place


def border_after(images: Sequence[ImageSpan], place: int) -> int:
    """The first border that is not before `place`."""
    for span in images:
        end = span.start + span.length
        if span.is_bidirectional and span.start < place < end:
            return end
    return place


def next_grid_border(images: Sequence[ImageSpan], place: int, step: int) -> int:
    """The first border of the grid of `step` ids behind `place`."""
    on_grid = place // step * step
    while (border := border_after(images, on_grid)) <= place:
        on_grid += step
    return border


def last_grid_border(images: Sequence[ImageSpan], place: int, step: int) -> int:
    """The last border of the grid of `step` ids that is not behind `place`; 0 is one."""
    on_grid = place // step * step
    while on_grid > 0 and border_after(images, on_grid) > place:
        on_grid -= step
    return border_after(images, on_grid)


def last_fed(images: Sequence[ImageSpan], length: int) -> int:
    """How many of the last of `length` ids must be fed together: 1, or a span that they end with."""
    return length - border_before(images, length - 1)
