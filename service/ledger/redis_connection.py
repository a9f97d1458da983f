"""A connection to the Redis that keeps the ledger: made, asked whether it forgets, its errors as sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.retry import Retry

from service.ledger.ledger import LedgerError
from service.ledger.names import bound_names
from service.ledger.silence import Silence

ANSWER_S = 5.0
"""Longest wait for an answer, in seconds."""

DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
"""How Redis must be set so that what it acknowledges is there after any crash, and stays."""

_COPY = "it is a read-only copy: name the primary in DEBUT_LEDGER, or wait until this is one"
_REMEDIES = {
    "OOM": "it holds as much as maxmemory allows: raise that with CONFIG SET there and in redis.conf",
    "MISCONF": "its disk is full or broken: make room there, and see its log",
    "NOREPLICAS": "it has fewer copies than min-replicas-to-write asks for: bring them back, or set that lower",
    "READONLY": _COPY,
    "UNBLOCKED": _COPY,  # it became one while it was asked
}
"""What to do when Redis answers, but takes no write; by the word that its error begins with."""

_ON_DISK = ("WAITAOF", 1, 0, 3000)  # this machine's file, nobody else's, milliseconds


class Connection:
    """Redis, from several threads; `commands` are redis-py's, to be used within `translated`.

    A connection that broke is made anew once and at once (Redis was restarted); a Redis that is away is an error now,
    so that whoever asks can be told to come back. One that keeps silent is waited for by one caller at a time.
    """

    def __init__(self, url: str, password_file: Path | None) -> None:
        """Raises LedgerError for a URL or password file that cannot be used; does not connect yet."""
        try:
            self.commands: Any = redis.Redis.from_url(
                url,
                protocol=2,
                socket_timeout=ANSWER_S,
                socket_connect_timeout=ANSWER_S,
                retry=Retry(NoBackoff(), 1, (redis.ConnectionError,)),
                **({} if password_file is None else {"password": _password(password_file)}),
            )
        except ValueError as error:
            raise LedgerError(
                f"DEBUT_LEDGER cannot be used ({error}): redis://host:port/db is what it takes."
            ) from None
        bound_names(self.commands)
        self._silence = Silence()
        told = self.commands.get_connection_kwargs()
        place = told.get("path") or f"{told.get('host', 'localhost')}:{told.get('port', 6379)}"
        self.name = f"Redis at {place}/{told.get('db', 0)}"
        self._confirms = False

    def open(self, unchecked: bool) -> None:
        """Find out whether Redis can confirm what is on disk. Raises LedgerError if it may forget, unless `unchecked`.

        Redis 7.2 and Valkey can confirm (WAITAOF); of older ones, appendfsync alone says that they answer after fsync.
        """
        with self.translated():
            self.commands.ping()
            if not unchecked:
                self._refuse_forgetful()
            try:
                self.commands.execute_command(*_ON_DISK)
                self._confirms = True
            except ResponseError:  # unknown to it; or appendonly is no, which `unchecked` allows
                self._confirms = False

    def _refuse_forgetful(self) -> None:
        way_out = "DEBUT_REDIS_UNCHECKED=true"
        try:
            told = {name: self.commands.execute_command("CONFIG GET", name) for name in DURABLE}
        except ResponseError as error:
            wanted = ", ".join(f"{name} {value}" for name, value in DURABLE.items())
            raise LedgerError(
                f"{self.name} does not tell whether it keeps what it acknowledges ({error}), as managed ones often do "
                f"not: see to it that it has {wanted}, then set {way_out}.",
                code="ledger_unsafe",
            ) from None
        found = {name: _value(told[name], name) for name in DURABLE}
        if wrong := {name: value for name, value in found.items() if value != DURABLE[name]}:
            commands = " and ".join(f"`CONFIG SET {name} {DURABLE[name]}`" for name in wrong)
            has = ", ".join(f"{name} is {value}" for name, value in wrong.items())
            raise LedgerError(
                f"{self.name} may lose acknowledged tracks ({has}): run {commands} there with redis-cli, and put the "
                f"same into its redis.conf; or take the risk with {way_out}.",
                code="ledger_unsafe",
            )

    def write(self, script: str, *arguments: Any) -> Any:
        """Run a Lua script that writes (without KEYS) and return its answer once it is on disk. Raises LedgerError."""
        with self.translated():
            pipe = self.commands.pipeline(transaction=False)  # one connection: WAITAOF is about its own writes
            pipe.execute_command("EVAL", script, 0, *arguments)
            if self._confirms:
                pipe.execute_command(*_ON_DISK)
            answer, *confirmed = pipe.execute(raise_on_error=False)
            for reply in (answer, *confirmed):
                if isinstance(reply, Exception):
                    raise reply
            if confirmed and int(confirmed[0][0]) < 1:
                raise redis.TimeoutError("its disk does not confirm what was written")
            return answer

    @property
    def silent(self) -> bool:
        """Whether Redis keeps silent, as far as is known."""
        return self._silence.lasts

    @contextmanager
    def translated(self, *, patient: bool = False) -> Iterator[None]:
        """Turn Redis's errors into LedgerError with a sentence that helps.

        While Redis keeps silent, one caller at a time asks it, `patient` ones first; the others are told at once.
        """
        with self._silence.endured(patient):
            try:
                yield
            except redis.RedisError as error:
                if isinstance(error, ReadOnlyError):  # its name may lead to another by now
                    self.commands.connection_pool.disconnect(inuse_connections=False)
                raise self._refusal(error) from error

    def _refusal(self, error: redis.RedisError) -> LedgerError:
        if isinstance(error, (AuthenticationError, AuthorizationError, NoPermissionError)):
            return LedgerError(
                f"{self.name} does not let the service in ({error}): set DEBUT_REDIS_PASSWORD_FILE to a file with the "
                "password, and name the user in DEBUT_LEDGER (redis://user@host:port/db)."
            )
        if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
            return LedgerError(f"{self.name} does not answer ({error}): start it, or check DEBUT_LEDGER.")
        if remedy := _REMEDIES.get(_kind(error)):
            return LedgerError(f"{self.name} takes no writes, {remedy}.", readable=True)
        return LedgerError(f"{self.name} cannot be written ({error}): check its memory, disk and log.")

    def close(self) -> None:
        """Let go of all connections."""
        self.commands.close()


def _password(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"{path} cannot be read ({error}): check DEBUT_REDIS_PASSWORD_FILE.") from None


def _kind(error: redis.RedisError) -> str:
    """Return the word that Redis's error began with, which redis-py leaves out of those that it knows."""
    known: dict[type, str] = {OutOfMemoryError: "OOM", ReadOnlyError: "READONLY"}
    return known.get(type(error)) or str(error).partition(" ")[0]


def _value(told: Any, name: str) -> str:
    """Return a setting's value from CONFIG GET's answer; "unknown" when it has none."""
    found = dict(told) if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))
    value = found.get(name, found.get(name.encode(), "unknown"))
    return value.decode() if isinstance(value, bytes) else str(value)
