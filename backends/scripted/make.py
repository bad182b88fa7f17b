"""Writes the artifact folder of a scripted model: artifact, byte-level tokenizer, script."""

from __future__ import annotations

import pathlib

import msgspec

from backends.scripted.script import BOS_ID, EOS_ID, SCRIPT_FILE, VOCABULARY, Script
from converters.artifact import (
    ARTIFACT_FILE,
    ARTIFACT_FORMAT,
    CONVERTER_VERSION,
    TOKENIZER_FILE,
    Artifact,
    SpecialTokens,
)
from converters.vision_artifact import VISION_FILE, ImageForm, VisionArtifact

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_artifact(
    folder: pathlib.Path, script: Script, *, source: str = "0" * 64, chat_template: str = ""
) -> Artifact:
    """Makes `folder` if need be. `chat_template` empty: a plain one (role: content)."""
    folder.mkdir(parents=True, exist_ok=True)
    artifact = scripted_artifact(script, source, chat_template or CHAT_TEMPLATE)
    (folder / ARTIFACT_FILE).write_bytes(msgspec.json.encode(artifact))
    (folder / TOKENIZER_FILE).write_bytes(msgspec.json.encode(byte_tokenizer()))
    (folder / SCRIPT_FILE).write_bytes(msgspec.json.encode(script))
    return artifact


def write_vision(folder: pathlib.Path, *, source: str = "1" * 64) -> VisionArtifact:
    """A tower for scripted models; a position is 4 × 4 pixels of the image. Makes `folder` if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    artifact = VisionArtifact(
        format=ARTIFACT_FORMAT,
        converter=CONVERTER_VERSION,
        source=source,
        variant=f"vision-scripted-f{ARTIFACT_FORMAT}",
        name="scripted tower",
        form=ImageForm(
            projector="qwen2vl_merger",
            patch_size=2,
            merge=2,
            min_pixels=16,
            max_pixels=1 << 14,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            is_grouped=True,
            head_size=4,
        ),
        width=1,
        inputs=("patches", "cos", "sin"),
    )
    (folder / VISION_FILE).write_bytes(msgspec.json.encode(artifact))
    return artifact


def scripted_artifact(script: Script, source: str, chat_template: str) -> Artifact:
    return Artifact(
        format=ARTIFACT_FORMAT,
        converter=CONVERTER_VERSION,
        source=source,
        variant=f"scripted-f{ARTIFACT_FORMAT}",
        architecture="scripted",
        model_name="scripted",
        block_count=1,
        embedding_length=1,
        heads=1,
        kv_heads=(1,),
        head_size=1,
        vocabulary=VOCABULARY,
        context_length=script.context_length,
        kv_bytes_per_token=1024,
        special=SpecialTokens(bos_id=BOS_ID, eos_id=EOS_ID, end_ids=(EOS_ID,), add_bos=True),
        tokenizer_kind="gpt2",
        pre_tokenizer="default",
        chat_template=chat_template,
        resident_bytes={"cpu": 1 << 20},
    )


def byte_characters() -> dict[int, str]:
    """The printable stand-in of each byte that byte-level tokenizers use (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in table)
    return table | {byte: chr(256 + place) for place, byte in enumerate(others)}


def byte_tokenizer() -> dict[str, object]:
    """A `tokenizer.json` whose ids are the bytes themselves, plus <bos> and <eos>."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = {BOS_ID: "<bos>", EOS_ID: "<eos>"}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": token_id, "content": text, **flags, "special": True}
        for token_id, text in special.items()
    ]
    vocabulary = {character: byte for byte, character in byte_characters().items()}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level | {"use_regex": False},
        "post_processor": None,
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary | {text: token_id for token_id, text in special.items()},
            "merges": [],
        },
    }
