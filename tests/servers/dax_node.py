"""A node that speaks as much of DAX's protocol as its client asks for to get an item, over a real socket.

It is written from the client's own code, because nothing else describes the protocol: it shows that adapter and client
fit together, and what they do when a node is away, hangs or refuses. It shows nothing about AWS's clusters. Its item
cache is as bad as DAX may be by its documentation: what was read once, absence included, is never read again.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
from amazondax.AttributeValueEncoder import encode_attribute_value
from amazondax.CborDecoder import NoMoreData
from amazondax.CborEncoder import CborEncoder
from amazondax.Constants import DaxDataRequestParam, DaxResponseParam, ReturnConsumedCapacityValues, Role
from amazondax.DaxCborDecoder import DaxCborDecoder

from tests.servers.process import ACCESS_KEY, REGION, free_port

_ACCESS_DENIED = (4, 37, 38, 42)
_SERVICE, _AUTHORIZE = 1, 1489122155
_ENDPOINTS, _KEY_SCHEMA, _ATTRIBUTES, _GET_ITEM = 455855874, -742646399, 670678385, 263244906
_NO_CAPACITY = {DaxDataRequestParam.ReturnConsumedCapacity: ReturnConsumedCapacityValues.NONE}
"""What the client says by itself. Above all, no strongly consistent read: it would go past the cache."""

_HELLO = "J7yne5G"
_ADDRESS = "127.0.0.1"


class DaxNode:
    """A cluster of one node in this process; start it, and stop it. Items come from DynamoDB at `AWS_ENDPOINT_URL…`.

    With a certificate and its key it speaks TLS.
    """

    def __init__(self, port: int = 0, certificate: tuple[Path, Path] | None = None) -> None:
        self.port = port or free_port()
        self._tls = None
        if certificate is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(*certificate)
        self.asked: list[tuple[str, str, str]] = []
        """Table, partition and sort key of each GetItem, in order."""
        self.hangs = False
        self.refuses = False
        self._table = boto3.Session(region_name=REGION).client("dynamodb")
        self._cache: dict[tuple[str, str, str], dict[str, Any] | None] = {}
        self._attributes: list[list[str]] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None

    @property
    def endpoint(self) -> str:
        return f"daxs://localhost:{self.port}" if self._tls else f"dax://{_ADDRESS}:{self.port}"

    def start(self) -> "DaxNode":
        self._listener = socket.create_server((_ADDRESS, self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def stop(self) -> None:
        """End it as a node that is gone: nobody listens, and every connection is closed."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            for each in self._open:
                with suppress(OSError):  # the client has gone first
                    each.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        speaking = connection

        def more(buffer: bytearray, _: int) -> int:
            data = speaking.recv(65536)
            buffer += data
            return len(data)

        decoder = DaxCborDecoder(more)
        try:
            if self._tls:
                speaking = self._tls.wrap_socket(connection, server_side=True)
            with self._lock:
                self._open.add(speaking)
            assert decoder.decode_string() == _HELLO
            for _ in range(4):  # layering, session, user agent, types
                decoder.decode_object()
            while True:
                answer = self._answer(decoder)
                while self.hangs:
                    time.sleep(0.05)
                if answer is not None:
                    speaking.sendall(answer)
        except (NoMoreData, OSError):
            pass
        finally:
            with self._lock:
                self._open.discard(speaking)
            speaking.close()

    def _answer(self, decoder: Any) -> bytes | None:
        assert decoder.decode_int() == _SERVICE
        method = decoder.decode_int()
        if method == _AUTHORIZE:
            access_key, _signature, _signed, _token, _agent = (decoder.decode_object() for _ in range(5))
            assert access_key == ACCESS_KEY
            return None
        encoder = CborEncoder()
        handlers: dict[int, Callable[[Any, Any], None]] = {
            _ENDPOINTS: self._endpoints,
            _KEY_SCHEMA: self._key_schema,
            _ATTRIBUTES: self._attribute_list,
            _GET_ITEM: self._get_item,
        }
        handlers[method](decoder, encoder)
        return bytes(encoder.as_bytes())

    def _endpoints(self, _: Any, encoder: Any) -> None:
        encoder.append_array_header(0).append_array_header(1).append_map_header(7)
        encoder.append_int(0).append_int(1)
        encoder.append_int(1).append_string(_ADDRESS)
        encoder.append_int(2).append_binary(socket.inet_aton(_ADDRESS))
        encoder.append_int(3).append_int(self.port)
        encoder.append_int(4).append_int(int(Role.LEADER))
        encoder.append_int(5).append_string(f"{REGION}a")
        encoder.append_int(6).append_int(1)

    def _key_schema(self, decoder: Any, encoder: Any) -> None:
        decoder.decode_binary()
        encoder.append_array_header(0).append_map_header(2)
        for name in ("pk", "sk"):
            encoder.append_string(name).append_string("S")

    def _attribute_list(self, decoder: Any, encoder: Any) -> None:
        found = self._attributes[decoder.decode_int() - 2]
        encoder.append_array_header(0).append_array_header(len(found))
        for name in found:
            encoder.append_string(name)

    def _get_item(self, decoder: Any, encoder: Any) -> None:
        table = decoder.decode_binary().decode()
        key_decoder = decoder.decode_cbor()
        partition, sort = key_decoder.decode_string(), key_decoder.drain().decode()
        options = decoder.decode_object()
        assert options in (None, _NO_CAPACITY), options
        self.asked.append((table, partition, sort))
        if self.refuses:
            encoder.append_array_header(len(_ACCESS_DENIED))
            for code in _ACCESS_DENIED:
                encoder.append_int(code)
            encoder.append_string("not authorized to perform: dax:GetItem").append_null()
            return
        item = self._read(table, partition, sort)
        encoder.append_array_header(0)
        if item is None:
            encoder.append_null()
            return
        names = sorted(set(item) - {"pk", "sk"})
        with self._lock:
            if names not in self._attributes:
                self._attributes.append(names)
            known = self._attributes.index(names) + 2  # 1 is the empty list
        body = CborEncoder().append_int(known)
        for name in names:
            body.append_raw(encode_attribute_value(item[name]))
        encoder.append_map_header(1).append_int(DaxResponseParam.Item).append_binary(body.as_bytes())

    def _read(self, table: str, partition: str, sort: str) -> dict[str, Any] | None:
        place = (table, partition, sort)
        if place not in self._cache:
            key = {"pk": {"S": partition}, "sk": {"S": sort}}
            self._cache[place] = self._table.get_item(TableName=table, Key=key).get("Item")
        return self._cache[place]
