"""Clients of a running service, many at once on a few connections: as fast as they are answered, or at a given rate."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import uvloop

Request = Callable[[int], bytes]
"""Whole HTTP/1.1 requests: the n-th of its kind."""


@dataclass
class Answers:
    """What became of one kind of request."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """Of those that were answered 2xx."""
    accepted: list[int] = field(default_factory=list)
    """Their numbers."""
    hurried: int = 0
    """429 and 503 without Retry-After."""
    unsent: int = 0
    """Due while every connection was busy."""

    def percentile(self, of: float) -> float:
        """Return a percentile of the accepted ones' seconds; NaN when there are none."""
        ranked = sorted(self.seconds)
        return ranked[math.ceil(of / 100 * len(ranked)) - 1] if ranked else math.nan

    @property
    def others(self) -> dict[int, int]:
        """How many were answered neither 2xx nor 429 or 503; 0 stands for a broken connection."""
        return {status: n for status, n in self.statuses.items() if status // 100 != 2 and status not in (429, 503)}


def as_answered(
    address: tuple[str, int], kinds: Mapping[str, Request], clients: Mapping[str, int], seconds: float
) -> dict[str, Answers]:
    """Let `clients` of each kind send one request after the other for so long."""

    async def run() -> dict[str, Answers]:
        load = _Load(address, kinds)
        until = time.perf_counter() + seconds

        async def client(kind: str) -> None:
            while time.perf_counter() < until:
                await load.send(kind)

        await asyncio.gather(*(client(kind) for kind, count in clients.items() for _ in range(count)))
        return load.close()

    return uvloop.run(run())


def at_rate(
    address: tuple[str, int],
    kinds: Mapping[str, Request],
    rates: Mapping[str, float],
    seconds: float,
    connections: int,
) -> dict[str, Answers]:
    """Send each kind so many times a second, whatever becomes of the earlier ones.

    A request for which none of `connections` is free is not sent, and counted. Returns when all are answered.
    """

    async def run() -> dict[str, Answers]:
        load = _Load(address, kinds)
        under_way: set[asyncio.Task[None]] = set()

        async def source(kind: str) -> None:
            began, sent = time.perf_counter(), 0
            while (now := time.perf_counter()) < began + seconds:
                due = int((now - began) * rates[kind]) + 1
                for _ in range(due - sent):
                    if len(under_way) >= connections:
                        load.answers[kind].unsent += 1
                        continue
                    task = asyncio.ensure_future(load.send(kind))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                sent = due
                await asyncio.sleep(0.005)

        await asyncio.gather(*(source(kind) for kind in rates))
        while under_way:
            await asyncio.wait(under_way)
        return load.close()

    return uvloop.run(run())


class _Load:
    """Connections that are used again, and what was answered on them."""

    def __init__(self, address: tuple[str, int], kinds: Mapping[str, Request]) -> None:
        self.answers = {kind: Answers() for kind in kinds}
        self._address, self._kinds = address, kinds
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._numbers = Counter[str]()

    async def send(self, kind: str) -> None:
        number = self._numbers[kind]
        self._numbers[kind] += 1
        request, seen, began = self._kinds[kind](number), self.answers[kind], time.perf_counter()
        try:
            status, patient = await self._answer(request)
        except (OSError, asyncio.IncompleteReadError):
            seen.statuses[0] += 1
            return
        seen.statuses[status] += 1
        if status // 100 == 2:
            seen.seconds.append(time.perf_counter() - began)
            seen.accepted.append(number)
        elif status in (429, 503):
            seen.hurried += not patient

    async def _answer(self, request: bytes) -> tuple[int, bool]:
        """Return an answer's status, and whether it says when to come again.

        A connection that the service closed while it was idle is made anew, as any client does (RFC 9112, 9.3.1).
        """
        while self._idle:
            try:
                return await self._exchange(*self._idle.pop(), request)
            except (OSError, asyncio.IncompleteReadError) as error:
                if getattr(error, "partial", b""):
                    raise
        return await self._exchange(*await asyncio.open_connection(*self._address), request)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> tuple[int, bool]:
        sending = asyncio.ensure_future(_write(writer, request))
        kept = False
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            # An upload that was refused at once is still on its way; whoever is slow is cut off after the answer.
            kept = await sending and b"connection: close" not in head
        finally:
            if kept:
                self._idle.append((reader, writer))
            else:
                sending.cancel()
                writer.close()
        return int(head.split(b" ", 2)[1]), b"\r\nretry-after: " in head

    def close(self) -> dict[str, Answers]:
        for _, writer in self._idle:
            writer.close()
        return self.answers


async def _write(writer: asyncio.StreamWriter, request: bytes) -> bool:
    """Return whether all of it was taken."""
    try:
        writer.write(request)
        await writer.drain()
    except OSError:
        return False
    return True


def request(method: str, path: str, body: bytes = b"", kind: str = "") -> bytes:
    """Return a whole request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    if kind:
        lines.append(f"Content-Type: {kind}")
    return "\r\n".join([*lines, "", ""]).encode() + body
