"""The plan as tables: what is loaded, who waits, and what happens then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.residency.plan import (
    Budget,
    Decision,
    LoadedView,
    WaitingView,
    WorkerKey,
    plan_residency,
)

A, B, C, D = (WorkerKey(artifact=name) for name in "abcd")
ROOMY = Budget(free_bytes=1000, max_loaded=3)


def there(key: WorkerKey, **fields: object) -> LoadedView:
    given = {"resident_bytes": 100, **fields}
    return LoadedView(key=key, **given)  # pyright: ignore[reportArgumentType]


def wants(ticket: int, key: WorkerKey, **fields: object) -> WaitingView:
    given = {"needed_bytes": 100, **fields}
    return WaitingView(ticket=ticket, key=key, **given)  # pyright: ignore[reportArgumentType]


G, H = (WorkerKey(artifact=name, device="cuda") for name in "gh")
WITH_GPU = Budget(free_bytes=1000, max_loaded=3, device_bytes={"cuda": 500})


CASES = {
    "a GPU's memory is its own": (
        [there(A, resident_bytes=900)], [wants(1, G, needed_bytes=400)], WITH_GPU, Decision(load=1),
    ),
    "who holds the GPU goes, not who holds the machine's memory": (
        [there(A, last_used=1.0), there(H, resident_bytes=450, last_used=9.0)],
        [wants(1, G, needed_bytes=300)], WITH_GPU, Decision(unload=(H,)),
    ),
    "too large for the GPU, though not for the machine": (
        [], [wants(1, G, needed_bytes=501)], WITH_GPU, Decision(refuse=(1,)),
    ),
    "who holds the GPU makes no room for the CPU": (
        [there(H, last_used=1.0), there(A, resident_bytes=300, last_used=5.0)],
        [wants(1, B, needed_bytes=900)], WITH_GPU, Decision(unload=(A,)),
    ),
    "nothing to do": ([there(A)], [], ROOMY, Decision()),
    "first load": ([], [wants(1, A)], ROOMY, Decision(load=1)),
    "use what is there": ([there(A)], [wants(1, A)], ROOMY, Decision(use=(1,))),
    "one model at a time": (
        [there(A, state="loading")], [wants(1, A), wants(2, B)], ROOMY, Decision(),
    ),
    "first come, first loaded": ([], [wants(3, B), wants(5, A)], ROOMY, Decision(load=3)),
    "a loaded model does not wait for another's load": (
        [there(A), there(B, state="loading")], [wants(1, B), wants(2, A)], ROOMY,
        Decision(use=(2,)),
    ),
    "no more than there are rows": (
        [there(A, free_rows=2)], [wants(1, A), wants(2, A), wants(3, A)], ROOMY,
        Decision(use=(1, 2)),
    ),
    "what does not generate needs no row": (
        [there(A, free_rows=0)], [wants(1, A), wants(2, A, wants_row=False)], ROOMY,
        Decision(use=(2,)),
    ),
    "beside others only four fifths are given away": (
        [there(A, users=1)], [wants(1, B, needed_bytes=801)], ROOMY, Decision(),
    ),
    "just fitting beside another": (
        [there(A, users=1)], [wants(1, B, needed_bytes=800)], ROOMY, Decision(load=1),
    ),
    "alone everything is given": ([], [wants(1, B, needed_bytes=1000)], ROOMY, Decision(load=1)),
    "too large for this machine": (
        [], [wants(1, B, needed_bytes=1001)], ROOMY, Decision(refuse=(1,)),
    ),
    "a hopeless one costs nobody a place": (
        [there(A)], [wants(1, B, needed_bytes=1101), wants(2, A)], ROOMY,
        Decision(refuse=(1,), use=(2,)),
    ),
    "the idle one used longest ago goes": (
        [there(A, last_used=5.0), there(B, last_used=3.0), there(C, last_used=4.0)],
        [wants(1, D)], ROOMY, Decision(unload=(B,)),
    ),
    "no more go than needed": (
        [there(A, last_used=1.0, resident_bytes=600), there(B, last_used=2.0)],
        [wants(1, D, needed_bytes=500)], Budget(free_bytes=100, max_loaded=3),
        Decision(unload=(A,)),
    ),
    "as many go as needed": (
        [there(A, last_used=1.0), there(B, last_used=2.0)],
        [wants(1, D, needed_bytes=250)], Budget(free_bytes=100, max_loaded=3),
        Decision(unload=(A, B)),
    ),
    "a busy one is not thrown out": (
        [there(A, users=1)], [wants(1, B)], Budget(free_bytes=1000, max_loaded=1), Decision(),
    ),
    "the idle goes before the busy": (
        [there(A, users=1, last_used=1.0), there(B, last_used=9.0)],
        [wants(1, C)], Budget(free_bytes=1000, max_loaded=2), Decision(unload=(B,)),
    ),
    "a busy victim takes no later request": (
        [there(A, users=1, free_rows=3)], [wants(1, B), wants(2, A)],
        Budget(free_bytes=1000, max_loaded=1), Decision(),
    ),
    "but an earlier one": (
        [there(A, users=1, free_rows=3)], [wants(1, A), wants(2, B), wants(3, A)],
        Budget(free_bytes=1000, max_loaded=1), Decision(use=(1,)),
    ),
    "an idle victim just taken is kept": (
        [there(A)], [wants(1, A), wants(2, B)], Budget(free_bytes=1000, max_loaded=1),
        Decision(use=(1,)),
    ),
    "nothing is loaded while something leaves": (
        [there(A, state="unloading")], [wants(1, B)], ROOMY, Decision(),
    ),
    "a request for what is leaving waits": (
        [there(A, state="unloading")], [wants(1, A)], ROOMY, Decision(),
    ),
    "longer rows reload an idle worker": (
        [there(A, context_length=4096)], [wants(1, A, context_length=8192)], ROOMY,
        Decision(unload=(A,)),
    ),
    "a busy one is reloaded later, shorter requests before it still served": (
        [there(A, users=1, free_rows=2)],
        [wants(1, A), wants(2, A, context_length=8192), wants(3, A)], ROOMY, Decision(use=(1,)),
    ),
    "longer rows that cannot fit are refused at once": (
        [there(A)], [wants(1, A, context_length=8192, needed_bytes=1101)], ROOMY,
        Decision(refuse=(1,)),
    ),
    "shorter requests share long rows": (
        [there(A, context_length=8192)], [wants(1, A)], ROOMY, Decision(use=(1,)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_plan(name: str):
    loaded, waiting, budget, expected = CASES[name]
    assert plan_residency(loaded, waiting, budget) == expected


KEYS = st.sampled_from((A, B, C, D))
LOADED = st.lists(
    st.builds(
        LoadedView,
        key=KEYS,
        state=st.sampled_from(("loading", "ready", "unloading")),
        context_length=st.sampled_from((4096, 8192)),
        users=st.integers(0, 2),
        free_rows=st.integers(-1, 3),
        resident_bytes=st.integers(0, 500),
        last_used=st.floats(0, 9),
    ),
    max_size=4,
    unique_by=lambda view: view.key,
)
WAITING = st.lists(
    st.builds(
        WaitingView,
        ticket=st.integers(1, 99),
        key=KEYS,
        context_length=st.sampled_from((4096, 8192)),
        needed_bytes=st.integers(0, 900),
        wants_row=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda view: view.ticket,
)
BUDGET = st.builds(Budget, free_bytes=st.integers(0, 900), max_loaded=st.integers(1, 4))


@given(LOADED, WAITING, BUDGET)
def test_what_always_holds(loaded: list[LoadedView], waiting: list[WaitingView], budget: Budget):
    decision = plan_residency(loaded, waiting, budget)
    by_key = {view.key: view for view in loaded}
    by_ticket = {view.ticket: view for view in waiting}
    used_keys = {by_ticket[ticket].key for ticket in decision.use}
    assert not set(decision.use) & {decision.load, *decision.refuse}
    assert all(by_key[key].is_idle and key not in used_keys for key in decision.unload)
    for key in used_keys:
        rows = sum(t in decision.use and by_ticket[t].key == key and by_ticket[t].wants_row
                   for t in by_ticket)  # fmt: skip
        assert by_key[key].state == "ready" and rows <= max(0, by_key[key].free_rows)
    if decision.load is not None:
        assert not decision.unload and len(loaded) < budget.max_loaded
        assert by_ticket[decision.load].needed_bytes <= budget.free_bytes
        assert by_ticket[decision.load].key not in by_key


@given(WAITING, BUDGET)
def test_with_nothing_loaded_somebody_is_always_served(waiting: list[WaitingView], budget: Budget):
    decision = plan_residency([], waiting, budget)
    assert not waiting or decision.load is not None or len(decision.refuse) == len(waiting)
