"""Sending recordings to a running service: retried while it is busy or away, given up when it says no."""

import email.utils
import json
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from index.errors import DebutError
from service.bulk.journal import Fate
from service.bulk.source import Item

BUSY = (429, 503)
LONGEST_WAIT_S = 60.0
BREAKS = 4
"""Connections that may break while one recording is sent; a service that is away breaks none."""

TIMEOUT = httpx.Timeout(300.0, connect=10.0)


class ServiceError(DebutError):
    """The service does not answer, or will not answer us: there is no use in going on. Code service_unreachable."""

    code = "service_unreachable"


class _BrokenError(Exception):
    """The connection broke again and again while one recording was sent: it is the recording, or what lies between."""


class StoppedError(Exception):
    """The run was told to stop while this recording waited for its turn."""


class Sender:
    """A client of the service at `url`; threads may share it.

    `patience_s` is how long one recording is tried again while the service is busy, restarting or away.
    """

    def __init__(
        self, url: str, key: str | None, jobs: int, *, patience_s: float, replace: bool, stopping: threading.Event
    ) -> None:
        headers = {"User-Agent": "debut-ingest"} | ({"Authorization": f"Bearer {key}"} if key else {})
        limits = httpx.Limits(max_connections=jobs, max_keepalive_connections=jobs)
        # No proxy from the environment: it would see the key and the recordings.
        try:
            self._client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT, limits=limits, trust_env=False)
        except httpx.InvalidURL as error:
            raise ServiceError(f"--url {url} is no address ({error}): it is like http://127.0.0.1:8000.") from None
        self._url, self._patience_s, self._stopping = url, patience_s, stopping
        self._query = {"replace": "true"} if replace else {}

    def check(self) -> None:
        """Ask whether the service is ready. Raises ServiceError when nobody answers, or not as Debut does."""
        try:
            answer = self._client.get("/readyz")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceError(f"No service answers at {self._url} ({_said(error)}): start it, or set --url.") from None
        _refuse_stranger(answer)
        if answer.status_code not in (200, *BUSY):
            raise ServiceError(f"What answers at {self._url} is no Debut ({answer.status_code}): set --url.")

    def has(self, track_id: str) -> bool:
        """Whether the service has a track of this id. Raises ServiceError, StoppedError."""
        try:
            answer = self._patiently(lambda: self._client.get(f"/tracks/{quote(track_id, safe='')}"))
        except _BrokenError:
            return False
        return answer.status_code == 200

    def send(self, item: Item) -> Fate:
        """Upload a recording; return what became of it. Raises ServiceError, StoppedError."""
        named = str(item.metadata.get("track_id", ""))
        try:
            metadata = json.dumps(dict(item.metadata), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Fate(item.key, "", "failed", None, "bad_name", "Its name is no UTF-8: rename it.")
        try:
            answer = self._patiently(lambda: self._post(item.file, metadata))
        except OSError as error:
            detail = f"{item.file} cannot be read ({error.strerror})."
            return Fate(item.key, named, "failed", None, "unreadable", detail)
        except _BrokenError as error:
            detail = f"The connection broke {BREAKS} times while it was sent ({error})."
            return Fate(item.key, named, "failed", None, "connection_broke", detail)
        said = _json(answer)
        if answer.status_code in (200, 201) and isinstance(track := said.get("track"), dict):
            near = (said.get("quality") or {}).get("near_duplicate") or {}
            return Fate(
                item.key,
                str(track.get("track_id", named)),
                str(said.get("outcome")),
                answer.status_code,
                duplicate_of=str(near.get("track_id", "")),
            )
        detail = str(said.get("detail") or answer.reason_phrase)
        return Fate(item.key, named, "failed", answer.status_code, str(said.get("code", "")), detail)

    def _post(self, file: Path, metadata: bytes) -> httpx.Response:
        with file.open("rb") as audio:
            parts: dict[str, tuple[str | None, bytes | BinaryIO, str]] = {
                "metadata": (None, metadata, "application/json"),  # first: a bad one is refused before the audio is in
                "audio": ("audio", audio, "application/octet-stream"),
            }
            return self._client.post("/ingest-track", params=self._query, files=parts)

    def _patiently(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        """Ask until there is an answer that stands. Uploading is idempotent, so a lost answer is asked for again."""
        deadline, wait, breaks = time.monotonic() + self._patience_s, 0.5, 0
        while True:
            if self._stopping.is_set():
                raise StoppedError
            try:
                answer = ask()
            except httpx.TransportError as error:
                breaks += not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
                if breaks >= BREAKS:
                    raise _BrokenError(_said(error)) from None
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"The service at {self._url} does not answer any more ({_said(error)}): the same command goes "
                        "on from here."
                    ) from None
                pause = wait
            else:
                _refuse_stranger(answer)
                full = _json(answer).get("code") == "ledger_full"  # no recording can be taken in, whichever it is
                if full and time.monotonic() > deadline:
                    raise ServiceError(
                        f"The disk of the service at {self._url} stays full: make room there; the same command goes on "
                        "from here.",
                        code="ledger_full",
                    )
                if not full and (answer.status_code not in BUSY or time.monotonic() > deadline):
                    return answer
                pause = max(_retry_after(answer), wait / 4)
            wait = min(wait * 2, LONGEST_WAIT_S / 2)
            # Spread, so that all who were sent away do not come back at once.
            self._stopping.wait(min(pause * random.uniform(1, 1.5), LONGEST_WAIT_S))

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()


def _refuse_stranger(answer: httpx.Response) -> None:
    if answer.status_code in (401, 403):
        said = _json(answer).get("detail", answer.reason_phrase)
        raise ServiceError(f"The service does not let us in ({said}): see --key-file.", code="service_refused")


def _retry_after(answer: httpx.Response) -> float:
    """Return the seconds of a Retry-After header, in either of its forms (RFC 9110, section 10.2.3); 1 without one."""
    text = answer.headers.get("retry-after", "1").strip()
    if text.isdigit():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 1.0
    return max(0.0, ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        said = answer.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
