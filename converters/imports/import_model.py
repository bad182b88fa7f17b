"""One import, from a folder's open files to `model.gguf` in its place: plan, write, verify, publish.

The plan is made whole before a byte is written: what this build could not convert afterwards is
refused by name. Nothing appears under the final name before all of it is on the disk. Raises
ConversionError; the staging folder is removed however it ends.
"""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from converters.errors import MalformedFile
from converters.gguf import TensorInfo, parse_header
from converters.gguf_types import ValueType
from converters.gguf_writer import (
    GgufPlan,
    NewTensor,
    TypedValue,
    plan_file,
)
from converters.imports.config import Config, check_not_quantised
from converters.imports.families.bert import Pooling, read_pooling
from converters.imports.families.registry import model_class, recipe_for
from converters.imports.folder import CONFIG, Json, ModelFiles
from converters.imports.mlx_format import is_mlx_format, mlx_recipe, table_rows
from converters.imports.recipe import Placed, Recipe
from converters.imports.vocabulary import vocabulary_keys
from converters.imports.weights import slices
from converters.made_gguf import Made, make_gguf
from converters.plan import require_convertible
from converters.progress import Progress
from converters.strict_json import parse_json
from converters.targets.mlx.native import ARCHITECTURE

# `general.file_type` by the type that most weights have.
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
_EMBEDDING = "token_embd.weight"


def import_model(files: ModelFiles, name: str, final: pathlib.Path, progress: Progress) -> Made:
    """Makes the folder `final` with the GGUF in it, and what is to be told of it."""
    progress.start("plan")
    recipe, planned = plan_import(files, name)
    placed = {tensor.name: tensor for tensor in recipe.tensors}
    return make_gguf(final, planned, _told(placed, progress.advance), progress, recipe.notes)


def plan_import(files: ModelFiles, name: str) -> tuple[Recipe, GgufPlan]:
    """Pure but for reading the files' headers and texts."""
    values = files.json(CONFIG)
    if not values:
        raise MalformedFile(f"the folder has no {CONFIG}")
    config = Config(values)
    recipe = _recipe(config, values, files)
    text_config = config.part("text_config") if config.has("text_config") else config
    vocabulary, notes = vocabulary_keys(files, text_config, _rows(recipe))
    keys = _general(recipe, name) | recipe.keys | vocabulary
    tensors = [NewTensor(each.name, each.shape, each.type_name) for each in recipe.tensors]
    try:
        planned = plan_file(keys, tensors)
    except ValueError as error:
        raise MalformedFile(str(error)) from error
    require_convertible(parse_header(planned.header, planned.total_bytes))
    return msgspec.structs.replace(recipe, keys=keys, notes=recipe.notes + notes), planned


def _recipe(config: Config, values: Json, files: ModelFiles) -> Recipe:
    if is_mlx_format(values):
        return mlx_recipe(values, files.text(CONFIG), files.tensors())
    check_not_quantised(values)
    model_class(config)
    return recipe_for(config, files.tensors(), pooling_of(files))


def pooling_of(files: ModelFiles) -> Pooling:
    text = files.text("modules.json")
    if not text:
        return Pooling()
    name = "1_Pooling/config.json"
    length = Config(files.json("sentence_bert_config.json"), "sentence_bert_config.json")
    return read_pooling(
        parse_json(text, "modules.json"),
        Config(files.json(name), name),
        length.count("max_seq_length", 0),
    )


def _rows(recipe: Recipe) -> int:
    if recipe.architecture == ARCHITECTURE:
        return table_rows({each.name: each.sources[0] for each in recipe.tensors})
    found = next((each for each in recipe.tensors if each.name == _EMBEDDING), None)
    if found is None:
        raise MalformedFile("the folder holds no table of embeddings")
    return found.shape[0]


def _general(recipe: Recipe, name: str) -> dict[str, TypedValue]:
    counts: Counter[str] = Counter()
    for tensor in recipe.tensors:
        counts[tensor.type_name] += int(np.prod(tensor.shape, dtype=np.int64))
    file_type = _FILE_TYPES.get(counts.most_common(1)[0][0], 0) if counts else 0
    return {
        "general.name": TypedValue(ValueType.STRING, name),
        "general.file_type": TypedValue(ValueType.UINT32, file_type),
    }


def _told(
    placed: dict[str, Placed], advance: Callable[[int], None]
) -> Callable[[TensorInfo], Iterator[npt.NDArray[np.uint8]]]:
    def of(tensor: TensorInfo) -> Iterator[npt.NDArray[np.uint8]]:
        for piece in slices(placed[tensor.name]):
            yield piece
            advance(piece.nbytes)

    return of
