"""Which ledger the settings name."""

from pathlib import Path

from service.ledger.ledger import Ledger
from service.ledger.redis_streams import RedisLedger
from service.ledger.sqlite import SqliteLedger
from service.settings import Settings


def open_ledger(settings: Settings, *, read_only: bool = False) -> Ledger:
    """Open the ledger: a file, or what several replicas share. Raises LedgerError.

    With `read_only` nothing will be written, and a file may be in use by a service.
    """
    if isinstance(settings.ledger, Path):
        return SqliteLedger(settings.ledger, read_only=read_only)
    return RedisLedger(settings.ledger, settings.redis_password_file, unchecked=settings.redis_unchecked)
