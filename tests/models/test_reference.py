"""The reference answers consistently: candidates, greedy ids and text agree with each other."""

from collections.abc import Iterator

import pytest

from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    folder = tmp_path_factory.mktemp("reference")
    with LlamaCpp(make_gguf(folder / "a.gguf", types="Q8_0", tokenizer="gpt2")) as loaded:
        yield loaded


def test_greedy_takes_the_first_candidate_of_every_step(model: LlamaCpp) -> None:
    prompt = model.tokenize("The kettle sings")
    steps = model.steps(prompt, 16, top=3)
    assert [step.id for step in steps] == model.greedy(prompt, 16)
    for step in steps:
        assert step.id == step.top[0].id
        assert len(step.top) == 3
        assert [item.logprob for item in step.top] == sorted(
            (item.logprob for item in step.top), reverse=True
        )


def test_candidates_do_not_depend_on_what_was_asked_before(model: LlamaCpp) -> None:
    prompt = model.tokenize("One two three")
    before = model.top_logprobs(prompt, 5)
    model.greedy(model.tokenize("Something else entirely"), 8)
    assert model.top_logprobs(prompt, 5) == before


def test_special_tokens_are_parsed_on_request(model: LlamaCpp) -> None:
    assert len(model.tokenize("<|eot_id|>")) == 1
    assert len(model.tokenize("<|eot_id|>", parse_special=False)) > 1
    plain = model.tokenize("hello")
    assert model.tokenize("hello", add_special=True)[1:] == plain
