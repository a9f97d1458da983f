"""LARP's training from data set to exported towers, on five real song cycles and the smallest towers."""

import io
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from larp_small import STEADY, TINY, stages_of
from safetensors.torch import load_file

from index.models.caption import caption
from index.models.encoder import Encoder
from index.tracks.track import Track
from training.data.clips import ClipCache
from training.data.dataset import TEST, TRAIN, VALID, DataSet
from training.larp.augment import spec_augment, thinned
from training.larp.checkpoint import load_larp
from training.larp.config import AugmentConfig, LarpConfig, SettingsError, StageConfig
from training.larp.content import Content, LiveContent, encode, joined
from training.larp.corpus import Batch, Corpus, CorpusError
from training.larp.export import export_towers
from training.larp.model import AudioTower, Larp
from training.larp.presets import PRESETS, larp_preset
from training.larp.pretraining import Pretraining
from training.larp.result import LarpResult
from training.larp.task import LarpTask
from training.larp.towers import build_larp
from training.larp.training import Run, fill_tables, train_larp
from training.larp.validation import SHARES, LossValidation, RecallValidation, validation_of
from training.progress import Progress, Silent


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
    return directory, train_larp(dataset, clips, Run(directory), TINY, Progress(said, interval_s=0.0)), said.getvalue()


# ----- batches -----


def corpus_of(dataset: DataSet, clips: ClipCache, config: LarpConfig = TINY) -> Corpus:
    return Corpus(dataset, LiveContent(dataset, clips, config), config)


def larp_of(corpus: Corpus, config: LarpConfig = TINY) -> Larp:
    torch.manual_seed(config.loop.seed)
    return build_larp(config, corpus.content.captions(corpus.rows))


def members_of(corpus: Corpus) -> list[set[int]]:
    pairs = corpus.pairs
    return [set(pairs.rows[slice(*pairs.indptr[p : p + 2])].tolist()) for p in range(len(pairs.lengths))]


def test_a_paired_batch_holds_both_members_once(dataset: DataSet, clips: ClipCache) -> None:
    corpus = corpus_of(dataset, clips)
    assert (dataset.track_split[corpus.rows] == TRAIN).all()
    seen: list[int] = []
    batches = list(corpus.epoch((2, 0), paired=True))
    assert len(batches) == corpus.steps(paired=True)
    for batch in batches:
        tracks, partner = batch.tracks, batch.partner
        assert len(tracks) == 2 * (partner > np.arange(len(tracks))).sum() <= TINY.batch_size
        assert (partner[partner] == np.arange(len(tracks))).all()
        for k, playlist in enumerate(batch.playlist):
            members = members_of(corpus)[playlist]
            assert {tracks[k], tracks[partner[k]]} <= members
            seeds = [s for s in batch.seeds[k].tolist() if s >= 0]
            assert len(seeds) == min(3, len(members) - 1)
            assert set(seeds) <= members - {tracks[k]}
        seen += tracks[: len(tracks) // 2].tolist()
    assert sorted(seen) == list(range(len(corpus)))


def test_an_unpaired_epoch_is_every_track_once(dataset: DataSet, clips: ClipCache) -> None:
    corpus = corpus_of(dataset, clips)
    batches = list(corpus.epoch((1, 0), paired=False))
    assert sorted(np.concatenate([batch.tracks for batch in batches]).tolist()) == list(range(len(corpus)))
    assert max(len(batch.tracks) for batch in batches) <= TINY.batch_size


def test_batches_depend_on_seed_stage_epoch_and_step_alone(dataset: DataSet, clips: ClipCache) -> None:
    corpus = corpus_of(dataset, clips)

    def plain(batches: Iterable[Batch]) -> list[list[Any]]:
        return [[b.tracks.tolist(), b.partner.tolist(), b.playlist.tolist(), b.seeds.tolist()] for b in batches]

    epoch = plain(corpus.epoch((2, 1), paired=True))
    for start in range(len(epoch) + 1):
        assert plain(corpus.epoch((2, 1), paired=True, start=start)) == epoch[start:]
    other_seed = corpus_of(dataset, clips, replace(TINY, loop=replace(TINY.loop, seed=1)))
    for other in (corpus.epoch((2, 0), paired=True), corpus.epoch((3, 1), True), other_seed.epoch((2, 1), True)):
        assert plain(other) != epoch


def test_a_track_is_varied_alike_however_the_batch_is_divided(dataset: DataSet, clips: ClipCache) -> None:
    dropping = replace(TINY, augment=replace(TINY.augment, drop_clause={"title": 0.5}))
    corpus = corpus_of(dataset, clips, dropping)
    larp = larp_of(corpus)
    batch = next(corpus.epoch((2, 0), paired=True))
    places = np.arange(len(batch.tracks))
    rows = corpus.rows[batch.tracks]
    (whole,) = corpus.content.inputs("audio", rows, larp, batch.generators(places))
    captions = corpus.content.captions(rows, batch.generators(places))
    for some in (places[:3], places[3:], places[::-1]):
        (part,) = corpus.content.inputs("audio", rows[some], larp, batch.generators(some))
        assert torch.equal(part, whole[some.copy()])
        assert corpus.content.captions(rows[some], batch.generators(some)) == [captions[k] for k in some]
    (plain,) = corpus.content.inputs("audio", rows, larp)
    assert not any(torch.equal(a, b) for a, b in zip(plain, whole, strict=True))
    assert (plain.numpy() == clips.crops(rows, None)).all()


def test_relations_meet_batch_and_queue(dataset: DataSet, clips: ClipCache) -> None:
    corpus = corpus_of(dataset, clips)
    batch = next(corpus.epoch((2, 1), paired=True))
    columns = np.concatenate([batch.tracks, [0, 5, -1]])
    places = np.array([0, 3, len(batch.tracks) - 1])
    found = corpus.neighbourhood(batch, places, columns, torch.device("cpu"))
    members = members_of(corpus)
    for row, place in enumerate(places):
        track = batch.tracks[place]
        for k, column in enumerate(columns.tolist()):
            assert found.same[row, k].item() == (track == column)
            together = any({track, column} <= m for m in members)
            assert found.related[row, k].item() == (together and track != column)
            assert found.holds[row, k].item() == (column in members[batch.playlist[place]])
        for j, playlist in enumerate(batch.playlist):
            assert found.held[row, j].item() == (track in members[playlist])


def test_spec_augment_blanks_stripes_within_bounds() -> None:
    rng = np.random.default_rng(0)
    clips = rng.normal(-30, 20, (200, 1, 101, 64)).astype(np.float32)
    before = clips.copy()
    config = AugmentConfig(time_stripes=2, time_width=10, frequency_stripes=1, frequency_width=4)
    spec_augment(clips, config, rng.spawn(len(clips)))
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
    found = [thinned(full, ("title", "artist"), drop, rng) for _ in range(400)]
    assert {tuple(names) for names in found} == {("title",), ("artist",)}
    assert 0.68 < found.count(["title"]) / 400 < 0.82  # 1/2, and half of the other half
    assert all(thinned(untitled, ("title", "artist"), drop, rng) == ["artist"] for _ in range(9))
    assert thinned(Track("z"), ("title",), drop, rng) == []


@pytest.mark.parametrize(
    ("kind", "made"),
    [("sentence", {"The track Title", "A track by Artist"}), ("fields", {"Title\n", "\nArtist"})],
)
def test_captions_are_made_of_the_clauses_that_stay(dataset: DataSet, kind: str, made: set[str]) -> None:
    config = replace(TINY, caption=kind, augment=AugmentConfig(drop_clause={"title": 0.5, "artist": 1.0}))
    songs = replace(dataset, tracks=[Track("x", "Title", "Artist", "Album")])
    rngs = [np.random.default_rng(seed) for seed in range(30)]
    rows = np.zeros(30, np.int64)
    assert set(LiveContent(songs, None, config).captions(rows, rngs)) == made


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
    corpus = corpus_of(dataset, clips)
    left = {dataset.tracks[row].track_id for row in corpus.rows}
    assert left == {row["track_id"] for row in chosen[2:]}
    with pytest.raises(CorpusError, match="0 training tracks have audio and a caption"):
        corpus_of(replace(dataset, track_split=np.full_like(dataset.track_split, VALID)), clips)
    reading = replace(TINY, towers=("text",))
    assert len(corpus_of(dataset, clips, reading)) == len(corpus) + 1


# ----- validation -----


def test_validation_is_the_protocol_of_the_test(dataset: DataSet, clips: ClipCache) -> None:
    corpus = corpus_of(dataset, clips)
    larp, live = larp_of(corpus).eval(), corpus.content
    validation = validation_of(dataset, live, TINY)
    assert isinstance(validation, RecallValidation)
    rows = np.flatnonzero(dataset.track_split == VALID)
    audio, text = (encode(larp, name, live, rows) for name in larp.names)
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
    corpus = corpus_of(dataset, clips)
    larp, live = larp_of(corpus).eval(), corpus.content
    free = replace(TINY, audio_share=None)
    validation = RecallValidation(dataset, live, free, split=TRAIN)
    best = validation.score(larp)
    chosen = larp.audio_share.item()
    by_share = {
        s: RecallValidation(dataset, live, replace(TINY, audio_share=s), split=TRAIN).score(larp) for s in SHARES
    }
    assert best == max(by_share.values())
    assert chosen == pytest.approx(next(share for share in SHARES if by_share[share] == best))
    fixed = RecallValidation(dataset, live, replace(TINY, audio_share=0.3), split=TRAIN)
    fixed.score(larp)
    assert larp.audio_share.item() == pytest.approx(0.3)


def test_without_validation_playlists_the_loss_is_selected_on(dataset: DataSet, clips: ClipCache) -> None:
    corpus = corpus_of(dataset, clips)
    larp, live = larp_of(corpus).eval(), corpus.content
    lonely = replace(dataset, playlist_split=np.full_like(dataset.playlist_split, TRAIN))
    validation = validation_of(lonely, live, TINY)
    assert isinstance(validation, LossValidation)
    rows = np.flatnonzero(dataset.track_split == VALID)
    audio, text = (encode(larp, name, live, rows).astype(np.float64) for name in larp.names)
    logits = audio @ text.T / larp.temperature.item()
    a2t = -(np.diag(logits) - np.log(np.exp(logits).sum(1))).mean()
    t2a = -(np.diag(logits) - np.log(np.exp(logits).sum(0))).mean()
    assert validation.score(larp) == pytest.approx(-(a2t + t2a) / 2, rel=1e-4)
    nothing = replace(lonely, track_split=np.full_like(dataset.track_split, TRAIN))
    assert validation_of(nothing, live, TINY) is None


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
    again = train_larp(dataset, clips, Run(tmp_path), TINY, Silent())
    first, second = load_file(directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.stages == result.stages
    for name in ("tokenizer.json", "config.json", "README.md"):
        assert (directory / name).read_bytes() == (tmp_path / name).read_bytes()


def test_another_seed_gives_other_weights(trained: Trained, dataset: DataSet, clips: ClipCache, tmp_path: Path) -> None:
    one = replace(TINY, loop=replace(TINY.loop, seed=1), stages=TINY.stages[:1])
    train_larp(dataset, clips, Run(tmp_path), one, Silent())
    first, second = load_file(trained[0] / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert not torch.equal(first["audio.head.weight"], second["audio.head.weight"])


def test_training_teaches_what_it_is_asked(dataset: DataSet, clips: ClipCache, tmp_path: Path) -> None:
    """On the tracks it learns from, the losses fall and playlists draw together in both towers, more than
    others. The last epoch is kept.
    """
    stage = StageConfig(("wtc", "ttc", "tpc"), 16, lr=3e-3, warmup_steps=5, patience=0)
    config = replace(TINY, queue=0, batch_size=16, stages=(stage,))
    unselected = replace(dataset, track_split=np.where(dataset.track_split == VALID, TEST, dataset.track_split))
    corpus = corpus_of(dataset, clips, config)
    numbers = np.arange(len(corpus))
    related = corpus.pairs.relations(numbers, np.full(len(corpus), -1), numbers)[0]
    margins: list[dict[str, float]] = []

    def measure(_: str, larp: Larp, content: Content) -> None:
        found = {}
        for name in larp.names:
            vectors = encode(larp, name, content, corpus.rows)
            cosines = vectors @ vectors.T
            found[name] = float(cosines[related].mean() - cosines[~related & ~np.eye(len(corpus), dtype=bool)].mean())
        margins.append(found)

    result = train_larp(unselected, clips, Run(tmp_path, after_stage=measure), config, Silent())
    before, after = margins
    history = result.stages["wtc+ttc+tpc"].history
    print(before, after, history)
    assert result.untrained_score is None
    assert result.stages["wtc+ttc+tpc"].best_epoch == 15
    assert all(history[-1][name] < history[0][name] for name in ("wtc", "ttc", "tpc"))
    assert all(after[name] > before[name] + 0.05 for name in ("audio", "text"))


def test_without_training_playlists_only_wtc_is_trained(dataset: DataSet, clips: ClipCache, tmp_path: Path) -> None:
    lonely = replace(dataset, playlist_split=np.full_like(dataset.playlist_split, VALID))
    said = io.StringIO()
    one_epoch = tuple(replace(stage, epochs=1) for stage in TINY.stages)
    result = train_larp(lonely, clips, Run(tmp_path), replace(TINY, stages=one_epoch), Progress(said))
    assert list(result.stages) == ["wtc"]
    assert "stage WTC+TTC is left out: no training playlist has two tracks" in said.getvalue()


def test_tables_are_filled_by_the_model_in_evaluation(dataset: DataSet, clips: ClipCache) -> None:
    corpus = corpus_of(dataset, clips)
    pretraining = Pretraining(larp_of(corpus), TINY, len(corpus)).train()
    fill_tables(pretraining, corpus)
    for name in ("audio", "text"):
        vectors = encode(pretraining.online.eval(), name, corpus.content, corpus.rows)
        assert np.allclose(pretraining.table(name), vectors, atol=1e-6)


def task_of(dataset: DataSet, clips: ClipCache, config: LarpConfig) -> LarpTask:
    """The third stage's task, its queue and tables filled by a step."""
    corpus = corpus_of(dataset, clips, config)
    pretraining = Pretraining(larp_of(corpus, config), config, len(corpus))
    fill_tables(pretraining, corpus)
    return LarpTask("third", 3, config.stages[2], pretraining, corpus, None)


@pytest.mark.parametrize("changes", [{}, {"targets": "diagonal", "distill": 0.4, "sides": "all"}])
def test_a_small_micro_batch_gives_the_same_gradients(
    dataset: DataSet, clips: ClipCache, changes: dict[str, Any]
) -> None:
    """Augmentation included: it is drawn per track."""
    grown: list[dict[str, torch.Tensor]] = []
    for micro in (0, 3):
        task = task_of(dataset, clips, replace(STEADY, micro_batch=micro, **changes))
        batches = task.batches(1)
        for _ in range(2):  # of the second step, when the queue holds something
            for parameter in task.parameters():
                parameter.grad = None
            parts = task.parts(next(batches))
            sizes = [len(part.places) for part in parts]
            for part in parts:
                task.loss(part)[0].backward()
            task.after_step()
        assert sizes == ([8] if micro == 0 else [3, 3, 2])
        grown.append({str(k): p.grad for k, p in enumerate(task.parameters()) if p.grad is not None})
    whole, parted = grown
    assert whole.keys() == parted.keys()
    for name, gradient in whole.items():
        scale = gradient.abs().max().item()
        assert (parted[name] - gradient).abs().max().item() <= 1e-4 * scale + 1e-6, name


def test_memory_that_runs_out_is_made_do_with(dataset: DataSet, clips: ClipCache, tmp_path: Path) -> None:
    """Two tracks at once fit, no more: the weights are those of a run that was told so."""
    said, config = io.StringIO(), stages_of(STEADY, 1, 3)
    forward = Larp.tower

    class Tight(AudioTower):
        def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
            if len(log_mel) > 2 and self.training:
                raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
            return super().forward(log_mel)

    def tight(self: Larp, name: str) -> Any:
        tower = forward(self, name)
        if name == "audio":
            tower.__class__ = Tight
        return tower

    expected = train_larp(dataset, clips, Run(tmp_path / "told"), replace(config, micro_batch=2), Silent())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Larp, "tower", tight)
        found = train_larp(dataset, clips, Run(tmp_path / "found"), config, Progress(said, interval_s=1e9))
    assert said.getvalue().count("memory ran out; from here on batches are encoded in smaller parts") == 2
    assert found.stages == expected.stages
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("told", "found"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_soft_targets_come_in_over_two_epochs(dataset: DataSet, clips: ClipCache) -> None:
    task = task_of(dataset, clips, replace(STEADY, distill=0.4))
    steps = task.steps(0)
    found = []
    for epoch, start in ((0, 0), (0, 1), (1, 0), (2, 0), (3, 1)):
        found.append(task.parts(next(task.batches(epoch, start)))[0].step.alpha)
    assert found == pytest.approx([0.0, 0.4 / (2 * steps), 0.2, 0.4, 0.4])


def test_who_listens_is_told_after_each_stage(dataset: DataSet, clips: ClipCache, tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    run = Run(tmp_path, after_stage=lambda name, larp, _: heard.append((name, larp.temperature.item())))
    train_larp(dataset, clips, run, stages_of(TINY, 1, 1, 2), Silent())
    assert [name for name, _ in heard] == ["untrained", "wtc", "wtc+ttc"]
    assert heard[0][1] == pytest.approx(TINY.temperature)
    assert len({value for _, value in heard}) == 3


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
        "caption": "sentence",
        "audio_share": 0.5,
        "sample_rate": 48000,
        "towers": ["audio", "text"],
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
    paper, reference = larp_preset("paper", seed=3), larp_preset("reference")
    assert paper == replace(PRESETS["paper"], loop=replace(PRESETS["paper"].loop, seed=3))
    for settings in (paper, reference):
        found = (settings.queue, settings.batch_size, settings.momentum, settings.seeds)
        assert found == (57_600, 100, 0.995, 10)
        assert all((s.epochs, s.lr, s.warmup_steps, s.patience) == (45, 1e-4, 3000, 5) for s in settings.stages)
    assert (reference.targets, reference.distill, reference.fusion, reference.tables) == (
        "diagonal",
        0.4,
        "attention",
        "zeros",
    )
    for name, settings in PRESETS.items():
        three = [("wtc",), ("wtc", "ttc"), ("wtc", "ttc", "tpc")]
        assert [stage.losses for stage in settings.stages] == ([("ttc",)] if name == "captions" else three), name
        assert LarpConfig.from_json(json.loads(json.dumps(settings.to_json()))).to_json() == settings.to_json()
    assert larp_preset("demo", clauses=("title",)).clauses == ("title",)
    with pytest.raises(SettingsError, match=r"no preset 'huge'; there are paper, reference, .*captions"):
        larp_preset("huge")
    with pytest.raises(SettingsError, match="clauses"):
        larp_preset("demo", clauses=("lyrics",))
    with pytest.raises(SettingsError, match="colour"):
        larp_preset("demo", colour="blue")
