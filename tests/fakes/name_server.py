"""A name server of a few lines, for names that a cluster's would know."""

import asyncio
import ipaddress
import struct

A, AAAA = 1, 28
NO_SUCH_NAME = 3
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHHIH")
"""Name, type, class, seconds to live, length."""


class NameServer(asyncio.DatagramProtocol):
    """Answers with the addresses of `records`, by name; they may change while it runs."""

    def __init__(self, records: dict[str, list[str]]) -> None:
        self.records = records
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport):
        self._transport = transport

    def datagram_received(self, query, client):
        assert self._transport is not None
        self._transport.sendto(self.answer(query), client)

    def answer(self, query: bytes) -> bytes:
        """Returns the message that answers a query of one question."""
        number, _, num_questions, *_ = _HEADER.unpack_from(query)
        assert num_questions == 1
        labels, at = [], _HEADER.size
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode())
            at += 1 + length
        end = at + 5  # the root's label, type and class
        (kind,) = struct.unpack_from("!H", query, at + 1)
        found = self.records.get(".".join(labels).lower())
        version = {A: 4, AAAA: 6}.get(kind)
        parsed = map(ipaddress.ip_address, found or ())
        addresses = [address.packed for address in parsed if address.version == version]
        # An answer, authoritative, recursion was asked for and is there.
        flags = 0x8580 | (NO_SUCH_NAME if found is None else 0)
        answers = b"".join(
            # 0xC00C is the name of the question.
            _RECORD.pack(0xC00C, kind, 1, 1, len(address)) + address
            for address in addresses
        )
        header = _HEADER.pack(number, flags, 1, len(addresses), 0, 0)
        return header + query[_HEADER.size : end] + answers
