"""DEBUT_INDEX=milvus: the answers are those of FAISS, and what fails is a sentence."""

import gc
import importlib
import shutil
from pathlib import Path

import pytest
from service_uploads import ogg, seeded, tone, upload

from index.collection import SPACES
from index.release.release import Release
from index.release.reseal import reseal
from service.serving.serving import Serving
from service.serving.spaces import open_space
from service.settings import Settings, SettingsError


@pytest.fixture
def on_milvus(settings, tmp_path) -> Settings:
    for package in ("pymilvus", "milvus_lite"):
        pytest.importorskip(package, reason="the extra milvus is not installed: pip install 'debut[milvus]'")
    milvus = {"index": "milvus", "milvus_uri": str(tmp_path / "lite.db"), "ledger": tmp_path / "milvus.sqlite"}
    return settings.model_copy(update=milvus)


def test_a_service_on_milvus_answers_as_one_on_faiss(serve, client, on_milvus):
    other = serve(on_milvus)
    known = client.app.state.service.serving.collection.catalogue.track(3).track_id
    for service in (client, other):
        upload(service, ogg(tone(3)), track_id="new", title="A")
    for seed in (known, "new"):
        for recommender in ("larp", "bcl"):
            assert seeded(client, seed, k=40, recommender=recommender) == seeded(
                other, seed, k=40, recommender=recommender
            )
    assert other.delete("/tracks/new").status_code == client.delete("/tracks/new").status_code
    assert seeded(client, known, k=40) == seeded(other, known, k=40)


def test_milvus_that_goes_away_is_a_503_and_uploads_go_on(serve, on_milvus, monkeypatch):
    service = serve(on_milvus)
    serving = service.app.state.service.serving
    remote = serving.collection.continuation.sealed._remote
    remote._connection.client.drop_collection(remote._name)
    known = serving.collection.catalogue.track(3).track_id
    answer = service.post("/continue-playlist", json={"seeds": [known], "k": 3})
    assert (answer.status_code, answer.json()["code"]) == (503, "index_unavailable")
    upload(service, ogg(tone(3)), track_id="new", title="A")
    assert service.get("/tracks/new").status_code == 200


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff"])
def test_a_token_that_cannot_be_read_stops_the_start(settings, tmp_path, content):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    wanted = settings.model_copy(update={"index": "milvus", "milvus_token_file": file})
    with pytest.raises(SettingsError, match=f"DEBUT_MILVUS_TOKEN_FILE={file} (is empty|cannot be read)"):
        Serving.open(wanted)


def test_the_token_is_read_from_its_file(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("root:secret\n")
    opened: list[tuple] = []
    monkeypatch.setattr(
        "service.serving.spaces.Milvus.open", lambda self, path, name: opened.append((self.token, path, name))
    )
    settings = Settings(index="milvus", milvus_token_file=file)
    open_space(settings, "20250301T101500Z-0123456789abcdef")("matching", Path("x"))
    assert opened == [("root:secret", Path("x"), "debut_20250301T101500Z_0123456789abcdef_matching")]


def test_a_swap_on_milvus_closes_the_connections_of_the_release_before(serve, on_milvus, tmp_path):
    manager = importlib.import_module("pymilvus.client.connection_manager").ConnectionManager.get_instance()
    gc.collect()  # what tests before left behind
    before = set(manager._dedicated)
    root = shutil.copytree(on_milvus.releases, tmp_path / "releases", symlinks=True)
    service = serve(on_milvus.model_copy(update={"releases": root, "release_poll_s": 3600}))
    first = set(manager._dedicated) - before
    assert len(first) == len(SPACES)
    reseal(Release.open(root), "scan", ["continuation"], threads=1)
    assert service.app.state.service.swapper.look()
    gc.collect()
    second = set(manager._dedicated) - before
    assert len(second) == len(SPACES)
    known = service.app.state.service.serving.collection.catalogue.track(3).track_id
    assert len(seeded(service, known, k=5)) == 5
