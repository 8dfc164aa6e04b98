"""Manifests read back: the messages of a batch, as quotes and as they were sent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from services.domain.errors import DependencyUnavailableError, InvalidQuoteError
from services.domain.quote import Quote
from services.pipeline.batch_files import BatchFiles, manifest_name
from services.queue import market_message

_KEPT = 256
"""Manifests kept in memory: those of the batches that are followed now."""


@dataclass(frozen=True, slots=True)
class Member:
    """One message of a batch."""

    message: Mapping[str, Any]
    quote: Quote


class ManifestReader:
    """Reads manifests by their digest, each seldom more than once. Safe to call from several threads."""

    def __init__(self, files: BatchFiles) -> None:
        self._files = files
        self.content = lru_cache(maxsize=_KEPT)(self._content)
        self.read = lru_cache(maxsize=_KEPT)(self._read)

    def _content(self, digest: str) -> bytes:
        """The manifest's bytes. Raises: DependencyUnavailableError when it is not there, which cannot pass by itself.

        The batch stays open, for an operator: the ledger holds nothing whose manifest was not durable.
        """
        content = self._files.get(manifest_name(digest))
        if content is None:
            raise DependencyUnavailableError(
                "batches", f"the manifest {self._files.uri(manifest_name(digest))} is gone"
            )
        return content

    def _read(self, digest: str) -> list[Member]:
        """The manifest's messages. Raises: DependencyUnavailableError as above, or when it is damaged."""
        try:
            messages = json.loads(self.content(digest))
            return [Member(each, market_message.decode(json.dumps(each), {})) for each in messages]
        except (ValueError, InvalidQuoteError) as error:
            raise DependencyUnavailableError("batches", f"the manifest {digest} is damaged: {error}") from error

    def positions(self, whole: str, part: str) -> list[int]:
        """Where in the whole manifest the messages of a part of it stand."""
        if part == whole:
            return list(range(len(self.read(whole))))
        members = self.read(whole)
        found: list[int] = []
        at = 0
        for member in self.read(part):
            while at < len(members) and members[at].message != member.message:
                at += 1
            if at == len(members):
                raise DependencyUnavailableError("batches", f"the manifest {part} is no part of {whole}")
            found.append(at)
            at += 1
        return found
