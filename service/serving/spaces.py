"""Which index searches the release's vector spaces: what DEBUT_INDEX says."""

from pathlib import Path

from index.collection import OpenSpace
from index.search.milvus import Milvus, collection_name
from index.search.segmented import SegmentedIndex
from service.settings import Settings, SettingsError


def open_space(settings: Settings, release_id: str) -> OpenSpace:
    """Return how Collection.open opens a space of the release; SettingsError for a token that cannot be read."""
    if settings.index == "faiss":
        return lambda _, path: SegmentedIndex.open(path)
    milvus = Milvus(settings.milvus_uri, _token(settings.milvus_token_file))
    return lambda name, path: milvus.open(path, collection_name(release_id, name))


def _token(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"DEBUT_MILVUS_TOKEN_FILE={file} cannot be read ({error}): put the token there.") from None
    if not token:
        raise SettingsError(f"DEBUT_MILVUS_TOKEN_FILE={file} is empty: put `user:password` or an API key there.")
    return token
