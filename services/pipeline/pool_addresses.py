"""Where the scorers of a warm pool are: a name with several addresses is several scorers.

Fargate's tasks of one service share a Cloud Map name, and a series must meet the same one again, so that gRPC may not
choose among them: the name's addresses are looked up here, and each is a scorer of its own.
"""

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

LOOK_SECONDS: Final = 10.0
"""How often a name is looked up: as long as Cloud Map's records are valid (deploy/mesh.py)."""

SOONEST_SECONDS: Final = 1.0
"""How soon again when a scorer failed."""

ANSWER_LIMIT: Final = 8
"""Records in one answer of Route 53, chosen at random where there are more.

Source: Amazon Route 53 developer guide, "Multivalue answer routing".
"""

_ANSWER_SECONDS = 2.0
_log = logging.getLogger(__name__)

Resolve = Callable[[str], Sequence[str]]
"""A host's addresses. Raises: OSError."""


class Endpoint(NamedTuple):
    """One scorer's host:port, and the name that its certificate has where the host is an address behind a name."""

    address: str
    server_name: str = ""


def resolve(host: str) -> list[str]:
    """The host's IPv4 addresses, as the system's resolver knows them, else its IPv6 ones. Raises: OSError."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except socket.gaierror:
        found = socket.getaddrinfo(host, None, socket.AF_INET6, socket.SOCK_STREAM)
    return sorted({str(address[4][0]) for address in found})


@dataclass
class _Name:
    host: str
    port: str
    endpoints: tuple[Endpoint, ...] = ()
    failing: bool = False

    def __post_init__(self) -> None:
        self.endpoints = (Endpoint(f"{self.host}:{self.port}"),)

    def behind(self, address: str) -> Endpoint:
        host = f"[{address}]" if ":" in address else address
        return Endpoint(f"{host}:{self.port}", self.host)


class PoolAddresses:
    """The endpoints of configured targets (host:port). Those that are no names, and gRPC's own URIs, are as they are.

    A name that was never known is an endpoint itself, which leaves the rest to gRPC.

    Args:
        targets: What is configured.
        resolve: Looks a host up; it may block.
        clock: Seconds that only go forward.
    """

    def __init__(
        self, targets: Sequence[str], resolve: Resolve = resolve, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._targets: list[Endpoint | _Name] = [_parsed(target) for target in targets]
        self._resolve = resolve
        self._clock = clock
        self._looked = float("-inf")
        self._failed: set[str] = set()
        self._looking = asyncio.Lock()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """What is known now, in the order of configuration."""
        found: list[Endpoint] = []
        for target in self._targets:
            found += [target] if isinstance(target, Endpoint) else target.endpoints
        return tuple(dict.fromkeys(found))

    def failed(self, address: str) -> None:
        """Tell that a scorer failed: it is sooner time to look."""
        self._failed.add(address)

    async def refresh(self) -> None:
        """Look the names up, where it is time to. Never raises: what cannot be looked up stays as it was."""
        names = [target for target in self._targets if isinstance(target, _Name)]
        if not names:
            return
        async with self._looking:
            if self._clock() - self._looked < (SOONEST_SECONDS if self._failed else LOOK_SECONDS):
                return
            await asyncio.gather(*map(self._look, names))
            self._failed.clear()
            self._looked = self._clock()

    async def _look(self, name: _Name) -> None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                addresses = await asyncio.to_thread(self._resolve, name.host)
        except OSError as error:
            if not name.failing:
                _log.warning("%s cannot be looked up, and stays what it was: %s", name.host, error or "no answer")
            name.failing = True
            return
        name.failing = False
        found = {name.behind(address) for address in addresses}
        if len(addresses) >= ANSWER_LIMIT:  # there may be more than one answer holds: who serves is not gone
            found |= {each for each in name.endpoints if each.server_name and each.address not in self._failed}
        name.endpoints = tuple(sorted(found)) or name.endpoints


def _parsed(target: str) -> Endpoint | _Name:
    host, _, port = target.rpartition(":")
    if "/" in host or ":" in host.strip("[]"):
        return Endpoint(target)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _Name(host, port)
    return Endpoint(target)
