"""Devices that ask for a key, and the owner who says yes: a code that both see, and one hand-over.

A device asks under a name and is shown six digits; whoever may manage this daemon sees the same digits
beside the name and the address, and approves or refuses. Then the device fetches its key, once, with the
ticket that only it was given. Nothing is written before the approval. Owned by the event loop; all in
memory, all bounded: a restart forgets who asked.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from daemon.errors import Busy, Forbidden, Invalid, NotFound
from daemon.lan.access import KeyScope, is_key_name
from daemon.lan.key_ring import KeyRing

LIFETIME_SECONDS = 300.0
MOST_WAITING = 32
# Of one address: a household behind one router has few devices that ask at once.
MOST_OF_ONE = 4
_CODES = 10**6
_TICKET_BYTES = 32
_UNKNOWN = "nobody asks with this code; codes are forgotten after five minutes"


class Asked(NamedTuple):
    """What the device is told: it shows `code` and keeps `ticket` to itself."""

    code: str
    ticket: str
    lifetime_seconds: float


class Waiting(NamedTuple):
    """What the owner is shown."""

    code: str
    name: str
    address: str
    age_seconds: float


class Claim(NamedTuple):
    """`key` is said once, with the state "approved"."""

    state: Literal["waiting", "approved"]
    name: str = ""
    scope: KeyScope = "use"
    key: str = ""


class _Request:
    def __init__(self, name: str, address: str, code: str, now: float) -> None:
        self.name = name
        self.address = address
        self.code = code
        self.since = now
        self.scope: KeyScope = "use"
        self.key = ""
        self.is_refused = False

    @property
    def is_open(self) -> bool:
        return not (self.key or self.is_refused)


class Pairing:
    def __init__(self, keys: KeyRing, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._by_ticket: dict[str, _Request] = {}

    def ask(self, name: str, address: str) -> Asked:
        """Raises Invalid for what cannot be a key's name, Busy where too many ask already."""
        if not is_key_name(name):
            raise Invalid("a device's name has 1 to 64 letters, digits, '.', '_', '@' and '-'")
        self._forget_old()
        of_address = sum(one.address == address for one in self._by_ticket.values())
        if len(self._by_ticket) >= MOST_WAITING or of_address >= MOST_OF_ONE:
            raise Busy("too many devices ask for a key; try again in five minutes")
        ticket = secrets.token_urlsafe(_TICKET_BYTES)
        code = self._new_code()
        self._by_ticket[ticket] = _Request(name, address, code, self._clock())
        return Asked(code, ticket, LIFETIME_SECONDS)

    def waiting(self) -> list[Waiting]:
        """In the order in which they asked."""
        self._forget_old()
        now = self._clock()
        return [
            Waiting(one.code, one.name, one.address, round(now - one.since, 1))
            for one in self._by_ticket.values()
            if one.is_open
        ]

    async def approve(self, code: str, scope: KeyScope, name: str = "") -> str:
        """The name of the new key, `name` or what the device calls itself.

        Raises NotFound for an unknown code, and what `add_key` raises: then the device still waits.
        """
        found = self._open(code)
        found.is_refused = True  # nobody approves it a second time while the file is written
        try:
            key = await self._keys.add(name or found.name, scope)
        finally:
            found.is_refused = False
        found.name, found.scope, found.key = name or found.name, scope, key
        return found.name

    def refuse(self, code: str) -> None:
        """The device is told so when it asks next. Raises NotFound."""
        self._open(code).is_refused = True

    def claim(self, ticket: str) -> Claim:
        """Raises NotFound for a ticket that is unknown, too old or used; Forbidden if the owner refused."""
        self._forget_old()
        found = self._by_ticket.get(ticket)
        if found is None:
            raise NotFound("this request for a key is over; ask anew")
        if found.is_refused:
            raise Forbidden("the owner of this daemon refused the key")
        if not found.key:
            return Claim("waiting")
        del self._by_ticket[ticket]
        return Claim("approved", found.name, found.scope, found.key)

    def _open(self, code: str) -> _Request:
        self._forget_old()
        digits = "".join(code.split())
        for one in self._by_ticket.values():
            if one.is_open and one.code == digits:
                return one
        raise NotFound(_UNKNOWN)

    def _new_code(self) -> str:
        taken = {one.code for one in self._by_ticket.values()}
        while (code := f"{secrets.randbelow(_CODES):06}") in taken:
            pass
        return code

    def _forget_old(self) -> None:
        oldest = self._clock() - LIFETIME_SECONDS
        self._by_ticket = {t: one for t, one in self._by_ticket.items() if one.since > oldest}
