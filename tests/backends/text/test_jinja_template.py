from __future__ import annotations

import datetime
import signal
import threading
import time

import pytest

from backends.text import jinja_template
from backends.text.jinja_template import render
from backends.types import EngineError

CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message.content | trim + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}"
)


def refusal(source: str, limit_seconds: float = 0.3, **variables: object) -> str:
    with pytest.raises(EngineError) as caught:
        render(source, variables, limit_seconds)
    assert caught.value.code == "template"
    return str(caught.value)


def test_a_real_form_of_template() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " hi "}]
    assert render(CHATML, {"messages": messages, "add_generation_prompt": True}) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if true %}\n  x\n  {% endif %}\ny", "  x\ny"),  # trim_blocks and lstrip_blocks
        ("{{ {'a': '<é>', 'b': [1, 2.5, none]} | tojson }}", '{"a": "<é>", "b": [1, 2.5, null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=2) }}", '{\n  "b": 1,\n  "a": 2\n}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% set n = namespace(x=1) %}{% for i in [1, 2] %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }}", "4"),
        ("{{ 'a</think>b'.split('</think>')[-1].lstrip('\\n').upper() }}", "B"),
        ("{{ 'abc'.startswith('ab') }}{{ 'abc'[::-1] }}{{ 'a b'.title() }}", "TruecbaA B"),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{% macro m(a, b='z') %}{{ a }}{{ b }}{% endmacro %}{{ m('y') }}", "yz"),
        ("{{ missing }}|{{ missing is defined }}|{{ missing is none }}", "|False|False"),
        ("{{ '**%s** %5.2f' | format('a', 1.5) }}{{ '{0:>4}'.format('b') }}", "**a**  1.50   b"),
        ("{{ [3, 1] | sort | join(', ') }}{{ 'aXa' | replace('a', 'b') }}", "1, 3bXb"),
        ("{{ {'a': 1}.items() | list }}{{ {'k': 2} | items | list }}", "[('a', 1)][('k', 2)]"),
        ("{{ 'a\\nb' | indent(2) }}|{{ 'a\\nb' | indent(2, true) }}", "a\n  b|  a\n  b"),
        ("{{ ['a', 'b'] | map('upper') | join('-') ~ '!' }}", "A-B!"),
        ("{{ messages | selectattr('role', 'equalto', 'u') | list | length }}", "1"),
    ],
)  # fmt: skip
def test_what_chat_templates_use(source: str, expected: str) -> None:
    assert render(source, {"messages": [{"role": "u"}, {"role": "a"}]}) == expected


def test_the_date_is_local() -> None:
    before = datetime.datetime.now().strftime("%Y-%m-%d")
    assert render("{{ strftime_now('%Y-%m-%d') }}", {}) >= before


def test_the_templates_own_refusal_names_its_line() -> None:
    source = "a\n{{ raise_exception('System role not supported') }}"
    assert refusal(source) == "chat template, line 2: System role not supported"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("a\nb\n{{ x.y.z }}", 3),
        ("{% for %}", 1),
        ("a\n{% if x %}", 2),
        ("\n{{ 1 + 'a' }}", 2),
        ("\n\n{{ 'a' | nofilter }}", 3),
        ("\n{% for i in range(1000) %}{% for j in range(100000) %}\n{% endfor %}{% endfor %}", 2),
    ],
)
def test_failures_name_the_line(source: str, line: int) -> None:
    assert f"line {line}: " in refusal(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'].x }}",
        "{{ ('' | attr('__class__')).__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ self.__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ '{x.__class__.__mro__}'.format_map({'x': 1}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages.append(1) }}",
        "{{ messages.clear() }}",
    ],
)
def test_there_is_no_way_out(source: str) -> None:
    messages: list[object] = [{"role": "user"}]
    refusal(source, messages=messages)
    assert messages == [{"role": "user"}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ [0] * 10**9 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ (10 ** 1000) * (10 ** 1000) }}",
        "{{ 'x'.center(10**10) }}",
        "{{ 'x'.zfill(10**10) }}",
        "{{ ('\t' * 1000000).expandtabs(100000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%.1000000000f' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 1000000000) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000) }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000) }}",
        "{{ ('a' * 10000).join(['b'] * 10000) }}",
        "{{ ['b'] * 10000 | int | join('a' * 10000) }}",
        "{{ (['b'] * 10000) | join('a' * 10000) }}",
        "{{ range(10**9) | list }}",
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s=[0]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set b = 'x' * 1000000 %}{% set y %}{% for i in range(99999) %}{{ b }}{% endfor %}{% endset %}",
        "{% set b = 'x' * 1000000 %}{% for i in range(99999) %}{{ b }}{% endfor %}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "-" * 100000 + "1 }}",
        "{{ strftime_now('%Y' * 1000) }}",
        "{{ 3.5 | round(1000000000, 'ceil') }}",
        "x" * (jinja_template.MAX_SOURCE + 1),
        "{{ lipsum(n=100000) }}",
        "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    ],
    ids=lambda source: source[:50],
)
def test_nothing_grows_without_bound(source: str) -> None:
    started = time.monotonic()
    refusal(source)
    assert time.monotonic() - started < 5


def test_time_is_bounded_and_the_next_rendering_is_not_disturbed() -> None:
    source = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    started = time.monotonic()
    assert "longer than 0.3 s" in refusal(source, 0.3)
    assert time.monotonic() - started < 2
    time.sleep(0.15)
    assert render("{{ 1 }}", {}) == "1"


def test_a_template_cannot_catch_the_limit() -> None:
    """Tests and filters of the library swallow exceptions of their own; not this one."""
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    source = "{% macro m() %}" + loop + "{% endmacro %}{{ (m() | default('x')) is defined }}"
    assert "longer than" in refusal(source)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_template, "RENDER_MEMORY_BYTES", 64 << 20)
    source = (
        "{% set b = 'x' * 4000000 %}{% set n = namespace(l=[]) %}"
        "{% for i in range(99999) %}{% set n.l = n.l + [b[i:]] %}{% endfor %}"
    )
    assert "64 MiB of memory" in refusal(source, 5)


def test_timers_of_others_go_on() -> None:
    rings: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rings.append(1))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        assert render("{{ 1 }}", {}) == "1"
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.3
        time.sleep(0.5)
        assert rings == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


def test_only_the_main_thread_renders() -> None:
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            render("{{ 1 }}", {})
        except EngineError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(errors)


def test_compiled_once() -> None:
    source = "{{ compiled_once }}"
    render(source, {})
    compiled = jinja_template._compile(source)
    assert jinja_template._compile(source) is compiled
    for number in range(40):
        render(f"{number}", {})
    assert jinja_template._compile(source) is not compiled
    assert len(jinja_template._compiled) <= 16
