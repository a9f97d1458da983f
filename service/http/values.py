"""The kinds of value in a request: what each takes, how it is normalised, how the OpenAPI document describes it."""

import re
import unicodedata
from datetime import date
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

# C0 and C1 control characters; lyrics may hold the first three.
_MOST_MARKS = 30
_MARKS_IN_DISGUISE = "\u0f73\u0f75\u0f81"  # of combining class 0, but made of marks alone
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_LYRICS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def _refuse_control(value: str, pattern: re.Pattern[str]) -> str:
    found = pattern.search(value)
    if found:
        raise ValueError(f"holds the control character U+{ord(found.group()):04X} at position {found.start()}")
    return value


def _text(value: str) -> str:
    """Normalise to NFC, so that the same words are the same bytes whoever typed them."""
    return _composed(_refuse_control(_encodable(value), _CONTROL))


def _composed(value: str) -> str:
    """Return NFC; refuse longer runs of combining marks than any language writes (UAX #15, Stream-Safe Text).

    Sorting such a run takes time in the square of its length: a megabyte of accents would hold a core for minutes.
    """
    if value.isascii():
        return value
    run = 0
    for character in value:
        run = run + 1 if unicodedata.combining(character) or character in _MARKS_IN_DISGUISE else 0
        if run > _MOST_MARKS:
            raise ValueError(f"holds more than {_MOST_MARKS} combining marks in a row")
    return unicodedata.normalize("NFC", value)


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is not text") from None
    return value


def _lyrics(value: str) -> str:
    return _composed(_refuse_control(_encodable(value), _CONTROL_IN_LYRICS))


def _track_id(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; leave it out to have it derived from the audio")
    if value != value.strip():
        raise ValueError("starts or ends with white space")
    return _refuse_control(_encodable(value), _CONTROL)


def _iso_date(value: str) -> str:
    padded = value + "-01-01"[len(value) - 4 :] if len(value) in (4, 7) else value
    try:
        sane = date.fromisoformat(padded).isoformat() == padded
    except ValueError:
        sane = False
    if not sane:
        raise ValueError(f"{value[:40]!r} is not a date like 2024, 2024-05 or 2024-05-31")
    return value


def _isrc(value: str) -> str:
    compact = value.replace("-", "").upper()
    if not re.fullmatch(r"[A-Z]{2}[A-Z0-9]{3}[0-9]{7}", compact):
        raise ValueError(f"{value[:40]!r} is not an ISRC like NLB632600001")
    return compact


def _language(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z]{2,3}", value):
        raise ValueError(f"{value[:40]!r} is not a language code like en")
    return value.lower()


def _documented(pattern: str, **more: Any) -> WithJsonSchema:
    """Say in the OpenAPI document what a validator takes, as nearly as a pattern of JSON Schema can."""
    return WithJsonSchema({"type": "string", "pattern": pattern, **more})


_DATE = "^(?!0000)[0-9]{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?)?$"
_PRINTABLE = r"^[^\u0000-\u001f\u007f-\u009f]*$"


def _whole(value: object) -> object:
    """Take 20.0 for 20: JSON knows one kind of number, and JSON Schema calls both an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, Field(ge=1, le=2**31), BeforeValidator(_whole)]

Text = Annotated[str, AfterValidator(_text), _documented(_PRINTABLE)]
TrackId = Annotated[str, AfterValidator(_track_id), _documented(_PRINTABLE, minLength=1)]
IsoDate = Annotated[str, AfterValidator(_iso_date), _documented(_DATE)]
Language = Annotated[str, AfterValidator(_language), _documented("^[A-Za-z]{2,3}$")]
Lyrics = Annotated[
    str, AfterValidator(_lyrics), _documented(r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]*$")
]
Isrc = Annotated[str, AfterValidator(_isrc), _documented("^-*([A-Za-z]-*){2}([A-Za-z0-9]-*){3}([0-9]-*){7}$")]
Texts = Annotated[list[Text], Field(fail_fast=True)]
"""One mistake is named, not a million."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


Ids = Annotated[list[str], Field(fail_fast=True)]
