"""Models with eyes at the API: who says that it sees, and what others are told."""

from __future__ import annotations

import base64
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from backends.scripted.make import write_vision
from converters.vision_artifact import ImageForm
from daemon.api.options import resolve_options
from tests.daemon.api.rig import Rig, api_rig
from tests.models.random_vision import png

NOT_YET = "the projector type 'mlp' is not supported yet"
IMAGE = base64.b64encode(png(16, 8)).decode()
POSITIONS = 4
FORM = ImageForm(projector="mlp", patch_size=14, image_size=28)
URI = f"data:image/png;base64,{IMAGE}"
SOURCE = {"type": "base64", "media_type": "image/png", "data": IMAGE}
ASKS: list[tuple[str, dict[str, Any]]] = [
    ("/api/generate", {"prompt": "x", "images": [IMAGE]}),
    ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": [IMAGE]}]}),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": URI}]}]},
    ),
    (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URI}]}]},
    ),
    (
        "/v1/messages",
        {
            "max_tokens": 50,
            "messages": [{"role": "user", "content": [{"type": "image", "source": SOURCE}]}],
        },
    ),
    (
        "/v1/messages/count_tokens",
        {"messages": [{"role": "user", "content": [{"type": "image", "source": SOURCE}]}]},
    ),
]


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    eyes = msgspec.structs.replace(write_vision(tmp_path / "eyes"), form=FORM, inputs=("patches",))
    async with api_rig(tmp_path) as rig:
        await rig.add_model("sees", eyes=eyes)
        await rig.add_model("blind", eyes=eyes, blindness=NOT_YET)
        await rig.add_model("misfit", eyes=msgspec.structs.replace(eyes, width=3))
        await rig.add_model("plain")
        yield rig


def error(answer: Any) -> str:
    found = answer.json()["error"]
    return found if isinstance(found, str) else found["message"]


async def test_lists_say_who_sees(rig: Rig) -> None:
    expected = {
        "sees:latest": ["completion", "vision"],
        "misfit:latest": ["completion", "vision"],
        "blind:latest": ["completion"],
        "plain:latest": ["completion"],
    }
    tags = (await rig.client.get("/api/tags")).json()["models"]
    assert {model["name"]: model["capabilities"] for model in tags} == expected
    cards = (await rig.client.get("/v1/models")).json()["data"]
    assert {card["id"]: card["capabilities"] for card in cards} == expected
    card = (await rig.client.get("/v1/models/sees")).json()
    assert card["capabilities"] == ["completion", "vision"]
    shown = (await rig.post("/api/show", model="blind")).json()
    assert shown["capabilities"] == ["completion"]
    assert shown["hearth"]["vision"] == {"projector": "mlp", "refusal": NOT_YET}


@pytest.mark.parametrize(("path", "body"), ASKS)
async def test_who_cannot_see_says_why(rig: Rig, path: str, body: dict[str, Any]) -> None:
    plain = await rig.post(path, model="plain", **body)
    named = "registry.ollama.ai/library/{}:latest does not support vision"
    assert (plain.status_code, error(plain)) == (400, named.format("plain"))
    blind = await rig.post(path, model="blind", **body)
    assert (blind.status_code, error(blind)) == (501, f"{named.format('blind')}: {NOT_YET}")
    assert not rig.services.residency.loaded()


@pytest.mark.parametrize(("path", "body"), ASKS)
async def test_what_turns_out_at_the_load_is_said(
    rig: Rig, path: str, body: dict[str, Any]
) -> None:
    answer = await rig.post(path, model="misfit", stream=False, **body)
    assert answer.status_code == 501
    assert "takes no images here: the projector makes 3 numbers" in error(answer)
    said = await rig.post("/api/generate", model="misfit", prompt="hi", stream=False)
    assert said.json()["response"] == "Hello wörld."


@pytest.mark.parametrize(
    ("asked", "trained", "has_eyes", "expected"),
    [(64, 0, True, 2048), (64, 0, False, 64), (64, 1024, True, 1024), (4096, 0, True, 4096)],
)
def test_images_need_room(asked: int, trained: int, has_eyes: bool, expected: int) -> None:
    options = resolve_options(
        {"num_ctx": asked},
        {},
        default_context_length=4096,
        trained_context_length=trained,
        has_eyes=has_eyes,
    )
    assert options.limits.context_length == options.wanted_context_length == expected


@pytest.mark.parametrize(("path", "body"), ASKS)
async def test_who_sees_answers(rig: Rig, path: str, body: dict[str, Any]) -> None:
    answer = await rig.post(path, model="sees", stream=False, **body)
    assert answer.status_code == 200
    assert "input_tokens" in answer.text if path.endswith("count_tokens") else "Hel" in answer.text
    (loaded,) = rig.services.residency.loaded()
    assert loaded.name == "sees:latest"


async def counted(rig: Rig, *content: dict[str, Any]) -> int:
    body = {"model": "sees", "messages": [{"role": "user", "content": list(content)}]}
    return (await rig.client.post("/v1/messages/count_tokens", json=body)).json()["input_tokens"]


async def test_images_count_by_their_positions(rig: Rig) -> None:
    text, image = {"type": "text", "text": "see"}, {"type": "image", "source": SOURCE}
    bare, one, two = [await counted(rig, *[image] * count, text) for count in range(3)]
    assert one - bare == two - one == POSITIONS
    asked = await rig.post("/api/chat", model="sees", messages=[USER], stream=False)
    assert asked.json()["prompt_eval_count"] == one


USER = {"role": "user", "content": "see", "images": [IMAGE]}


@pytest.mark.parametrize(
    ("path", "body", "prompt", "count"),
    [
        ("/api/chat", {"messages": [USER]}, "user: {0}see\nassistant: ", 1),
        (
            "/api/chat",
            {"messages": [USER, USER | {"content": "and [img]?"}]},
            "user: {0}see\nuser: and {1}?\nassistant: ",
            2,
        ),
        ("/api/generate", {"prompt": "a", "images": [IMAGE] * 2}, "user: {0}{1}a\nassistant: ", 2),
        ("/api/generate", {"prompt": "a", "images": [IMAGE], "raw": True}, "{0}a", 1),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "a"},
                            {"type": "image_url", "image_url": {"url": URI}},
                            {"type": "text", "text": "b"},
                        ],
                    }
                ]
            },
            "user: a{0}b\nassistant: ",
            1,
        ),
    ],
)
async def test_a_rendered_prompt_numbers_its_images(
    rig: Rig, path: str, body: dict[str, Any], prompt: str, count: int
) -> None:
    answer = await rig.post(path, model="sees", _debug_render_only=True, stream=False, **body)
    marks = [f"[img-{number}]" for number in range(count)]
    assert answer.json()["_debug_info"] == {
        "rendered_template": prompt.format(*marks),
        "image_count": count,
    }


@pytest.mark.parametrize(("path", "body"), ASKS[:5])
async def test_what_is_no_picture_is_the_client_s_fault(
    rig: Rig, path: str, body: dict[str, Any]
) -> None:
    broken = msgspec.json.decode(
        msgspec.json.encode(body).replace(IMAGE.encode(), base64.b64encode(b"no picture"))
    )
    answer = await rig.post(path, model="sees", stream=False, **broken)
    assert answer.status_code == 400
    assert "image 1 cannot be read" in error(answer)
    assert (await rig.post(path, model="sees", stream=False, **body)).status_code == 200
