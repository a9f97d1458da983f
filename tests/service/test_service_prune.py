"""Old releases are pruned while a service runs: what it serves stays, until it serves another."""

import gc
import shutil

import pytest

from index.release.prune import prune
from index.release.release import Release, ReleaseError
from index.release.reseal import reseal
from service.serving.serving import Serving


def test_what_is_served_is_not_pruned_until_another_is(serve, settings, tmp_path):
    root = shutil.copytree(settings.releases, tmp_path / "releases", symlinks=True)
    client = serve(settings.model_copy(update={"releases": root, "release_poll_s": 3600}))
    served = client.get("/").json()["release"]
    new = reseal(Release.open(root), "scan", ["continuation"], threads=1)
    assert [(one.id, one.held) for one in prune(root, 0, delete=True)] == [(served, True)]
    assert client.get("/readyz").status_code == 200
    assert client.app.state.service.swapper.look()
    gc.collect()  # the old release is let go with its last request
    assert client.get("/").json()["release"] == new.id
    assert [(one.id, one.held) for one in prune(root, 0, delete=True)] == [(served, False)]
    assert not (root / served).exists()
    assert client.get("/tracks?q=a").status_code == 200


def test_a_release_that_cannot_be_served_is_let_go_at_once(settings, tmp_path):
    root = shutil.copytree(settings.releases, tmp_path / "releases", symlinks=True)
    old = Release.open(root)
    reseal(old, "scan", [], threads=1)
    (old.path / "tracks.parquet").write_bytes(b"")
    with pytest.raises(ReleaseError, match="damaged"):
        Serving.open(settings.model_copy(update={"releases": old.path}))
    assert [one.held for one in prune(root, 0, delete=False)] == [False]
