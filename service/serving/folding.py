"""python -m service fold: the ledger's tracks become part of a new release, also while a service is running.

The service notices the new release and swaps to it, and then trims its ledger. The ledger keeps the newest event of
every track, the features of live tracks included: a later encoder reads them, and any release can be served again.
"""

import shutil
from pathlib import Path

from index.release.fold import Changes, FoldError, fold
from index.release.release import MANIFEST, Release
from service.ledger.opening import open_ledger
from service.serving.serving import Serving
from service.settings import Settings


def fold_ledger(settings: Settings) -> tuple[Release, Changes]:
    """Publish the current release with the ledger folded in; return it (the current one if nothing changed).

    The ledger is only read. What it hears meanwhile stays in it alone, until the next time. Raises DebutError:
    FoldError (fold_unwritable: no room, or a disk that fails), ReleaseError (release_moved: another was published
    meanwhile), LedgerError.
    """
    root = settings.releases
    if (root / MANIFEST).is_file():
        raise FoldError(f"{root} is one release: set DEBUT_RELEASES to the folder of releases that it lies in")
    ledger = open_ledger(settings, read_only=True)
    try:
        serving = Serving.open(settings.model_copy(update={"index": "faiss"}))  # the files, and nobody's Milvus
        marks: dict[str, int] = {}
        serving.replay(ledger, marks=marks)
    finally:
        ledger.close()
    view = serving.collection.view()
    changes = Changes.of(view)
    if not changes:
        return serving.release, changes
    try:
        return fold(root, serving.release, view, marks), changes
    except OSError as error:
        size = sum(file.bytes for file in serving.release.manifest.files.values())
        raise FoldError(
            f"{root} does not take the new release, of which nothing is kept: see that its disk works and has room for "
            f"{size / 1e6:.0f} MB ({_free(root)}), and fold again. The one that is current stays.",
            code="fold_unwritable",
        ) from error


def _free(root: Path) -> str:
    try:
        return f"{shutil.disk_usage(root).free / 1e6:.0f} MB are free"
    except OSError as error:
        return f"it does not say how much is free: {error.strerror}"
