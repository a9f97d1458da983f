"""python -m service fold: the ledger's tracks become part of a new release, also while a service is running.

The service notices the new release and swaps to it, and then trims its ledger. The ledger keeps the newest event of
every track, the features of live tracks included: a later encoder reads them, and any release can be served again.
"""

from index.release.fold import Changes, FoldError, fold
from index.release.release import MANIFEST, Release
from service.ledger.opening import open_ledger
from service.serving.serving import Serving
from service.settings import Settings


def fold_ledger(settings: Settings) -> tuple[Release, Changes]:
    """Publish the current release with the ledger folded in; return it (the current one if nothing changed).

    The ledger is only read. What it hears meanwhile stays in it alone, until the next time. Raises DebutError:
    FoldError, ReleaseError (release_moved: another was published meanwhile), LedgerError.
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
    return fold(root, serving.release, view, marks), changes
