"""LARP's training from data set to exported towers, on five real song cycles and the smallest towers."""

import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from index.caption import caption
from index.encoder import Encoder
from index.tracks import Track
from training.data.clips import ClipCache
from training.data.dataset import TRAIN, VALID, DataSet
from training.larp.augment import spec_augment, thinned_caption
from training.larp.config import (
    PRESETS,
    AudioTowerConfig,
    AugmentConfig,
    LarpConfig,
    SettingsError,
    StageConfig,
    TextTowerConfig,
    larp_preset,
)
from training.larp.corpus import Corpus, CorpusError
from training.larp.export import export_towers
from training.larp.pretraining import Pretraining
from training.larp.towers import build_larp
from training.larp.training import LarpResult, fill_tables, load_larp, train_larp
from training.larp.validation import SHARES, LossValidation, RecallValidation, embed, joined, validation_of
from training.loop import LoopConfig
from training.progress import Progress, Silent

TINY = LarpConfig(
    audio=AudioTowerConfig(patch=16, width=16, depths=(1, 1), heads=(1, 2)),
    text=TextTowerConfig(width=32, layers=1, heads=2, vocabulary=300),
    stages=tuple(
        StageConfig(losses, 2, lr=2e-3, warmup_steps=2, patience=0)
        for losses in (("wtc",), ("wtc", "ttc"), ("wtc", "ttc", "tpc"))
    ),
    loop=LoopConfig(precision="fp32", device="cpu", threads=1),
    clauses=("title", "artist"),
    batch_size=8,
    momentum=0.9,
    queue=24,
    seeds=3,
    validation_draws=3,
)


@pytest.fixture(scope="module")
def dataset(small_data: Path) -> DataSet:
    return DataSet.open(small_data)


@pytest.fixture(scope="module")
def clips(dataset: DataSet, tmp_path_factory: pytest.TempPathFactory) -> ClipCache:
    return ClipCache.build(dataset, tmp_path_factory.mktemp("clips"), Silent())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Trained = tuple[Path, LarpResult, str]


@pytest.fixture(scope="module")
def trained(dataset: DataSet, clips: ClipCache, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Directory, result and what was said."""
    directory, said = tmp_path_factory.mktemp("larp"), io.StringIO()
    return directory, train_larp(dataset, clips, directory, TINY, Progress(said, interval_s=0.0)), said.getvalue()


# ----- batches -----


def test_a_paired_batch_holds_both_members_once(dataset: DataSet, clips: ClipCache) -> None:
    corpus = Corpus(dataset, clips, TINY)
    larp = build_larp(TINY, corpus.captions(np.arange(len(corpus))))
    assert (dataset.track_split[corpus.rows] == TRAIN).all()
    seen: list[int] = []
    batches = list(corpus.epoch(larp, paired=True, rng=np.random.default_rng(0)))
    assert len(batches) == corpus.steps(paired=True)
    for batch in batches:
        tracks, partner = batch.tracks.numpy(), batch.partner.numpy()
        assert batch.log_mel.shape == (len(tracks), 1, 1001, 64)
        assert len(batch.input_ids) == len(tracks) == 2 * (partner > np.arange(len(tracks))).sum()
        assert (partner[partner] == np.arange(len(tracks))).all()
        sets = [set(corpus.pairs.rows[slice(*corpus.pairs.indptr[p : p + 2])]) for p in batch.playlist.numpy()]
        for k, members in enumerate(sets):
            assert {tracks[k], tracks[partner[k]]} <= members
            seeds = [s for s in batch.seeds[k].tolist() if s >= 0]
            assert len(seeds) == min(3, len(members) - 1)
            assert set(seeds) <= members - {tracks[k]}
        seen += tracks[: len(tracks) // 2].tolist()
    assert sorted(seen) == list(range(len(corpus)))


def test_an_unpaired_epoch_is_every_track_once(dataset: DataSet, clips: ClipCache) -> None:
    corpus = Corpus(dataset, clips, TINY)
    larp = build_larp(TINY, corpus.captions(np.arange(len(corpus))))
    batches = list(corpus.epoch(larp, paired=False, rng=np.random.default_rng(0)))
    assert sorted(torch.cat([batch.tracks for batch in batches]).tolist()) == list(range(len(corpus)))
    assert max(len(batch.tracks) for batch in batches) <= TINY.batch_size


def test_relations_meet_batch_and_queue(dataset: DataSet, clips: ClipCache) -> None:
    corpus = Corpus(dataset, clips, TINY)
    larp = build_larp(TINY, corpus.captions(np.arange(len(corpus))))
    batch = next(corpus.epoch(larp, paired=True, rng=np.random.default_rng(1)))
    columns = torch.cat([batch.tracks, torch.tensor([0, 5, -1])])
    found = corpus.neighbourhood(batch, columns)
    members = [set(corpus.pairs.rows[slice(*corpus.pairs.indptr[p : p + 2])]) for p in range(len(corpus.pairs.lengths))]
    for i, track in enumerate(batch.tracks.tolist()):
        for k, column in enumerate(columns.tolist()):
            assert found.same[i, k].item() == (track == column)
            together = any({track, column} <= m for m in members)
            assert found.related[i, k].item() == (together and track != column)
            assert found.holds[i, k].item() == (column in members[batch.playlist[i]])
        for j, playlist in enumerate(batch.playlist.tolist()):
            assert found.held[i, j].item() == (track in members[playlist])


def test_spec_augment_blanks_stripes_within_bounds() -> None:
    rng = np.random.default_rng(0)
    clips = rng.normal(-30, 20, (200, 1, 101, 64)).astype(np.float32)
    before = clips.copy()
    spec_augment(clips, AugmentConfig(time_stripes=2, time_width=10, frequency_stripes=1, frequency_width=4), rng)
    changed = clips != before
    whole_frames, whole_bins = changed[:, 0].all(2).sum(1), changed[:, 0].all(1).sum(1)
    assert 15 < whole_frames.max() <= 20
    assert whole_bins.max() == 4
    assert whole_frames.min() == whole_bins.min() == 0
    frame = before[0, 0].mean(0)
    assert all(np.isin(clips[0, 0, :, b][changed[0, 0, :, b]], np.float32(frame[b])).all() for b in range(64))
    only = np.isclose(changed[:, 0].sum((1, 2)), whole_frames * 64 + whole_bins * 101 - whole_frames * whole_bins)
    assert only.all()


def test_clauses_are_dropped_but_never_all() -> None:
    rng = np.random.default_rng(0)
    full, untitled = Track("x", "Title", "Artist", "Album"), Track("y", artist="Artist")
    drop = {"title": 0.5, "artist": 1.0}
    found = [thinned_caption(full, ("title", "artist"), drop, rng) for _ in range(400)]
    assert set(found) == {"The track Title", "A track by Artist"}
    assert 0.68 < found.count("The track Title") / 400 < 0.82  # 1/2, and half of the other half
    assert {thinned_caption(untitled, ("title", "artist"), drop, rng) for _ in range(9)} == {"A track by Artist"}
    assert thinned_caption(Track("z"), ("title",), drop, rng) == ""


def test_tracks_without_clip_or_caption_are_not_learnt_from(small_data: Path, tmp_path: Path) -> None:
    table = pq.read_table(small_data / "tracks.parquet")
    rows = table.to_pylist()
    train = {s["id"] for s in pq.read_table(small_data / "splits.parquet").to_pylist() if s["split"] == "train"}
    chosen = [row for row in rows if row["track_id"] in train]
    chosen[0]["audio"] = None
    chosen[1]["title"] = chosen[1]["artist"] = None
    pq.write_table(table.from_pylist(rows, table.schema), tmp_path / "tracks.parquet")
    for name in ("playlists.parquet", "splits.parquet", "audio"):
        (tmp_path / name).symlink_to(small_data / name)
    dataset = DataSet.open(tmp_path)
    clips = ClipCache.build(dataset, tmp_path / "clips", Silent())
    corpus = Corpus(dataset, clips, TINY)
    left = {track.track_id for track in corpus.tracks}
    assert left == {row["track_id"] for row in chosen[2:]}
    with pytest.raises(CorpusError, match="0 training tracks have both audio and a caption"):
        Corpus(replace(dataset, track_split=np.full_like(dataset.track_split, VALID)), clips, TINY)


# ----- validation -----


def test_validation_is_the_protocol_of_the_test(dataset: DataSet, clips: ClipCache) -> None:
    corpus = Corpus(dataset, clips, TINY)
    larp = build_larp(TINY, corpus.captions(np.arange(len(corpus)))).eval()
    validation = validation_of(dataset, clips, TINY)
    assert isinstance(validation, RecallValidation)
    rows = np.flatnonzero(dataset.track_split == VALID)
    audio, text = embed(larp, dataset, clips, TINY, rows)
    assert audio.shape == text.shape == (len(rows), 256)
    assert len(rows) <= 10  # with ten candidates everything is found
    assert validation.score(larp) == 1.0


def test_vectors_are_joined_by_the_share() -> None:
    rng = np.random.default_rng(0)
    audio, text = rng.normal(size=(2, 4, 8)).astype(np.float32)
    audio[1], text[2] = np.nan, np.nan
    for share in (0.5, 0.2):
        both = joined(audio, text, share)
        assert np.allclose(np.linalg.norm(both, axis=1), 1)
        for row, expected in enumerate((share * audio[0] + (1 - share) * text[0], text[1], audio[2])):
            assert np.allclose(both[row], expected / np.linalg.norm(expected), atol=1e-6)


def test_the_share_that_validates_best_is_kept(dataset: DataSet, clips: ClipCache) -> None:
    corpus = Corpus(dataset, clips, TINY)
    larp = build_larp(TINY, corpus.captions(np.arange(len(corpus)))).eval()
    free = replace(TINY, audio_share=None)
    validation = RecallValidation(dataset, clips, free, split=TRAIN)
    best = validation.score(larp)
    chosen = larp.audio_share.item()
    by_share = {
        s: RecallValidation(dataset, clips, replace(TINY, audio_share=s), split=TRAIN).score(larp) for s in SHARES
    }
    assert best == max(by_share.values())
    assert chosen == pytest.approx(next(share for share in SHARES if by_share[share] == best))
    fixed = RecallValidation(dataset, clips, replace(TINY, audio_share=0.3), split=TRAIN)
    fixed.score(larp)
    assert larp.audio_share.item() == pytest.approx(0.3)


def test_without_validation_playlists_the_loss_is_selected_on(dataset: DataSet, clips: ClipCache) -> None:
    corpus = Corpus(dataset, clips, TINY)
    larp = build_larp(TINY, corpus.captions(np.arange(len(corpus)))).eval()
    lonely = replace(dataset, playlist_split=np.full_like(dataset.playlist_split, TRAIN))
    validation = validation_of(lonely, clips, TINY)
    assert isinstance(validation, LossValidation)
    rows = np.flatnonzero(dataset.track_split == VALID)
    audio, text = embed(larp, dataset, clips, TINY, rows).astype(np.float64)
    logits = audio @ text.T / larp.temperature.item()
    a2t = -(np.diag(logits) - np.log(np.exp(logits).sum(1))).mean()
    t2a = -(np.diag(logits) - np.log(np.exp(logits).sum(0))).mean()
    assert validation.score(larp) == pytest.approx(-(a2t + t2a) / 2, rel=1e-4)
    nothing = replace(lonely, track_split=np.full_like(dataset.track_split, TRAIN))
    assert validation_of(nothing, clips, TINY) is None


# ----- training -----


def test_three_stages_and_a_whole_checkpoint(trained: Trained, dataset: DataSet) -> None:
    directory, result, said = trained
    assert list(result.stages) == ["wtc", "wtc+ttc", "wtc+ttc+tpc"]
    for name, stage in result.stages.items():
        assert len(stage.history) == 2
        assert set(name.split("+")) <= stage.history[0].keys()
        assert all(np.isfinite(list(row.values())).all() for row in stage.history)
    assert result.untrained_score is not None
    assert load_larp(directory).clauses == ("title", "artist")
    card = (directory / "README.md").read_text()
    assert dataset.fingerprint in card
    assert f"{result.best_score:.4f}" in card
    for part in ("LARP stage 3/3 (WTC+TTC+TPC): 1/", "epoch 1/2", "loss ", "R@10", " left", "took 0:"):
        assert part in said


def test_the_same_seed_gives_the_same_bits(
    trained: Trained, dataset: DataSet, clips: ClipCache, tmp_path: Path
) -> None:
    directory, result, _ = trained
    torch.rand(3)  # whatever was drawn before must not matter
    again = train_larp(dataset, clips, tmp_path, TINY, Silent())
    first, second = load_file(directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.stages == result.stages
    for name in ("tokenizer.json", "config.json", "README.md"):
        assert (directory / name).read_bytes() == (tmp_path / name).read_bytes()


def test_another_seed_gives_other_weights(trained: Trained, dataset: DataSet, clips: ClipCache, tmp_path: Path) -> None:
    one = replace(TINY, loop=replace(TINY.loop, seed=1), stages=TINY.stages[:1])
    train_larp(dataset, clips, tmp_path, one, Silent())
    first, second = load_file(trained[0] / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert not torch.equal(first["audio.head.weight"], second["audio.head.weight"])


def test_training_teaches_what_it_is_asked(dataset: DataSet, clips: ClipCache, tmp_path: Path) -> None:
    """On the tracks it learns from, the losses fall and audio alone finds its playlist."""
    stage = StageConfig(("wtc", "ttc", "tpc"), 16, lr=3e-3, warmup_steps=5, patience=0)
    config = replace(TINY, queue=0, batch_size=16, stages=(stage,))
    result = train_larp(dataset, clips, tmp_path, config, Silent())
    on_train = RecallValidation(dataset, clips, config, split=TRAIN)
    torch.manual_seed(config.loop.seed)
    corpus = Corpus(dataset, clips, config)
    untrained = build_larp(config, corpus.captions(np.arange(len(corpus))))
    untrained.audio.calibrate(*corpus.input_statistics())
    before, after = on_train.scores(untrained.eval()), on_train.scores(load_larp(tmp_path))
    history = result.stages["wtc+ttc+tpc"].history
    print(before, after, history)
    assert all(history[-1][name] < history[0][name] for name in ("wtc", "ttc", "tpc"))
    assert after["audio"] > before["audio"] + 0.1


def test_without_training_playlists_only_wtc_is_trained(dataset: DataSet, clips: ClipCache, tmp_path: Path) -> None:
    lonely = replace(dataset, playlist_split=np.full_like(dataset.playlist_split, VALID))
    said = io.StringIO()
    one_epoch = tuple(replace(stage, epochs=1) for stage in TINY.stages)
    result = train_larp(lonely, clips, tmp_path, replace(TINY, stages=one_epoch), Progress(said))
    assert list(result.stages) == ["wtc"]
    assert "stage 2 is left out: no training playlist has two tracks" in said.getvalue()


def test_tables_are_filled_by_the_model_in_evaluation(dataset: DataSet, clips: ClipCache) -> None:
    corpus = Corpus(dataset, clips, TINY)
    pretraining = Pretraining(build_larp(TINY, corpus.captions(np.arange(len(corpus)))), TINY, len(corpus))
    fill_tables(pretraining, corpus)
    audio, text = embed(pretraining.online, dataset, clips, TINY, corpus.rows)
    assert np.allclose(pretraining.audio_table, audio, atol=1e-6)
    assert np.allclose(pretraining.text_table, text, atol=1e-6)


# ----- export -----


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_towers(load_larp(trained[0]), folder)
    return folder


def test_the_encoder_folder(exported: Path) -> None:
    assert sorted(p.name for p in exported.iterdir()) == ["audio.onnx", "config.json", "text.onnx", "tokenizer.json"]
    config = json.loads((exported / "config.json").read_text())
    assert config == {
        "format": 1,
        "dims": 256,
        "max_tokens": 64,
        "pad_token": "[PAD]",
        "pad_token_id": 0,
        "clauses": ["title", "artist"],
        "audio_share": 0.5,
        "sample_rate": 48000,
        "model_type_audio": "clap_audio_model",
        "model_type_text": "bert",
    }


@torch.no_grad()
def test_the_service_computes_the_trainers_vectors(
    exported: Path, trained: Trained, dataset: DataSet, clips: ClipCache
) -> None:
    larp, encoder = load_larp(trained[0]), Encoder.open(exported)
    rows = np.array([0, 3, 9])
    mel = clips.crops(rows, None)
    expected = larp.encode_audio(torch.from_numpy(mel)).numpy()
    found = encoder.audio(mel[:, 0])
    assert (found * expected).sum(1).min() >= 0.9999
    captions = [caption(dataset.tracks[row], larp.clauses) for row in rows] + ["A track by X", "word " * 200]
    expected = larp.encode_text(captions).numpy()
    assert (encoder.text(captions) * expected).sum(1).min() >= 0.9999
    one = encoder.track(mel[0], captions[0], None)
    both = larp.encode_audio(torch.from_numpy(mel[:1])) + larp.encode_text(captions[:1])
    assert one.continuation @ (both[0] / both[0].norm()).numpy() >= 0.9999


def test_the_exporter_says_nothing(trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    larp = load_larp(trained[0])
    capfd.readouterr()
    export_towers(larp, tmp_path)
    assert capfd.readouterr() == ("", "")


# ----- settings -----


def test_presets() -> None:
    paper = larp_preset("paper", seed=3)
    assert paper == replace(PRESETS["paper"], loop=replace(PRESETS["paper"].loop, seed=3))
    assert (paper.queue, paper.batch_size, paper.momentum, paper.seeds) == (57_600, 50, 0.995, 10)
    assert all((s.epochs, s.lr, s.warmup_steps, s.patience) == (45, 1e-4, 3000, 5) for s in paper.stages)
    assert larp_preset("demo", clauses=("title",)).clauses == ("title",)
    with pytest.raises(SettingsError, match="no preset 'huge'; there are paper, demo"):
        larp_preset("huge")
    with pytest.raises(SettingsError, match="clauses"):
        larp_preset("demo", clauses=("lyrics",))
    with pytest.raises(SettingsError, match="colour"):
        larp_preset("demo", colour="blue")
