"""Settings: documented both ways, unknown ones refused, loopback unless told otherwise."""

import re
from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, load_settings, variable

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    import os

    for name in list(os.environ):
        if name.upper().startswith("DEBUT_"):
            monkeypatch.delenv(name)


def written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_document_lists_every_setting_with_its_default_and_meaning_and_nothing_else():
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*?) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert rows == [
        (variable(name), written(field.default), field.description) for name, field in Settings.model_fields.items()
    ]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DEBUT_PROT", "DEBUT_PORT"),
        ("DEBUT_RELEASE", "DEBUT_RELEASES"),
        ("debut_max_upload_byte", "DEBUT_MAX_UPLOAD_BYTES"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_one_that_was_meant(monkeypatch, name, meant):
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"did you mean {meant}\\?") as refused:
        load_settings()
    assert refused.value.code == "unknown_setting"
    assert name in refused.value.detail


def test_an_unknown_setting_unlike_any_other_is_refused_without_a_guess(monkeypatch):
    monkeypatch.setenv("DEBUT_XQZZWVKJ", "1")
    with pytest.raises(SettingsError, match=r"not a setting of Debut. All settings are listed in docs/settings.md"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "eighty"), ("PORT", "70000"), ("MAX_K", "0"), ("LOG_LEVEL", "chatty"), ("MIN_AUDIO_S", "-1")],
)
def test_a_value_that_cannot_be_used_is_named(monkeypatch, name, value):
    monkeypatch.setenv(f"DEBUT_{name}", value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert refused.value.code == "bad_setting"
    assert f"DEBUT_{name}={value}" in refused.value.detail


def test_values_are_read_and_empty_ones_are_not_set(monkeypatch):
    monkeypatch.setenv("DEBUT_PORT", "8123")
    monkeypatch.setenv("DEBUT_RELEASES", "/srv/releases")
    monkeypatch.setenv("DEBUT_MAX_K", "")
    settings = load_settings()
    assert (settings.port, settings.releases, settings.max_k) == (8123, Path("/srv/releases"), 500)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_leave(monkeypatch, host):
    monkeypatch.setenv("DEBUT_HOST", host)
    assert load_settings().host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_addresses_need_to_be_allowed(monkeypatch, host):
    monkeypatch.setenv("DEBUT_HOST", host)
    with pytest.raises(SettingsError, match=r"DEBUT_KEYS_FILE .* DEBUT_ALLOW_ANONYMOUS=true") as refused:
        load_settings()
    assert refused.value.code == "public_host"
    monkeypatch.setenv("DEBUT_ALLOW_ANONYMOUS", "true")
    assert load_settings().host == host
    monkeypatch.delenv("DEBUT_ALLOW_ANONYMOUS")
    monkeypatch.setenv("DEBUT_KEYS_FILE", "keys")
    assert load_settings().host == host
