"""The older forms of /api/create, templates over the API, and other programs' folders over HTTP."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psutil
import pytest

from backends.scripted.script import Rule, Script
from converters.inspection import Inspection
from daemon.models.marker import MARKER_FILE
from tests.daemon.api.rig import SCRIPT, Rig, api_rig, lines

JINJA = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
GO = (
    "{{ if .Suffix }}<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ else }}"
    "{{ range .Messages }}[{{ .Role }}]{{ .Content }}{{ end }}{{ range .Tools }}{{ . }}{{ end }}"
    "{{ end }}"
)


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path / "home", create_path=True) as made:
        await made.add_model("plain", system="Be kind.", chat_template=JINJA)
        yield made


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def created(rig: Rig, model: str, text: str, **fields: Any) -> list[str]:
    answer = await rig.post("/api/create", model=model, modelfile=text, **fields)
    assert answer.status_code == 200, answer.text
    statuses = lines(answer)
    assert statuses[-1] == {"status": "success"}, statuses
    return [line["status"] for line in statuses]


async def created_at(rig: Rig, path: str) -> httpx.Response:
    return await rig.client.post("/api/create", json={"name": "m", "path": path})


async def shown(rig: Rig, model: str) -> dict[str, Any]:
    answer = await rig.post("/api/show", model=model)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def rendered(rig: Rig, path: str, **body: Any) -> str:
    answer = await rig.post(path, _debug_render_only=True, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()["_debug_info"]["rendered_template"]


TEXT = f'''\
FROM plain
TEMPLATE """{GO}"""
SYSTEM """Two
"lines" """
PARAMETER temperature 0.5
PARAMETER stop <a>
PARAMETER stop "b
"
RENDERER r
PARSER p
REQUIRES v0.14.0
LICENSE MIT
MESSAGE user hi
MESSAGE assistant """say "x"
"""
'''


async def test_a_modelfile_and_its_round_trip(rig: Rig) -> None:
    statuses = await created(rig, "one", TEXT)
    assert statuses[0] == "parsing modelfile"
    first = await shown(rig, "one")
    assert first["system"] == 'Two\n"lines" '
    assert first["template"] == GO
    assert first["requires"] == "0.14.0"
    assert "RENDERER r\nPARSER p\nREQUIRES 0.14.0\n" in first["modelfile"]
    assert first["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": 'say "x"\n'},
    ]
    await created(rig, "two", first["modelfile"])
    second = await shown(rig, "two")
    differing = {key for key in first if first[key] != second.get(key)}
    assert differing <= {"modified_at", "modelfile", "details"}
    assert second["modelfile"] == first["modelfile"].replace("one:latest", "two:latest")


async def test_names_blobs_and_fields_of_the_request(rig: Rig) -> None:
    weights = digest_of(b"GGUF plain")
    answer = await rig.post(
        "/api/create",
        name="by-digest",
        modelfile=f"FROM @sha256:{weights}\nSYSTEM old",
        system="new",
        stream=False,
    )
    assert answer.json() == {"status": "success"}
    assert (await shown(rig, "by-digest"))["system"] == "new"
    blob = rig.services.store.blobs.path(weights)
    await created(rig, "by-path", f"FROM {blob}")
    assert (await shown(rig, "by-path"))["modelfile"].count(str(blob)) == 1


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("SYSTEM x", 400, "no FROM line"),
        ("FROM a\nNONSENSE b", 400, "(line 2): command must be one of"),
        ("FROM a\nPARAMETER nope 1", 400, "unknown parameter 'nope'"),
        ("FROM plain\nTEMPLATE {{ .X", 400, "template error: template: :1: unclosed action"),
        ("FROM a\nFROM b", 400, "FROM names two models: a, b"),
        ("FROM /etc/passwd", 400, "not a file that this request can name"),
        ("FROM ./x.gguf", 400, "not a file that this request can name"),
        ("FROM plain\nADAPTER x", 400, "ADAPTER x: not a file that this request can name"),
        (f"FROM plain\nADAPTER @sha256:{'0' * 64}", 500, "no such file"),
        ("FROM plain\nDRAFT x", 501, "DRAFT"),
        (f"FROM @sha256:{'0' * 64}", 500, "no such file"),
    ],
)
async def test_bad_modelfiles(rig: Rig, text: str, status: int, message: str) -> None:
    answer = await rig.post("/api/create", model="m", modelfile=text, stream=False)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


async def test_a_modelfile_of_this_machine(rig: Rig, tmp_path: pathlib.Path) -> None:
    data = b"GGUF beside"
    rig.models.add(Inspection(digest=digest_of(data), size=len(data)), SCRIPT)
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "w.gguf").write_bytes(data)
    (folder / "Modelfile").write_text("FROM ./w.gguf\nSYSTEM s")
    answer = await created_at(rig, str(folder / "Modelfile"))
    assert lines(answer)[0] == {"status": "parsing modelfile"}
    assert lines(answer)[-1] == {"status": "success"}
    assert (await shown(rig, "m"))["details"]["parent_model"] == "w.gguf"
    for path, status in (("Modelfile", 400), (str(folder / "none"), 404), (str(folder), 404)):
        refused = await created_at(rig, path)
        assert refused.status_code == status, path


async def test_a_path_needs_the_owners_word(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path) as rig:
        answer = await created_at(rig, "/etc/passwd")
        assert answer.status_code == 403
        assert "HEARTH_CREATE_PATH=1" in answer.json()["error"]


async def test_a_model_and_its_projector(rig: Rig) -> None:
    files = {"w.gguf": b"GGUF w", "mmproj.gguf": b"GGUF p", "lora.gguf": b"GGUF l"}
    kinds = {"w.gguf": "model", "mmproj.gguf": "projector", "lora.gguf": "adapter"}
    given: dict[str, str] = {}
    for name, data in files.items():
        await rig.client.post(f"/api/blobs/sha256:{digest_of(data)}", content=data)
        metadata: dict[str, Any] = (
            {"clip.has_vision_encoder": True} if kinds[name] == "projector" else {}
        )
        found = Inspection(
            digest=digest_of(data), size=len(data), kind=kinds[name], metadata=metadata
        )
        rig.models.add(found, SCRIPT)
        given[name] = f"sha256:{digest_of(data)}"
    adapter = given.pop("lora.gguf")
    answer = await rig.post("/api/create", model="sees", files=dict(reversed(given.items())))
    assert lines(answer)[-1] == {"status": "success"}
    shown_model = await shown(rig, "sees")
    assert shown_model["projector_info"] == {"clip.has_vision_encoder": True}
    assert "vision" not in shown_model["capabilities"]  # images are refused
    await created(rig, "again", shown_model["modelfile"])
    assert (await shown(rig, "again"))["projector_info"] == shown_model["projector_info"]
    refused = await rig.post("/api/create", model="x", files={"lora.gguf": adapter}, stream=False)
    assert (refused.status_code, "adapter (lora.gguf)" in refused.text) == (501, True)


# ---- templates ----


async def test_templates_of_models_and_requests(rig: Rig) -> None:
    await created(rig, "go", f"FROM plain\nTEMPLATE {GO}")
    generate = {"model": "go", "prompt": "hi"}
    assert await rendered(rig, "/api/generate", **generate) == "[system]Be kind.[user]hi"
    turns = [{"role": "user", "content": "hi"}]
    assert await rendered(rig, "/api/chat", model="go", messages=turns) == (
        "[system]Be kind.[user]hi"
    )
    plain = {"model": "plain", "prompt": "hi"}
    assert await rendered(rig, "/api/generate", **plain) == "<system>Be kind.<user>hi"
    legacy = "{{ .System }}|{{ .Prompt }}|"
    assert await rendered(rig, "/api/generate", **plain, template=legacy) == "Be kind.|hi|"
    assert await rendered(rig, "/api/generate", **generate, suffix="ho") == "<P>hi<S>ho<M>"
    bad = await rig.post("/api/generate", **plain, template="{{ .Prompt | nope }}")
    assert (bad.status_code, bad.json()["error"]) == (
        500, 'template: :1: function "nope" not defined',
    )  # fmt: skip
    failing = await rig.post("/api/generate", **plain, template="{{ .Prompt.X.Y }}")
    assert (failing.status_code, "template: :1:" in failing.text) == (400, True)


async def test_a_suffix_is_answered(rig: Rig) -> None:
    await created(rig, "go", f"FROM plain\nTEMPLATE {GO}")
    assert "insert" in (await shown(rig, "go"))["capabilities"]
    answer = await rig.post("/api/generate", model="go", prompt="count", suffix="x", stream=False)
    assert answer.json()["response"] == "one two three"
    refused = await rig.post("/api/generate", model="plain", prompt="a", suffix="x")
    assert (refused.status_code, "does not support insert" in refused.text) == (400, True)


async def test_fifty_personas_share_one_worker(rig: Rig) -> None:
    for number in range(50):
        await rig.post(
            "/api/create", model=f"p{number}", **{"from": "plain"}, system=f"You are {number}."
        )
    for number in (0, 25, 49):
        body = {"model": f"p{number}", "prompt": "hi"}
        assert await rendered(rig, "/api/generate", **body) == f"<system>You are {number}.<user>hi"
    workers = [
        child for child in psutil.Process().children() if "backends.worker" in child.cmdline()
    ]
    assert len(workers) == 1
    assert len(await rig_names(rig)) == 51


async def rig_names(rig: Rig) -> list[str]:
    return [model["name"] for model in (await rig.client.get("/api/tags")).json()["models"]]


# ---- other programs' folders ----


async def test_a_foreign_folder(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "pub/models"
    file = root / "pub/repo/Chat-Q4_0.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF foreign")
    async with api_rig(tmp_path / "home", foreign=(root,)) as rig:
        foreign = rig.services.foreign
        await foreign.refresh()
        script = Script(otherwise=Rule(pieces=("I was there.",)), context_length=512)
        provisional = foreign.models()[0].model_digest
        for digest in (provisional, digest_of(b"GGUF foreign")):
            rig.models.add(Inspection(digest=digest, size=12, chat_template=JINJA), script)
        assert await rig_names(rig) == ["pub/repo:Q4_0"]
        answer = await rig.post("/api/generate", model="pub/repo:q4_0", prompt="x", stream=False)
        assert answer.json()["response"] == "I was there."
        assert f"FROM {file}" in (await shown(rig, "pub/repo:Q4_0"))["modelfile"]

        refused = await rig.client.request("DELETE", "/api/delete", json={"model": "pub/repo:Q4_0"})
        assert (refused.status_code, "hearth adopt" in refused.text) == (403, True)
        made = await rig.post("/api/create", model="mine", **{"from": "pub/repo:Q4_0"}, system="s")
        assert lines(made)[-1] == {"status": "success"}
        copied = await rig.post("/api/copy", source="pub/repo:Q4_0", destination="copy")
        assert copied.status_code == 200
        assert sorted(await rig_names(rig)) == ["copy:latest", "mine:latest", "pub/repo:Q4_0"]

        use = (await rig.client.get("/api/hearth/du")).json()
        assert [(p["kind"], p["models"]) for p in use["places"]] == [("own", 2), ("folder", 1)]
        assert use["places"][1] | {"free": 0} == {
            "root": str(root), "kind": "folder", "models": 1, "files": 1, "size": 12, "free": 0,
            "unread": 0,
        }  # fmt: skip
        (one,) = (a for a in use["artifacts"] if a["source"] == digest_of(b"GGUF foreign"))
        assert sorted(one["models"]) == ["copy:latest", "mine:latest", "pub/repo:Q4_0"]
        assert {m["name"]: m["shared"] >= 12 for m in use["models"]} == {
            "mine:latest": True,
            "copy:latest": True,
        }

        for path, status in (("here", 400), (str(tmp_path), 404), (str(root), 200)):
            adopted = await rig.client.post("/api/hearth/adopt", json={"path": path})
            assert adopted.status_code == status, path
        assert (root / MARKER_FILE).exists()
        await rig.client.request("DELETE", "/api/delete", json={"model": "pub/repo:Q4_0"})
        assert not file.exists()
        assert sorted(await rig_names(rig)) == ["copy:latest", "mine:latest"]


async def test_one_client_reads_the_base_name(rig: Rig) -> None:
    headers = {"User-Agent": "GitHubCopilotChat/1.0"}
    answer = await rig.client.post("/api/show", json={"model": "plain"}, headers=headers)
    assert answer.json()["model_info"]["general.basename"] == "plain"
    assert "general.basename" not in (await shown(rig, "plain"))["model_info"]
