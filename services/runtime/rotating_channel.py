"""A channel that goes on with new certificates once their files were replaced."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc

from services.runtime.tls import TlsMaterial, TlsWatch

_SETTLE_SECONDS = 1.0
"""A call that was just begun on the former channel has reached the network by then."""

_CALL_SECONDS_LIMIT = 30 * 24 * 3600.0


class RotatingChannel(grpc.aio.Channel):
    """Makes every call on a channel with the certificates of the moment.

    gRPC's credentials are fixed for a channel's life, so that a new set means a new channel. Calls in flight, streams
    among them, stay on the channel they began on, which is closed after the last of them.

    Args:
        watch: The certificates.
        connect: Makes a channel with them.
    """

    def __init__(self, watch: TlsWatch, connect: Callable[[TlsMaterial], grpc.aio.Channel]) -> None:
        self._watch = watch
        self._connect = connect
        self._material = watch.current()
        self._channel = connect(self._material)
        self._retired: set[asyncio.Task[None]] = set()

    def current(self) -> grpc.aio.Channel:
        """The channel for a new call."""
        material = self._watch.current()
        if material is not self._material:
            former, self._channel, self._material = self._channel, self._connect(material), material
            retiring = asyncio.create_task(_retire(former), name="retire channel")
            self._retired.add(retiring)
            retiring.add_done_callback(self._retired.discard)
        return self._channel

    async def __aenter__(self) -> "RotatingChannel":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close it with every channel before it; calls in flight have `grace` seconds."""
        retired = list(self._retired)
        for retiring in retired:
            retiring.cancel()
        await asyncio.gather(self._channel.close(grace), *retired, return_exceptions=True)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The current channel's state."""
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return once the current channel's state is another."""
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Return once the current channel is connected."""
        await self.current().channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """A method's multi-callable."""
        return _Following(self, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """A method's multi-callable."""
        return _Following(self, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """A method's multi-callable."""
        return _Following(self, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """A method's multi-callable."""
        return _Following(self, "stream_stream", args, kwargs)


class _Following:
    """A method's multi-callable, always the current channel's."""

    def __init__(self, channel: RotatingChannel, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._rotating = channel
        self._kind, self._args, self._kwargs = kind, args, kwargs
        self._made: tuple[grpc.aio.Channel, Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        channel = self._rotating.current()
        if self._made is None or self._made[0] is not channel:
            self._made = channel, getattr(channel, self._kind)(*self._args, **self._kwargs)
        return self._made[1](*args, **kwargs)


async def _retire(channel: grpc.aio.Channel) -> None:
    try:
        await asyncio.sleep(_SETTLE_SECONDS)
        await channel.close(_CALL_SECONDS_LIMIT)
    except asyncio.CancelledError:
        await channel.close()
        raise
