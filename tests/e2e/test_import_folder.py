"""A Hugging Face folder by the command line, served: what the daemon answers is what mlx-lm says."""

from __future__ import annotations

import pathlib

import httpx
import pytest

from tests.e2e.daemon_process import DaemonProcess
from tests.e2e.test_foreign import hearth
from tests.models.hugging_face import make_folder

GREEDY = {"temperature": 0, "num_predict": 6}


def ask(daemon: DaemonProcess, model: str, prompt: str) -> str:
    body = {"model": model, "prompt": prompt, "raw": True, "stream": False, "options": GREEDY}
    answer = httpx.post(f"{daemon.url}/api/generate", json=body, timeout=120, trust_env=False)
    return answer.raise_for_status().json()["response"]


def test_a_folder_by_the_command_line(tmp_path: pathlib.Path) -> None:
    mlx_loop = pytest.importorskip("tests.parity.mlx_loop")
    from tokenizers import Tokenizer

    folder = make_folder(tmp_path / "hf", "qwen2", tie_word_embeddings=True)
    (tmp_path / "Modelfile").write_text(f"FROM {folder}\nSYSTEM short answers\n")
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = "A small fire in the hearth keeps the whole house"
    chosen = mlx_loop.MlxLoop(folder).greedy(original.encode(prompt).ids, 6)
    expected = original.decode(chosen, skip_special_tokens=False)
    with DaemonProcess(tmp_path / "home") as daemon:
        found = hearth(daemon, "import", str(folder), "mine")
        assert found.returncode == 0, found.stderr
        assert ask(daemon, "mine", prompt) == expected
        made = hearth(daemon, "create", "persona", "-f", str(tmp_path / "Modelfile"))
        assert made.returncode == 0, made.stderr
        assert ask(daemon, "persona", prompt) == expected
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        refused = hearth(daemon, "import", str(folder), "pickled")
        assert refused.returncode == 1
        assert "pytorch_model.bin holds pickled weights" in refused.stderr
