"""A GGUF as several files, as llama.cpp's `gguf-split` leaves them."""

import pathlib

import gguf
from gguf.constants import GGUFValueType


def split(source: pathlib.Path, count: int) -> list[pathlib.Path]:
    """`<stem>-00001-of-0000N.gguf` beside it: metadata in the first, tensors in each."""
    reader = gguf.GGUFReader(source)
    size = -(-len(reader.tensors) // count)
    paths = []
    for place in range(count):
        path = source.with_name(f"{source.stem}-{place + 1:05}-of-{count:05}.gguf")
        writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
        if place == 0:
            _copy_metadata(reader, writer)
        writer.add_uint16("split.no", place)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[place * size : (place + 1) * size]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        element = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], element)
