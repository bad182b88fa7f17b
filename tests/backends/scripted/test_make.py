from __future__ import annotations

import pathlib

import tokenizers

from backends.scripted.make import write_artifact
from backends.scripted.script import BOS_ID, EOS_ID, Script, read_script
from converters.artifact import TOKENIZER_FILE, read_artifact


def test_the_tokenizer_gives_the_bytes_and_back(tmp_path: pathlib.Path):
    write_artifact(tmp_path, Script())
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / TOKENIZER_FILE))
    text = "".join(chr(code) for code in range(0x250)) + "☀\U0001f600 \n  end"
    assert tokenizer.encode(text, add_special_tokens=False).ids == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.encode("a<eos><bos>").ids == [97, EOS_ID, BOS_ID]


def test_the_artifact_and_script_read_back(tmp_path: pathlib.Path):
    script = Script(context_length=77)
    written = write_artifact(tmp_path / "deep" / "er", script, source="f" * 64)
    assert read_artifact(tmp_path / "deep" / "er") == written
    assert (written.source, written.context_length) == ("f" * 64, 77)
    assert written.special.end_ids == (EOS_ID,)
    assert read_script(tmp_path / "deep" / "er") == script
