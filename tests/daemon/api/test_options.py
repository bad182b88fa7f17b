from typing import Any

import pytest

from daemon.api.options import OPTIONS, ResolvedOptions, resolve_options, typed_value
from daemon.errors import BadOption


def resolve(request: dict[str, Any] | None = None, **model: Any) -> ResolvedOptions:
    return resolve_options(request, model, default_context_length=4096)


def test_request_wins_over_model_over_default() -> None:
    assert resolve({"temperature": 0.1}, temperature=0.5).sampling.temperature == 0.1
    assert resolve({"temperature": None}, temperature=0.5).sampling.temperature == 0.5
    assert resolve().sampling.temperature == 0.8
    assert resolve(None, stop=["a"]).stop == ("a",)
    assert resolve({"stop": ["b"]}, stop=["a"]).stop == ("b",)


def test_defaults_of_the_field() -> None:
    sampling, limits = resolve().sampling, resolve().limits
    assert (sampling.top_k, sampling.top_p, sampling.min_p) == (40, 0.9, 0.0)
    assert (sampling.repeat_penalty, sampling.repeat_last_n, sampling.seed) == (1.0, 64, None)
    assert (limits.max_tokens, limits.context_length, limits.num_keep) == (-1, 4096, 4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_ctx", "8", 'option "num_ctx" must be of type integer'),
        ("num_ctx", True, 'option "num_ctx" must be of type integer'),
        ("num_gpu", [], 'option "num_gpu" must be of type integer'),
        ("temperature", "hot", 'option "temperature" must be of type float32'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean'),
        ("stop", 3, 'option "stop" must be of type array'),
        ("stop", ["a", 3], 'option "stop" must be of an array of strings'),
    ],
)
def test_wrong_types_have_the_fields_texts_and_status(name: str, value: Any, message: str) -> None:
    with pytest.raises(BadOption) as refused:
        resolve({name: value})
    assert refused.value.message == message
    assert refused.value.status == 500


def test_numbers_are_taken_as_they_come() -> None:
    assert resolve({"top_k": 40.9}).sampling.top_k == 40
    assert resolve({"top_k": -3.9}).sampling.top_k == -3
    assert resolve({"temperature": 1}).sampling.temperature == 1.0
    assert resolve({"top_k": 10**30}).sampling.top_k == 2**31 - 1


def test_a_bare_stop_string_is_a_list_of_one() -> None:
    assert resolve({"stop": "x"}).stop == ("x",)
    assert resolve({"stop": ["", "x"]}).stop == ("x",)


@pytest.mark.parametrize(
    ("asked", "expected"), [(1, 4), (4, 4), (0, 4), (-5, 4), (2000, 2000), (10**9, 8192)]
)
def test_context_length_is_bounded(asked: int, expected: int) -> None:
    options = resolve_options(
        {"num_ctx": asked}, {}, default_context_length=4096, trained_context_length=8192
    )
    assert options.limits.context_length == expected
    assert options.wanted_context_length == expected


def test_default_context_length_is_capped_by_training_too() -> None:
    options = resolve_options({}, {}, default_context_length=4096, trained_context_length=512)
    assert options.limits.context_length == 512
    assert options.wanted_context_length is None


@pytest.mark.parametrize(("seed", "expected"), [(-1, None), (0, 0), (7, 7), (2**70 + 5, 5)])
def test_seed(seed: int, expected: int | None) -> None:
    assert resolve({"seed": seed}).sampling.seed == expected


def test_every_negative_length_is_no_limit() -> None:
    assert resolve({"num_predict": -2}).limits.max_tokens == -1
    assert resolve({"num_predict": 0}).limits.max_tokens == 0


def test_what_has_no_meaning_here_is_named() -> None:
    options = resolve({"num_gpu": 1, "made_up": "x", "top_k": 3, "f16_kv": None}, numa=True)
    assert options.ignored == ("num_gpu", "made_up")


def test_every_row_of_the_table_is_taken() -> None:
    """The SDKs send all of them; a value of the right type never fails and is never lost."""
    right = {"integer": 1, "float32": 0.5, "boolean": True, "strings": ["x"]}
    for name, option in OPTIONS.items():
        value = right[option.type]
        assert typed_value(name, option.type, value) in (value, ("x",))
        options = resolve({name: value})
        if option.place == "hint":
            assert options.ignored == (name,)
        elif option.place != "stop":
            assert getattr(getattr(options, option.place), option.field) in (value, 4)
