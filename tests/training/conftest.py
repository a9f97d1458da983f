"""What the tests of LARP's training share: the small data set's clips, decoded once a session."""

from pathlib import Path

import pytest

from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.progress import Silent


@pytest.fixture(scope="session")
def dataset(small_data: Path) -> DataSet:
    """Two dozen songs of five cycles."""
    return DataSet.open(small_data)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `clips` lie, for other processes."""
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def clips(dataset: DataSet, clip_folder: Path) -> ClipCache:
    """The songs' excerpts."""
    return ClipCache.build(dataset, clip_folder, Silent())
