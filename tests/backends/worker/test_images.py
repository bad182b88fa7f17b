"""Images through a real worker process, on a scripted model and its deterministic tower."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import msgspec
import pytest
from PIL import Image

from backends.scripted.make import write_artifact, write_vision
from backends.scripted.script import Rule, Script
from backends.types import (
    Cancel,
    Chat,
    Counted,
    CountTokens,
    Delta,
    Failed,
    FromWorker,
    Limits,
    Loaded,
    Message,
    Probe,
    Progress,
    Render,
    Rendered,
    Status,
    Usage,
)
from converters.vision_artifact import VISION_FILE, read_vision
from tests.backends.vision.picture_files import file_of
from tests.backends.worker.worker_client import (
    SCRIPTED,
    WorkerClient,
    scripted_worker,
    text_of,
    wait_until,
)

MARKUP = len("<|vision_start|><|vision_end|>")
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}}).encode()


def grey(level: int, width: int = 8, height: int = 8) -> bytes:
    return file_of(Image.new("RGB", (width, height), (level, level, level)))


def user(text: str, *images: bytes, places: tuple[int, ...] = ()) -> Message:
    return Message(role="user", content=text, images=images, image_places=places)


def chat(name: str, *messages: Message, **options: object) -> Chat:
    return Chat(request_id=name, messages=messages, **options)  # type: ignore[arg-type]


def sees(count: int, level: float) -> str:
    return rf"<\|vision_start\|><image of {count} positions from {level:.2f}><\|vision_end\|>"


SCRIPT = Script(
    rules=(
        Rule(prompt=sees(4, 0.2) + "dark.*" + sees(8, 0.8), pieces=("two",)),
        Rule(prompt="left" + sees(4, 0.2) + "right", pieces=("between",)),
        Rule(prompt=sees(4, 0.2), pieces=("a dark one",)),
        Rule(prompt=sees(4, 0.8), pieces=('{"a": 8}',)),
    ),
    otherwise=Rule(pieces=("I see nothing",)),
)


def seeing_worker(folder: pathlib.Path, script: Script = SCRIPT, **options: Any) -> WorkerClient:
    write_vision(folder / "eyes")
    return scripted_worker(folder, script, projector=str(folder / "eyes"), **options)


def ask(worker: WorkerClient, request: Chat) -> list[FromWorker]:
    worker.send(request)
    return worker.read_until_closed(request.request_id)[request.request_id]


def usage_of(messages: list[FromWorker]) -> Usage:
    last = messages[-1]
    assert isinstance(last, Delta)
    assert last.usage is not None
    return last.usage


def failure(messages: list[FromWorker]) -> tuple[str, str]:
    last = messages[-1]
    assert isinstance(last, Failed)
    return last.code, last.message


def test_a_model_with_eyes_says_so_and_sees(tmp_path: pathlib.Path):
    write_artifact(tmp_path, SCRIPT)
    write_vision(tmp_path / "eyes")
    with WorkerClient(SCRIPTED, tmp_path / "log") as worker:
        loaded = worker.load(tmp_path, "scripted", projector=str(tmp_path / "eyes"))
        assert isinstance(loaded, Loaded)
        assert "vision" in loaded.capabilities
        assert text_of(ask(worker, chat("a", user("what?", grey(51))))) == "a dark one"
        assert text_of(ask(worker, chat("b", user("what?")))) == "I see nothing"
        between = user("leftright", grey(51), places=(4,))
        assert text_of(ask(worker, chat("c", between))) == "between"
        first, second = user("dark", grey(51)), user("light", grey(204, 16, 8))
        assert text_of(ask(worker, chat("d", first, second))) == "two"


def test_without_a_projector_images_are_refused_by_name(tmp_path: pathlib.Path):
    with scripted_worker(tmp_path, SCRIPT) as worker:
        answer = ask(worker, chat("a", user("what?", grey(51))))
        assert failure(answer) == (
            "invalid",
            "this model is missing data required for image input",
        )
        assert text_of(ask(worker, chat("b", user("what?")))) == "I see nothing"


def test_positions_count_everywhere(tmp_path: pathlib.Path):
    with seeing_worker(tmp_path) as worker:
        request = chat("a", user("what?", grey(51)), want_context=True)
        text = "user: <|vision_start|><|vision_end|>what?\nassistant: "
        answer = ask(worker, request)
        assert usage_of(answer).prompt_tokens == 1 + len(text) + 4
        last = answer[-1]
        assert isinstance(last, Delta)
        assert last.context_ids == (256, *text.encode(), *b"a dark one")
        worker.send(CountTokens(request_id="n", chat=request))
        assert worker.read() == Counted(request_id="n", tokens=1 + len(text) + 4)
        worker.send(Render(request_id="r", chat=request))
        rendered = worker.read()
        assert isinstance(rendered, Rendered)
        assert rendered.prompt == "user: [img-0]what?\nassistant: "


def test_context_that_came_back_can_be_given_again(tmp_path: pathlib.Path):
    with seeing_worker(tmp_path) as worker:
        first = ask(worker, chat("a", user("what?", grey(51)), want_context=True))[-1]
        assert isinstance(first, Delta)
        again = ask(worker, chat("b", user("and?", grey(204)), context_ids=first.context_ids))
        assert text_of(again) == '{"a": 8}'


def test_a_format_and_images_are_both_waited_for(tmp_path: pathlib.Path):
    with seeing_worker(tmp_path) as worker:
        answer = ask(worker, chat("a", user("what?", grey(204)), format=SCHEMA))
        assert text_of(answer) == '{"a": 8}'
        bad = ask(worker, chat("b", user("what?", grey(204)), format=b'{"type": "nonsense"}'))
        assert failure(bad)[0] == "invalid"
        broken = ask(worker, chat("c", user("what?", grey(204)[:50]), format=SCHEMA))
        assert failure(broken)[0] == "invalid"
        assert "image 1 cannot be read" in failure(broken)[1]
        assert text_of(ask(worker, chat("d", user("what?", grey(204)), format=SCHEMA))) != ""


def test_the_daemon_hears_of_each_image(tmp_path: pathlib.Path):
    with seeing_worker(tmp_path) as worker:
        images = [grey(level) for level in range(0, 240, 8)]
        answer = ask(worker, chat("a", user("", *images)))
        told = [message for message in answer if isinstance(message, Progress)]
        total = usage_of(answer).prompt_tokens
        waiting = [message for message in told if message.done == 0]
        assert len(waiting) == len(images) - 1
        assert {message.total for message in told} == {total}
        worker.send(Probe(request_id="p"))
        status = worker.read_first(Status)
        assert status.moved >= 2 * len(images)
        assert status.cached_bytes == len(images) * 4 * 4
        assert text_of(ask(worker, chat("b", user("", *images)))) != ""
        worker.send(Probe(request_id="q"))
        assert worker.read_first(Status).cached_bytes == status.cached_bytes


def test_requests_with_and_without_images_mix(tmp_path: pathlib.Path):
    with seeing_worker(tmp_path) as worker:
        names = [f"r{n}" for n in range(30)]
        for number, name in enumerate(names):
            images = [grey(51) if number % 3 == 1 else grey(204)] if number % 3 else []
            worker.send(chat(name, user("what?", *images)))
        answers = worker.read_until_closed(*names)
        expected = ("I see nothing", "a dark one", '{"a": 8}')
        assert [text_of(answers[name]) for name in names] == [
            expected[number % 3] for number in range(30)
        ]


def test_what_is_cancelled_while_its_images_wait_is_closed_once(tmp_path: pathlib.Path):
    large = [grey(level, 2048, 1024) for level in range(9)]
    with seeing_worker(tmp_path) as worker:
        for place, name in enumerate(("a", "b", "c")):
            worker.send(chat(name, user("what?", *large[3 * place : 3 * place + 3])))
        for name in ("a", "b", "c"):
            worker.send(Cancel(request_id=name))
        answers = worker.read_until_closed("a", "b", "c")
        for messages in answers.values():
            last = messages[-1]
            assert (isinstance(last, Failed) and last.code == "cancelled") or (
                isinstance(last, Delta) and last.finish is not None
            )
        assert text_of(ask(worker, chat("d", user("what?", grey(51))))) == "a dark one"


def test_a_history_that_is_too_long_loses_its_oldest_images(tmp_path: pathlib.Path):
    with seeing_worker(tmp_path) as worker:
        first, second = user("dark", grey(204, 16, 8)), user("light", grey(51))
        whole = ask(worker, chat("a", first, second))
        room = usage_of(whole).prompt_tokens
        cut = ask(worker, chat("b", first, second, limits=Limits(context_length=room)))
        assert text_of(cut) == "a dark one"
        assert usage_of(cut).dropped_tokens == len("user: dark\n") + MARKUP + 8
        short = Limits(context_length=40)
        assert failure(ask(worker, chat("c", second, limits=short)))[0] == "too_long"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 7}, "embedding length 7, this one has 1"),
        ({"format": 99}, "artifact format 99"),
    ],
)
def test_a_projector_that_does_not_fit_fails_the_load(
    tmp_path: pathlib.Path, changes: dict[str, int], reason: str
):
    write_artifact(tmp_path, SCRIPT)
    eyes = tmp_path / "eyes"
    write_vision(eyes)
    changed = msgspec.structs.replace(read_vision(eyes), **changes)
    (eyes / VISION_FILE).write_bytes(msgspec.json.encode(changed))
    with WorkerClient(SCRIPTED, tmp_path / "log") as worker:
        answer = worker.load(tmp_path, "scripted", projector=str(eyes))
        assert isinstance(answer, Failed)
        assert answer.code == "load"
        assert reason in answer.message
        assert worker.exit_code() == 71


def test_an_unknown_kind_of_projector_fails_the_load(tmp_path: pathlib.Path):
    write_artifact(tmp_path, SCRIPT)
    eyes = tmp_path / "eyes"
    write_vision(eyes)
    known = read_vision(eyes)
    form = msgspec.structs.replace(known.form, projector="resampler")
    (eyes / VISION_FILE).write_bytes(msgspec.json.encode(msgspec.structs.replace(known, form=form)))
    with WorkerClient(SCRIPTED, tmp_path / "log") as worker:
        answer = worker.load(tmp_path, "scripted", projector=str(eyes))
        assert isinstance(answer, Failed)
        assert "'resampler'" in answer.message


def test_the_process_leaves_while_images_are_encoded(tmp_path: pathlib.Path):
    large = [grey(level, 2048, 1024) for level in range(3)]
    with seeing_worker(tmp_path) as worker:
        worker.send(chat("a", user("what?", *large)))
        worker.connection.close()
        wait_until(lambda: worker.process.poll() is not None)
        assert worker.process.returncode == 0
