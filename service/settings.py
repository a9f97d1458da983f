"""What an operator can set: environment variables with the prefix DEBUT_, checked before anything else."""

import difflib
import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from index.errors import DebutError

PREFIX = "DEBUT_"

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


def _path_or_url(value: Any) -> Any:
    """Tell a path from the URL of a Redis."""
    if not isinstance(value, str):
        return value
    if "://" in value and not value.startswith(REDIS_SCHEMES):
        raise ValueError(f"it is neither a path nor a URL that begins with {' or '.join(REDIS_SCHEMES)}")
    return value if "://" in value else Path(value)


class SettingsError(DebutError):
    """A setting that cannot be used. Codes: unknown_setting, bad_setting, public_host."""

    code = "bad_setting"


class Settings(BaseSettings):
    """Every setting of the service; docs/settings.md is this class as a table (a test compares them)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    keys_file: Path | None = Field(
        default=None, description="File of API keys, made by `python -m service key`; without it there are none."
    )
    allow_anonymous: bool = Field(
        default=False, description="Without API keys, listen where other machines reach the service all the same."
    )
    hosts: str | None = Field(
        default=None,
        description="Names by which clients may call the service, comma-separated; without API keys loopback's alone.",
    )
    releases: Path = Field(
        default=Path("var/releases"),
        description="Releases folder (its `current` is served), or one release's folder.",
    )
    release_poll_s: Seconds = Field(
        default=5.0, description="Time between two looks at which release is current, in seconds."
    )
    ledger: Annotated[Path | str, BeforeValidator(_path_or_url)] = Field(
        default=Path("var/ledger.sqlite"),
        description="Where all tracks taken in or down are kept: a SQLite file, or redis://host:port/db for replicas.",
    )
    redis_password_file: Path | None = Field(
        default=None, description="File with the password of the ledger's Redis; without it none is sent."
    )
    redis_unchecked: bool = Field(
        default=False,
        description="Start though Redis may lose what was acknowledged, or CONFIG, which tells, is forbidden.",
    )

    index: Literal["faiss", "milvus"] = Field(
        default="faiss", description="What searches the release's vectors: FAISS in this process, or Milvus."
    )
    milvus_uri: str = Field(
        default="http://127.0.0.1:19530",
        description="Where Milvus is: http(s)://host:port, or a path ending in .db for Milvus Lite.",
    )
    milvus_token_file: Path | None = Field(
        default=None, description="File with Milvus's `user:password` or API key; without it none is sent."
    )

    max_connections: Count = Field(default=512, description="Connections open at once; one more is a 503.")
    max_header_bytes: Count = Field(
        default=64 * 2**10,
        description="Largest request line and headers together, in bytes; longer metadata needs a form.",
    )
    header_timeout_s: Seconds = Field(
        default=10.0, description="Longest time a request's line and headers may take to arrive, in seconds."
    )
    answer_timeout_s: Seconds = Field(
        default=30.0, description="Longest time a client may take to read an answer, in seconds."
    )
    max_upload_bytes: Count = Field(
        default=64 * 2**20, description="Largest upload, in bytes, multipart framing included."
    )
    max_json_bytes: Count = Field(default=2**20, description="Largest JSON body or metadata part, in bytes.")
    spool_bytes: Count = Field(
        default=2**20,
        description="Upload bytes held in memory; the rest goes to an unnamed file.",
    )
    upload_timeout_s: Seconds = Field(
        default=60.0, description="Longest time an upload may take to arrive, in seconds."
    )
    body_timeout_s: Seconds = Field(
        default=10.0, description="Longest time a JSON body may take to arrive, in seconds."
    )
    min_upload_rate: Count = Field(
        default=4096, description="Least mean rate of an upload after its first 10 seconds, in bytes a second."
    )
    min_audio_s: Seconds = Field(default=1.0, description="Shortest audio accepted, in seconds.")
    max_audio_s: Seconds = Field(default=4 * 3600.0, description="Longest audio accepted, in seconds.")

    max_id_chars: Count = Field(default=200, description="Longest track_id, in characters.")
    max_text_chars: Count = Field(
        default=500, description="Longest title, artist, album, genre or attribute text, in characters."
    )
    max_lyrics_chars: Count = Field(default=20_000, description="Longest lyrics, in characters.")
    max_genres: Count = Field(default=32, description="Most genres of one track.")
    max_attributes: Count = Field(
        default=64, description="Most attributes of one track, and most values of one attribute."
    )

    duplicate_similarity: float = Field(
        default=0.97,
        ge=0,
        le=1,
        description="Cosine of two sketches of the sound from which an answer names a near-duplicate; 1 does not look.",
    )
    ingest_threads: Count = Field(default=2, description="Threads that see uploads through decoding and encoding.")
    decode_workers: Count = Field(
        default=2, description="Processes that decode audio, kept warm; each takes about 60 MB."
    )
    decode_memory_mb: Count = Field(
        default=256, description="Memory that decoding one upload may take, in MiB, in its process."
    )
    decode_seconds: Seconds = Field(
        default=10.0, description="Longest time that decoding one upload may take, in seconds."
    )
    encoder_threads: int = Field(default=0, ge=0, description="Threads that one inference may use; 0 takes all cores.")
    queue_size: Count = Field(default=32, description="Uploads in hand at once; one more is a 503.")
    search_threads: Count = Field(default=4, description="Threads that search and rank.")
    search_queue: Count = Field(default=64, description="Searches in hand at once; one more is a 503.")

    max_seeds: Count = Field(default=500, description="Most seeds (and most negatives) of one playlist.")
    max_k: Count = Field(default=500, description="Most tracks of one answer.")
    max_exclude: Count = Field(default=10_000, description="Most excluded tracks of one request.")
    max_filter_values: Count = Field(default=1000, description="Most values of one filter.")
    max_listeners: Count = Field(default=10_000, description="Most listeners of one audience.")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line that is written (to stderr, as JSON)."
    )
    shutdown_s: Count = Field(default=10, description="Seconds that requests in hand are given at shutdown.")


def variable(name: str) -> str:
    """Return the environment variable of the setting `name`."""
    return f"{PREFIX}{name.upper()}"


def load_settings() -> Settings:
    """Read the settings from this process's environment.

    Raises SettingsError for a DEBUT_ variable that does not exist, for a value that cannot be used, for an address
    that other machines can reach without API keys, unless DEBUT_ALLOW_ANONYMOUS is true, and for a password in
    DEBUT_LEDGER.
    """
    _refuse_unknown(name for name in os.environ if name.upper().startswith(PREFIX))
    try:
        settings = Settings()
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None
    _refuse_public(settings)
    _refuse_password(settings)
    return settings


def _refuse_unknown(given: Iterable[str]) -> None:
    known = [name.upper() for name in Settings.model_fields]
    for name in sorted(given):
        bare = name.upper().removeprefix(PREFIX)
        if bare not in known:
            near = difflib.get_close_matches(bare, known, n=1)
            hint = f": did you mean {PREFIX}{near[0]}?" if near else "."
            raise SettingsError(
                f"{name} is not a setting of Debut{hint} All settings are listed in docs/settings.md.",
                code="unknown_setting",
            )


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = variable(str(first["loc"][0])) if first["loc"] else "the settings"
    return f"{name}={first['input']} cannot be used: {first['msg']}."


def _refuse_public(settings: Settings) -> None:
    if settings.keys_file or settings.allow_anonymous or is_loopback(settings.host):
        return
    raise SettingsError(
        f"DEBUT_HOST={settings.host} can be reached from other machines, and anybody there could add and remove "
        "tracks: set DEBUT_KEYS_FILE to a file of API keys (`python -m service key NAME --scope read,write` makes "
        "one), or DEBUT_ALLOW_ANONYMOUS=true if everybody is to be let in.",
        code="public_host",
    )


def _refuse_password(settings: Settings) -> None:
    """Whoever lists processes or reads an inspected container sees the environment."""
    if isinstance(settings.ledger, str) and re.search(r"//[^/@]*:[^/]*@|[?&]password=", settings.ledger):
        raise SettingsError(
            "DEBUT_LEDGER has a password in it: write it into a file, set DEBUT_REDIS_PASSWORD_FILE to that file, and "
            "leave it out of the URL (redis://user@host:6379/0)."
        )


def is_loopback(host: str) -> bool:
    """Whether a name or address (IPv6 without brackets) can only be this machine: RFC 6761, 6.3, for names."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may resolve to anything
        return False
