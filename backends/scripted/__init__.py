"""The scripted backend: replays text for API tests, chosen only by configuration. Not a model."""

from __future__ import annotations

import pathlib
import time
from typing import TYPE_CHECKING

from backends.engine.contract import Engine
from backends.types import (
    EngineError,
    Load,
)
from converters.vision_artifact import VisionArtifact

if TYPE_CHECKING:
    from backends.scripted.tower import ScriptedTower


class ScriptedBackend:
    name = "scripted"
    target = "scripted"

    def load(self, load: Load) -> Engine:
        """An engine that replays `script.json` of `load.artifact`. Raises EngineError."""
        from backends.scripted.engine import ScriptedEngine, strike
        from backends.scripted.script import read_script

        script = read_script(pathlib.Path(load.artifact))
        time.sleep(script.load_seconds)
        strike(script.load_fault)
        if script.load_fault == "fail":
            raise EngineError("load", "the script asked for this failure")
        return ScriptedEngine(script, rows=load.rows, context_length=load.context_length)

    def load_tower(
        self, folder: pathlib.Path, artifact: VisionArtifact, load: Load
    ) -> ScriptedTower:
        """It says deterministic numbers of images; there is nothing to load."""
        from backends.scripted.tower import ScriptedTower

        return ScriptedTower(artifact)


backend = ScriptedBackend()
