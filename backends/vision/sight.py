"""What the worker knows of a model's eyes before any image is decoded. Pure; no tower is loaded here."""

from __future__ import annotations

import hashlib
import pathlib

import msgspec

from backends.image_span import image_id
from backends.types import EngineError
from backends.vision.decode import image_header
from backends.vision.kinds import kind_of
from backends.vision.plan import ImageKind, ImagePlan
from converters.vision_artifact import VisionArtifact, read_vision


class PlannedImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image file, and what it becomes in the prompt. `name` is for people ("image 2").

    `digest` is of all that its vectors depend on: file, plan and tower.
    """

    name: str
    data: bytes
    digest: bytes
    plan: ImagePlan

    def part_id(self, part: int) -> int:
        """What stands in the prompt's ids where `plan.vectors[part]` are."""
        return image_id(hashlib.sha256(self.digest + part.to_bytes(4, "little")).digest())


class Sight:
    """`artifact` says how images are cut, `kind` does it."""

    def __init__(self, artifact: VisionArtifact, kind: ImageKind) -> None:
        self.artifact = artifact
        self.kind = kind
        tower = (artifact.source, artifact.variant, artifact.converter, artifact.form)
        self._identity = hashlib.sha256(msgspec.json.encode(tower)).digest()

    @classmethod
    def load(cls, folder: pathlib.Path, embedding_length: int) -> Sight:
        """For a model of so many numbers per position. Raises ArtifactError, EngineError("load")."""
        artifact = read_vision(folder)
        if artifact.width != embedding_length:
            raise EngineError(
                "load",
                f"the projector is for models of embedding length {artifact.width}, "
                f"this one has {embedding_length}",
            )
        return cls(artifact, kind_of(artifact.form.projector))

    def plan(self, data: bytes, name: str) -> PlannedImage:
        """From the file's first bytes. Raises EngineError("invalid") that names the image."""
        header = image_header(data, name)
        try:
            plan = self.kind.plan(self.artifact.form, header.width, header.height)
        except EngineError as error:
            raise EngineError(error.code, f"{name}: {error}") from error
        content = hashlib.sha256(data).digest() + msgspec.json.encode(plan)
        digest = hashlib.sha256(self._identity + content).digest()
        return PlannedImage(name=name, data=data, digest=digest, plan=plan)
