"""Routing of series to scorers, and what a refusing scorer means for the messages."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from services.domain.errors import (
    DependencyUnavailableError,
    FieldViolation,
    InvalidRequestError,
    NotConfiguredError,
    TapewatchError,
)
from services.domain.quote import Series
from services.domain.score import Score
from services.pipeline import pool_addresses, warm_pool
from services.pipeline.warm_pool import WarmPool, rank
from services.runtime.server import Lifetime, Mount
from services.runtime.settings import ClientSettings, ServerSettings
from services.scorer.main import build
from services.scorer.settings import ScorerSettings
from tapewatch.scorer.v1 import scorer_service_pb2 as pb
from tapewatch.scorer.v1.scorer_service_pb2_grpc import ScorerServiceServicer, add_ScorerServiceServicer_to_server
from tests.certificates import Authority, replace
from tests.pipeline_fakes import quote
from tests.servers.in_process import served
from tests.servers.process import free_port

POOL = tuple(f"10.0.0.{i}:50051" for i in range(5))
SERIES = [Series("live", "s", f"SYM{i}", 60) for i in range(2_000)]


def test_each_scorer_gets_its_share() -> None:
    counts = dict.fromkeys(POOL, 0)
    for series in SERIES:
        counts[rank(series, POOL)[0]] += 1
    assert all(0.7 * 400 < count < 1.3 * 400 for count in counts.values()), counts


def test_a_scorer_that_leaves_moves_only_its_own_series() -> None:
    rest = POOL[1:]
    for series in SERIES:
        before, after = rank(series, POOL)[:2], rank(series, rest)[0]
        assert after == (before[1] if before[0] == POOL[0] else before[0])


class Refusing(ScorerServiceServicer):
    """A scorer of another version, which refuses every batch as a whole."""

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        raise InvalidRequestError([FieldViolation("quote", "is refused")])

    async def ScoreStream(
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Any
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        async for _ in request_iterator:
            raise InvalidRequestError([FieldViolation("quotes", "has 250 items; 1 to 100 are allowed")])
        yield pb.ScoreStreamResponse()


async def test_a_refused_batch_waits_and_is_not_taken_for_invalid_quotes() -> None:
    async def build(lifetime: Lifetime) -> Sequence[Mount]:
        service = pb.DESCRIPTOR.services_by_name["ScorerService"]
        return [Mount(add_ScorerServiceServicer_to_server, Refusing(), service)]  # type: ignore[abstract]

    async with served("scorer", ServerSettings(), build) as server:
        pool = WarmPool([server.address], ClientSettings())
        results = await pool.score([quote(0), quote(1)], {})
        assert [type(result) for result in results] == [DependencyUnavailableError] * 2
        await pool.close()


async def test_an_unreachable_scorer_rests_while_others_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_pool, "REST_SECONDS", 600.0)
    pool = WarmPool(["127.0.0.1:1", "127.0.0.1:2"], ClientSettings(rpc_timeout_seconds=2))
    series = quote(0).series
    first = pool.route(series)
    (result,) = await pool.score([quote(0)], {})
    assert isinstance(result, DependencyUnavailableError)
    assert pool.route(series) != first
    await pool.close()


NAME = "localhost"
"""Stands for the Cloud Map name: what the certificates are of. Its addresses are the test's."""


@dataclass
class Scorers:
    """Real scorers at addresses of this machine, all on one port, and which series each was given."""

    settings: ScorerSettings
    running: dict[str, AsyncExitStack] = field(default_factory=dict)
    seen: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    held: set[str] = field(default_factory=set)
    """Addresses whose scorers read nothing more until `released`."""
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def target(self) -> str:
        return f"{NAME}:{self.settings.grpc_port}"

    def at(self, address: str) -> str:
        return f"{address}:{self.settings.grpc_port}"

    async def start(self, *addresses: str) -> None:
        for address in addresses:
            self.running[address] = stack = AsyncExitStack()
            settings = self.settings.model_copy(update={"grpc_host": address})
            await stack.enter_async_context(served("scorer", settings, partial(self._build, address, settings)))

    async def _build(self, address: str, settings: ScorerSettings, lifetime: Lifetime) -> Sequence[Mount]:
        mounts = await build(lifetime, settings)
        servicer: Any = mounts[0].servicer
        score_stream = servicer.ScoreStream

        async def noted(requests: AsyncIterator[pb.ScoreStreamRequest]) -> AsyncIterator[pb.ScoreStreamRequest]:
            async for request in requests:
                self.seen[address].update(each.symbol for each in request.quotes)
                self.asked.set()
                if address in self.held:
                    await self.released.wait()
                yield request

        async def score_noted(
            requests: AsyncIterator[pb.ScoreStreamRequest], context: Any
        ) -> AsyncIterator[pb.ScoreStreamResponse]:
            async for response in score_stream(noted(requests), context):
                yield response

        servicer.ScoreStream = score_noted
        return mounts

    async def stop(self, *addresses: str) -> None:
        for address in addresses or list(self.running):
            await self.running.pop(address).aclose()

    def resolve(self, host: str) -> list[str]:
        """Cloud Map's answer: what runs."""
        assert host == NAME
        return sorted(self.running)


@pytest.fixture
async def scorers(tmp_path: Path) -> AsyncIterator[Scorers]:
    """Their certificates are of `localhost`, and signed by an authority that tests trust."""
    authority = Authority("authority")
    replace(tmp_path / "ca.pem", authority.pem)
    certificate, key = authority.issue("scorer").write(tmp_path, "scorer")
    settings = ScorerSettings(
        grpc_port=free_port(),
        gateway_address="none",
        tls_cert_file=certificate,
        tls_key_file=key,
        tls_client_ca_file=tmp_path / "ca.pem",
        tls_ca_file=tmp_path / "ca.pem",
        rpc_timeout_seconds=120,
    )
    made = Scorers(settings)
    yield made
    await made.stop()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked up at each call."""
    monkeypatch.setattr(pool_addresses, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(pool_addresses, "SOONEST_SECONDS", 0.0)
    monkeypatch.setattr(pool_addresses, "_ANSWER_SECONDS", 60.0)


SYMBOLS = [f"SYM{i}" for i in range(40)]


async def play(pool: WarmPool, minute: int) -> list[Score | TapewatchError]:
    return await pool.score([quote(minute, symbol) for symbol in SYMBOLS], {})


async def warmed(pool: WarmPool, scorers: Scorers) -> None:
    """Every scorer of the pool has answered, however busy the machine is."""
    async with asyncio.timeout(60):
        while not all(isinstance(result, Score) for result in await play(pool, 0)):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    scorers.seen.clear()


async def all_serving(pool: WarmPool) -> None:
    """Every scorer's name is known and its channel is connected: a call to one that is just starting may fail."""
    async with asyncio.timeout(60):
        while not all((await pool.serving()).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def homes(scorers: Scorers) -> dict[str, str]:
    """Which scorer got which series since the last call; one series has one."""
    found: dict[str, str] = {}
    for address, symbols in scorers.seen.items():
        assert not symbols & set(found), "a series met two scorers"
        found |= dict.fromkeys(symbols, address)
    scorers.seen.clear()
    return found


@pytest.mark.usefixtures("often")
async def test_each_address_of_a_name_is_a_scorer_and_keeps_its_series(scorers: Scorers) -> None:
    await scorers.start("127.0.0.1", "127.0.0.2")
    pool = WarmPool([scorers.target], scorers.settings, scorers.resolve)
    await warmed(pool, scorers)
    await all_serving(pool)
    assert pool.addresses == (scorers.at("127.0.0.1"), scorers.at("127.0.0.2"))
    assert all(isinstance(result, Score) for result in await play(pool, 0))
    two = homes(scorers)
    assert set(two.values()) == {"127.0.0.1", "127.0.0.2"}
    assert all(isinstance(result, Score) for result in await play(pool, 1))
    assert homes(scorers) == two, "the same ones again"

    await scorers.start("127.0.0.3")
    await all_serving(pool)
    assert all(isinstance(result, Score) for result in await play(pool, 2))
    three = homes(scorers)
    moved = {symbol for symbol in SYMBOLS if three[symbol] != two[symbol]}
    assert moved
    assert {three[symbol] for symbol in moved} == {"127.0.0.3"}, "only to the one that came"

    await scorers.stop("127.0.0.2")
    assert all(isinstance(result, Score) for result in await play(pool, 3))
    left = homes(scorers)
    assert {s for s in SYMBOLS if left[s] != three[s]} == {s for s in SYMBOLS if three[s] == "127.0.0.2"}
    await pool.close()


async def test_a_scorer_that_dies_before_its_name_does_loses_nothing(
    scorers: Scorers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scorers.start("127.0.0.1", "127.0.0.2")
    stale = scorers.resolve(NAME)
    pool = WarmPool([scorers.target], scorers.settings, lambda _: stale)
    await warmed(pool, scorers)
    assert all(isinstance(result, Score) for result in await play(pool, 0))
    before = homes(scorers)
    monkeypatch.setattr(warm_pool, "REST_SECONDS", 600.0)
    await scorers.stop("127.0.0.2")
    results = await play(pool, 1)
    failed = {symbol for symbol, result in zip(SYMBOLS, results, strict=True) if not isinstance(result, Score)}
    assert failed == {symbol for symbol, home in before.items() if home == "127.0.0.2"}
    assert all(isinstance(r, DependencyUnavailableError) for r in results if not isinstance(r, Score)), "come again"
    assert all(isinstance(result, Score) for result in await play(pool, 1)), "by the one that is left"
    await pool.close()


@pytest.mark.usefixtures("often")
async def test_a_scorer_that_leaves_its_name_ends_what_it_was_given(scorers: Scorers) -> None:
    await scorers.start("127.0.0.1", "127.0.0.2")
    answer = scorers.resolve(NAME)
    pool = WarmPool([scorers.target], scorers.settings, lambda _: answer)
    await warmed(pool, scorers)
    assert all(isinstance(result, Score) for result in await play(pool, 0))
    before = homes(scorers)
    leaving = [s for s in SYMBOLS if before[s] == "127.0.0.2"]
    quotes = [quote(minute, leaving[0]) for minute in range(1, 3_001)]
    scorers.asked.clear()
    scorers.held.add("127.0.0.2")
    given = asyncio.create_task(pool.score(quotes, {}))
    await scorers.asked.wait()
    answer = ["127.0.0.1"]
    assert all(isinstance(result, Score) for result in await play(pool, 3_001))
    assert pool.addresses == (scorers.at("127.0.0.1"),)
    assert not given.done(), "it was still at work when its name was gone"
    scorers.released.set()
    assert all(isinstance(result, Score) for result in await given)
    await pool.close()


async def test_a_certificate_of_another_name_is_refused(scorers: Scorers) -> None:
    await scorers.start("127.0.0.1")
    settings = scorers.settings.model_copy(update={"rpc_timeout_seconds": 2.0})
    port = scorers.settings.grpc_port
    pool = WarmPool([f"scorer.internal:{port}"], settings, lambda _: ["127.0.0.1"])
    (result,) = await pool.score([quote(0)], {})
    assert isinstance(result, DependencyUnavailableError)
    assert pool.addresses == (f"127.0.0.1:{port}",)
    await pool.close()


async def test_a_name_that_cannot_be_looked_up_stays_what_it_was(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[list[str] | OSError] = [OSError("no such name"), ["10.0.0.2", "10.0.0.1"], OSError("away"), []]
    now = [0.0]

    def resolve(host: str) -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    addresses = pool_addresses.PoolAddresses(["10.9.9.9:1", "scorer.internal:2"], resolve, lambda: now[0])

    async def looked(seconds: float, *failed: str) -> list[str]:
        now[0] += seconds
        for address in failed:
            addresses.failed(address)
        await addresses.refresh()
        return [endpoint.address for endpoint in addresses.endpoints]

    assert await looked(0) == ["10.9.9.9:1", "scorer.internal:2"], "the rest is gRPC's"
    known = ["10.9.9.9:1", "10.0.0.1:2", "10.0.0.2:2"]
    assert await looked(pool_addresses.LOOK_SECONDS - 0.1) == ["10.9.9.9:1", "scorer.internal:2"], "not yet"
    assert await looked(0.2) == known
    assert await looked(pool_addresses.SOONEST_SECONDS + 0.1, "10.0.0.1:2") == known, "sooner after a failure"
    assert len(answers) == 1
    assert await looked(pool_addresses.LOOK_SECONDS) == known, "an empty answer is none"
    assert "no such name" in caplog.text


async def test_more_scorers_than_one_answer_holds_stay_known_while_they_serve() -> None:
    every = [f"10.0.0.{i:02}" for i in range(1, 13)]
    answer = every[: pool_addresses.ANSWER_LIMIT]
    now = [0.0]
    addresses = pool_addresses.PoolAddresses(["scorer.internal:1"], lambda _: answer, lambda: now[0])

    async def looked(*failed: str) -> list[str]:
        now[0] += pool_addresses.LOOK_SECONDS
        for address in failed:
            addresses.failed(address)
        await addresses.refresh()
        return [endpoint.address.partition(":")[0] for endpoint in addresses.endpoints]

    assert await looked() == every[:8]
    answer = every[4:]
    assert await looked() == every
    assert await looked("10.0.0.01:1") == every[1:], "gone is what fails and is in no answer"
    answer = every[4:7]
    assert await looked() == every[4:7], "all of them are in such an answer"


async def test_a_name_that_a_token_may_not_be_sent_to_is_refused_at_once() -> None:
    with pytest.raises(NotConfiguredError, match="TLS_CA_FILE"):
        WarmPool(["scorer.internal:50051"], ClientSettings(auth_token=SecretStr("t0ken")))


def test_the_systems_resolver_is_asked() -> None:
    assert pool_addresses.resolve("localhost") == ["127.0.0.1"]
    with pytest.raises(OSError, match=r"\w"):
        pool_addresses.resolve("nothing.invalid")
