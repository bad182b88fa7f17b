from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.engine.generation import TOO_LONG
from backends.text.image_marks import MOST_IMAGES, NO_SIGHT, ImageMarks, with_marks
from backends.text.prompt import ModelText, Prompt
from backends.text.tokenizer import Tokenizer
from backends.types import Chat, EngineError, Limits, Message
from tests.backends.text.small_tokenizers import byte_level, sentence_piece, with_special
from tests.backends.vision.picture_files import exif, file_of, picture
from tests.backends.vision.plain_kind import plain_sight

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)
# 8 × 8 pixels are 4 positions, 12 × 8 are 6.
SMALL = file_of(picture(8, 8))
WIDE = file_of(picture(12, 8, seed=1))


def model(template: str = TEMPLATE, tokenizer: Tokenizer | None = None) -> ModelText:
    made = ModelText(tokenizer or byte_level(), template)
    made.sight = plain_sight()
    return made


def user(content: str, *images: bytes, places: tuple[int, ...] = ()) -> Message:
    return Message(role="user", content=content, images=images, image_places=places)


def chat(*messages: Message, **options: Any) -> Chat:
    return Chat(request_id="c", messages=messages, **options)


def outline(prompt: Prompt) -> str:
    """Its bytes as text, each run of positions as its length."""
    pieces: list[str] = []
    for is_image, ids in itertools.groupby(prompt.ids, key=lambda i: i < 0):
        found = list(ids)
        pieces.append(
            f"{{{len(found)}}}" if is_image else bytes(i for i in found if i < 256).decode()
        )
    return "".join(pieces)


def test_an_image_without_a_place_stands_before_its_text():
    prompt = model().prompt(chat(user("what?", SMALL), user("and?", WIDE, SMALL)))
    assert outline(prompt) == "[u][{4}]what?[u][{6}][{4}]and?>"
    assert prompt.text == "<s>[u][img-0]what?[u][img-1][img-2]and?>"
    assert prompt.ids[0] == 258
    assert [(place.image.name, place.part, place.start) for place in prompt.images] == [
        ("image 1", 0, 5),
        ("image 2", 0, 19),
        ("image 3", 0, 27),
    ]
    for place in prompt.images:
        length = place.image.plan.vectors[place.part].length
        assert prompt.ids[place.start : place.start + length] == (place.image.part_id(0),) * length


def test_places_are_kept_and_what_has_none_comes_first():
    message = user("between", SMALL, WIDE, SMALL, places=(2, 7))
    assert outline(model().prompt(chat(message))) == "[u][{4}]be[{4}]tween[{6}]>"
    assert with_marks(user("ab", b"", b"", places=(9, 1)), ["1", "2"]) == "ab12"
    assert with_marks(user("äöü", b"", places=(1,)), ["1"]) == "ä1öü"


def test_equal_images_have_equal_ids_and_others_other_ones():
    prompt = model().prompt(chat(user("", SMALL, WIDE, SMALL)))
    one, two, three = (set(part) for part in runs(prompt))
    assert one == three != two
    assert all(i < 0 for i in one | two)
    other = model()
    other.sight = plain_sight(deepstack=1)
    assert runs(other.prompt(chat(user("", SMALL))))[0][0] in one
    other.sight = plain_sight(source="2" * 64)
    assert runs(other.prompt(chat(user("", SMALL))))[0][0] not in one


def runs(prompt: Prompt) -> list[tuple[int, ...]]:
    return [
        prompt.ids[p.start : p.start + p.image.plan.vectors[p.part].length] for p in prompt.images
    ]


def test_the_size_as_it_is_seen_counts():
    turned = file_of(picture(8, 16), "JPEG", exif=exif(6))
    (place,) = model().prompt(chat(user("", turned))).images
    assert (place.image.plan.width, place.image.plan.height) == (16, 8)


MARKS_OF_OTHERS = (
    "[img-0]",
    "[img]",
    "<image>",
    "<__media__>",
    "image" + "0" * 32 + "n0e",
    "image" + "f" * 32 + "n1e",
)


def test_nothing_that_is_written_becomes_an_image():
    text = " ".join(MARKS_OF_OTHERS)
    prompt = model().prompt(chat(user(text, SMALL), Message(role="system", content=text)))
    assert len(prompt.images) == 1
    assert outline(prompt) == f"[u][{{4}}]{text}[s]{text}>"


def test_marks_of_one_request_mean_nothing_in_the_next():
    text_side = model()
    first = ImageMarks(chat(user("", SMALL)), text_side.sight)
    stolen = first.chat.messages[0].content
    prompt = text_side.prompt(chat(user(stolen, WIDE)))
    assert outline(prompt) == f"[u][{{6}}]{stolen}>"


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_around_images_stays_as_it_is(text: str):
    half = len(text) // 2
    marks = ImageMarks(chat(user(text, SMALL, places=(half,))), plain_sight())
    content = marks.chat.messages[0].content
    assert marks.shown(content) == f"{text[:half]}[img-0]{text[half:]}"
    found = marks.lay_out(content, byte_level(), lambda piece, first: tuple(piece.encode()))
    start = len(text[:half].encode()) + 1
    assert bytes(i for i in found.ids if i >= 0).decode() == f"{text[:half]}[]{text[half:]}"
    assert [place.start for place in found.places] == [start]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages[0].content | trim }}", "a [{4}]b"),
        ("{{ messages[0].content | tojson }}", '"  a [{4}]b "'),
        ("{{ messages[0].content | e }}", "  a [{4}]b "),
        ("{{ messages[0].content | upper }}", "  A [{4}]B "),
        ("{{ messages[0].content | replace('a ', 'c ') | trim }}", "c [{4}]b"),
        ("", "  a [{4}]b "),
    ],
)
def test_what_templates_do_to_text_leaves_images_alone(template: str, expected: str):
    prompt = model(template).prompt(chat(user("  a b ", SMALL, places=(4,))))
    assert outline(prompt) == expected


def test_a_template_that_leaves_images_out_or_repeats_them_is_refused():
    with pytest.raises(EngineError, match="leaves out image 1") as found:
        model("{{ messages[-1].content }}").prompt(chat(user("a", SMALL), user("b", WIDE)))
    assert found.value.code == "template"
    with pytest.raises(EngineError, match="repeats image 1") as found:
        model("{{ messages[0].content * 2 }}").prompt(chat(user("a", SMALL)))
    assert found.value.code == "template"
    with pytest.raises(EngineError, match="leaves out image 1"):
        model("{{ messages[0].content[:20] }}").prompt(chat(user("a", SMALL)))


def test_go_templates_carry_images_too():
    go = "{{ .System }}{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}!"
    prompt = model().prompt(chat(user("a b", SMALL, places=(2,)), template=go))
    assert outline(prompt) == "<user>a [{4}]b!"
    old = "{{ .System }}|{{ .Prompt }}|{{ .Response }}"
    prompt = model().prompt(chat(user("a", SMALL), user("b", WIDE), template=old))
    assert outline(prompt) == "|[{4}]a\n\n[{6}]b|"
    fill = "{{ .Prompt }}<fill>{{ .Suffix }}"
    prompt = model().prompt(chat(user("a", SMALL), template=fill, suffix="z"))
    assert outline(prompt) == "[{4}]a<fill>z"


def test_a_raw_prompt_has_its_images_in_front():
    wanted = Chat(request_id="c", prompt="a [img-0]", messages=(user("unread", SMALL, WIDE),))
    assert outline(model().prompt(wanted)) == "[{4}][{6}]a [img-0]"
    assert model().prompt(wanted).ids[0] == 258


def test_an_image_in_the_beginning_of_an_answer_stays_there():
    answer = Message(role="assistant", content="It is ", images=(SMALL,), image_places=(6,))
    assert outline(model().prompt(chat(user("?"), answer))) == "[u]?>It is [{4}]"


def test_texts_between_images_are_tokenized_each_on_its_own():
    tokenizer = sentence_piece()
    prompt = model("{{ messages[0].content }}", tokenizer).prompt(
        chat(user("he a", SMALL, places=(2,)))
    )
    texts = (
        tokenizer.encode("he"),
        tokenizer.encode("["),
        tokenizer.encode("]"),
        tokenizer.encode(" a"),
    )
    (run,) = runs(prompt)
    assert prompt.ids == (1, *texts[0], *texts[1], *run, *texts[2], *texts[3])


def test_special_tokens_in_an_images_surroundings_are_special():
    tokenizer = with_special("[", "]")
    prompt = model(TEMPLATE, tokenizer).prompt(chat(user("a", SMALL)))
    (place,) = prompt.images
    assert (prompt.ids[place.start - 1], prompt.ids[place.start + 4]) == (261, 262)


# ---- refusals ----


def test_a_model_without_eyes_says_so():
    blind = model()
    blind.sight = None
    for ask in (blind.prompt, blind.prompt_text):
        with pytest.raises(EngineError) as found:
            ask(chat(user("a", SMALL)))
        assert (found.value.code, str(found.value)) == ("invalid", NO_SIGHT)
    assert outline(blind.prompt(chat(user("a")))) == "[u]a>"


def test_refusals_name_the_image():
    tiny = file_of(picture(2, 2))
    for bad, reason in ((b"no image", "cannot be read"), (tiny, "too small"), (b"", "is empty")):
        with pytest.raises(EngineError, match=reason) as found:
            model().prompt(chat(user("a", SMALL), user("b", bad)))
        assert found.value.code == "invalid"
        assert str(found.value).startswith("image 2")


def test_there_is_an_end_to_how_many_images_may_come():
    with pytest.raises(EngineError, match="more than 512 images"):
        model().prompt(chat(user("", *[SMALL] * (MOST_IMAGES + 1))))


# ---- contexts that are full ----


def test_positions_of_images_count_and_images_go_with_their_messages():
    turns = [
        user("a", WIDE),
        Message(role="assistant", content="b"),
        user("c", SMALL),
    ]
    whole = model().prompt(chat(*turns))
    assert len(whole.ids) == 1 + 12 + 4 + 10 + 1
    assert model().prompt(chat(*turns), 29).ids == whole.ids
    cut = model().prompt(chat(*turns), 28)
    assert outline(cut) == "[a]b[u][{4}]c>"
    assert cut.text == "<s>[a]b[u][img-0]c>"
    assert cut.dropped == 12
    assert [place.image.name for place in cut.images] == ["image 2"]


def test_a_prompt_with_images_is_never_cut_within():
    wanted = chat(user("x" * 40, SMALL), limits=Limits(num_keep=4))
    with pytest.raises(EngineError) as found:
        model().prompt(wanted, 30)
    assert (found.value.code, str(found.value)) == ("too_long", TOO_LONG)
    gone = model().prompt(chat(user("a", SMALL), user("x" * 40)), 30)
    assert not gone.images
    assert gone.dropped > 0
    with pytest.raises(EngineError):
        model().prompt(chat(user("", SMALL), truncate=False), 8)


def test_very_long_texts_beside_images_are_not_tokenized_whole():
    with pytest.raises(EngineError) as found:
        model().prompt(chat(user("ab" * 4_000_000, SMALL)), 50)
    assert found.value.code == "too_long"


def test_answers_to_images_do_not_shift():
    for image, shifts in (((), True), ((SMALL,), False)):
        wanted = chat(user("a", *image), shift=True)
        text_side = model()
        assert text_side.request(wanted, text_side.prompt(wanted, 64), 64).shift is shifts


def test_a_system_prompt_with_an_image_is_counted_with_it():
    system = Message(role="system", content="be", images=(SMALL,), image_places=(1,))
    prompt = model().prompt(chat(system, user("x", WIDE), cache_scope="key"), 64)
    assert prompt.system_length == len("<[s]b[....]e")
    assert outline(msgspec.structs.replace(prompt, ids=prompt.ids[: prompt.system_length])) == (
        "[s]b[{4}]e"
    )


def test_earlier_context_comes_before_images():
    earlier = tuple(b"before")
    prompt = model().prompt(chat(user("a", SMALL), context_ids=(*earlier, -7, -8)))
    assert outline(prompt) == "before[u][{4}]a>"


# ---- published forms of templates ----

GEMMA = (
    "{{ bos_token }}{%- for message in messages -%}{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}"
    "{%- else -%}{{ raise_exception('Invalid content type') }}{%- endif -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
QWEN = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}<|im_start|>"
    "{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in "
    "content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAVA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {{ message['content'] }} "
    "{% else %}ASSISTANT: {{ message['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (GEMMA, "<start_of_turn>user\n[{4}]What?<end_of_turn>\n<start_of_turn>model\n"),
        (QWEN, "<|im_start|>user\n[{4}]What?<|im_end|>\n<|im_start|>assistant\n"),
        (SMOLVLM, "<|im_start|>User: [{4}]What?<end_of_utterance>\nAssistant:"),
        (LLAVA, "USER: [{4}]What? ASSISTANT:"),
    ],
)
def test_published_templates_get_text_with_marks(template: str, expected: str):
    """What llama.cpp makes of the same request: images without a line break around them."""
    text_side = model(template)
    assert outline(text_side.prompt(chat(user("What?", SMALL)))) == expected
    without = expected.replace("[{4}]", "")
    assert outline(text_side.prompt(chat(user("What?")))) == without
