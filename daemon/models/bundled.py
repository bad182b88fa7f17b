"""The small model that comes with Hearth: put on an empty shelf, so that the first chat answers."""

from __future__ import annotations

import logging
import pathlib

from daemon.errors import DaemonError
from daemon.models.create import Creator
from daemon.models.jobs import Conversions
from daemon.models.shelving import import_file
from daemon.models.store import Store

log = logging.getLogger(__name__)

BUNDLED_FILE = pathlib.Path(__file__).parent.parent / "bundled" / "ember.gguf"
BUNDLED_NAME = "ember:latest"


async def add_bundled_model(
    store: Store, conversions: Conversions, creator: Creator, file: pathlib.Path = BUNDLED_FILE
) -> bool:
    """Whether it was added. A failure is logged and not raised: a daemon without it still serves."""
    if not store.is_writable or not store.is_empty():
        return False
    try:
        async for status in import_file(store, conversions, creator, file, BUNDLED_NAME):
            log.debug("%s: %s", BUNDLED_NAME, status.status)
    except DaemonError as error:
        log.warning("the bundled model was not added: %s", error)
        return False
    return True
