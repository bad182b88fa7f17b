"""What a GGUF file of another program is called here. Pure; the same folder always gives the same names.

- Hugging Face cache: `hf.co/ORG/REPOSITORY:QUANT`, as a pull of it would be called.
- `PUBLISHER/REPOSITORY/FILE` at any depth (LM Studio's folders): `PUBLISHER/REPOSITORY:QUANT`.
- `FOLDER/FILE`: `FOLDER/FILE-WITHOUT-QUANT:QUANT`; a file alone: `FILE-WITHOUT-QUANT:QUANT`.

Where a file name says no quantisation the tag is `latest`, or in a repository the file's name. What a
name cannot hold becomes `-`. Names in use get `-2`, `-3` … behind the tag.
"""

from __future__ import annotations

import re
from collections.abc import Container

from daemon.models.name import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName

HUGGING_FACE_HOST = "hf.co"
_REPOSITORY_PREFIX = "models--"
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|BF16|F16|F32|FP16|MXFP4(?:_MOE)?|NVFP4))$",
    re.IGNORECASE,
)
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_MAX_PART = 80


def file_name_parts(stem: str) -> tuple[str, str]:
    """(name without quantisation, quantisation or ""). The number of a split part belongs to none."""
    whole = _PART.sub("", stem)
    match = _QUANT.search(whole)
    if match is None or not match.start():
        return whole, ""
    return whole[: match.start()], match[1]


def name_for(relative: tuple[str, ...]) -> ModelName:
    """The wanted name of a file by its path below its place."""
    base, quant = file_name_parts(_stem(relative[-1]))
    repository = relative[0].removeprefix(_REPOSITORY_PREFIX)
    if repository != relative[0] and "--" in repository:
        owner, _, model = repository.partition("--")
        return _name(HUGGING_FACE_HOST, owner, model, quant or base)
    folders = relative[:-1]
    if len(folders) >= 2:
        return _name(DEFAULT_HOST, folders[-2], folders[-1], quant or base)
    owner = folders[-1] if folders else DEFAULT_NAMESPACE
    return _name(DEFAULT_HOST, owner, base, quant or DEFAULT_TAG)


def unused_name(wanted: ModelName, taken: Container[str]) -> ModelName:
    """`wanted`, or with a number behind its tag. `taken` holds full names in lower case."""
    name, number = wanted, 1
    while name.full.casefold() in taken:
        number += 1
        ending = f"-{number}"
        tag = wanted.tag[: _MAX_PART - len(ending)] + ending
        name = ModelName(wanted.host, wanted.namespace, wanted.model, tag)
    return name


def _stem(file_name: str) -> str:
    return file_name[: -len(".gguf")] if file_name.lower().endswith(".gguf") else file_name


def _name(host: str, namespace: str, model: str, tag: str) -> ModelName:
    return ModelName(host, _cleaned(namespace, ""), _cleaned(model, "."), _cleaned(tag, "."))


def _cleaned(text: str, also: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_-" + also) else "-" for c in text)
    return kept.lstrip("-.")[:_MAX_PART] or "model"
