"""The clip cache: what is decoded, when it is decoded again, and what a crop holds."""

import io
import json
import os
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest

from index.audio import decode_span, repeat_pad
from index.features import FRAMES, log_mel
from index.tracks import Track
from training.data import clips as clips_module
from training.data.clips import ClipCache, ClipError
from training.data.dataset import DataSet
from training.data.writing import write_dataset
from training.progress import Progress, Silent


def write_wav(path: Path, seconds: float, seed: int) -> None:
    """Noise under a slow swell, so that every frame differs."""
    count = int(seconds * 48_000)
    noise = np.random.default_rng(seed).normal(0, 0.1, count) * (1 + np.sin(np.arange(count) / 30_000)) / 2
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes((np.clip(noise, -1, 1) * 32767).astype("<i2").tobytes())


def dataset_of(root: Path, seconds: dict[str, float | None]) -> DataSet:
    """A data set of wav files; None is a track without audio."""
    root.mkdir(exist_ok=True)
    for seed, (name, length) in enumerate(seconds.items()):
        if length is not None:
            write_wav(root / f"{name}.wav", length, seed)
    audio = {name: f"{name}.wav" for name, length in seconds.items() if length is not None}
    write_dataset(root, [Track(name) for name in seconds], audio=audio)
    return DataSet.open(root)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded from here on."""
    names: list[str] = []
    decode = clips_module._decode
    monkeypatch.setattr(clips_module, "_decode", lambda path: (names.append(path.name), decode(path))[1])
    return names


def test_an_excerpt_is_the_log_mel_of_the_middle(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "data", {"long": 41.0, "none": None, "clip": 12.0, "short": 3.0})
    cache = ClipCache.build(dataset, tmp_path / "cache", Silent(), workers=2)
    assert cache.available.tolist() == [True, False, True, True]
    assert cache.unreadable == {}

    long = log_mel(decode_span(tmp_path / "data/long.wav", 5.5, 30.0)[None])[0]
    assert len(long) == 3001
    middle = cache.crops(np.array([0]), None)
    assert middle.shape == (1, 1, FRAMES, 64)
    assert middle.dtype == np.float32
    assert np.abs(middle[0, 0] - long[1000:2001]).max() < 0.05  # float16 in dB: half a step of 2^-5

    short = log_mel(repeat_pad(decode_span(tmp_path / "data/short.wav", 0.0, 3.0))[None])[0]
    assert np.abs(cache.crops(np.array([3]), None)[0, 0] - short).max() < 0.05


def test_random_crops_start_anywhere_and_are_repeatable(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "data", {"a": 10.05})
    cache = ClipCache.build(dataset, tmp_path / "cache", Silent())
    rows = np.zeros(300, np.int64)
    crops = cache.crops(rows, np.random.default_rng(1))
    whole = log_mel(decode_span(tmp_path / "data/a.wav", 0.0, 10.05)[None])[0]
    starts = set()
    for crop in crops[:, 0]:
        (match,) = [k for k in range(len(whole) - FRAMES + 1) if np.abs(crop - whole[k : k + FRAMES]).max() < 0.05]
        starts.add(match)
    assert starts == set(range(6))  # 1006 frames hold 6 places for 1001
    assert np.array_equal(crops, cache.crops(rows, np.random.default_rng(1)))


def test_the_second_build_decodes_nothing(tmp_path: Path, decoded: list[str]) -> None:
    dataset = dataset_of(tmp_path / "data", {"a": 11.0, "b": 11.0})
    first = ClipCache.build(dataset, tmp_path / "cache", Silent())
    assert sorted(decoded) == ["a.wav", "b.wav"]
    second = ClipCache.build(dataset, tmp_path / "cache", Silent())
    assert len(decoded) == 2
    assert np.array_equal(first.crops(np.arange(2), None), second.crops(np.arange(2), None))


def test_only_changed_and_new_files_are_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    root, folder = tmp_path / "data", tmp_path / "cache"
    dataset = dataset_of(root, {"a": 11.0, "b": 11.0, "c": 11.0})
    before = ClipCache.build(dataset, folder, Silent()).crops(np.arange(3), None)
    decoded.clear()

    os.utime(root / "a.wav", ns=(1, 1))  # touched, not changed
    ClipCache.build(dataset, folder, Silent())
    assert decoded == []
    assert json.loads((folder / "index.json").read_text())["entries"]["a.wav"]["mtime_ns"] == 1

    write_wav(root / "b.wav", 11.0, 99)  # as long as before: only the content tells
    os.utime(root / "b.wav", ns=(2, 2))
    after = ClipCache.build(dataset, folder, Silent()).crops(np.arange(3), None)
    assert decoded == ["b.wav"]
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert not np.array_equal(after[1], before[1])
    assert len(list(folder.glob("*.f16"))) == 1

    decoded.clear()
    fewer = dataset_of(root, {"a": 11.0, "d": 10.0})
    os.utime(root / "a.wav", ns=(3, 3))
    assert ClipCache.build(fewer, folder, Silent()).available.all()
    assert decoded == ["d.wav"]
    assert sorted(json.loads((folder / "index.json").read_text())["entries"]) == ["a.wav", "d.wav"]


@pytest.mark.parametrize("damage", ["index", "data", "format"])
def test_a_damaged_cache_is_built_anew(tmp_path: Path, damage: str, decoded: list[str]) -> None:
    folder = tmp_path / "cache"
    dataset = dataset_of(tmp_path / "data", {"a": 11.0})
    before = ClipCache.build(dataset, folder, Silent()).crops(np.arange(1), None)
    (data,) = folder.glob("*.f16")
    index = json.loads((folder / "index.json").read_text())
    if damage == "index":
        (folder / "index.json").write_text("{")
    elif damage == "format":
        (folder / "index.json").write_text(json.dumps(index | {"format": 0}))
    else:
        data.write_bytes(data.read_bytes()[:-1])
    assert np.array_equal(ClipCache.build(dataset, folder, Silent()).crops(np.arange(1), None), before)
    assert decoded == ["a.wav", "a.wav"]


def test_a_build_that_is_broken_off_leaves_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    dataset = dataset_of(tmp_path / "data", {"a": 11.0})
    before = ClipCache.build(dataset, folder, Silent()).crops(np.arange(1), None)
    more = dataset_of(tmp_path / "data", {"a": 11.0, "b": 11.0})

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clips_module, "_decode", stop)
        with pytest.raises(KeyboardInterrupt):
            ClipCache.build(more, folder, Silent())
    again = ClipCache.build(dataset, folder, Silent())
    assert np.array_equal(again.crops(np.arange(1), None), before)


def test_over_one_percent_unreadable_is_an_error_that_names_a_file(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "data", {"a": 10.0, "b": 10.0})
    (tmp_path / "data/b.wav").write_bytes(b"no sound at all")
    with pytest.raises(ClipError, match=r"1 of 2 audio files .* the first: b\.wav: "):
        ClipCache.build(dataset, tmp_path / "cache", Silent())
    (tmp_path / "data/b.wav").unlink()
    with pytest.raises(ClipError, match=r"b\.wav: cannot be read: No such file"):
        ClipCache.build(dataset, tmp_path / "cache", Silent())


def test_one_percent_is_named_counted_and_left_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    dataset_of(root, {"good": 10.0})
    names = [f"t{k}" for k in range(100)]
    for name in names:
        shutil.copy(root / "good.wav", root / f"{name}.wav")
    (root / "t7.wav").write_bytes(b"RIFF")
    write_dataset(root, [Track(name) for name in names], audio={name: f"{name}.wav" for name in names})
    said = io.StringIO()
    cache = ClipCache.build(DataSet.open(root), tmp_path / "cache", Progress(said))
    assert cache.available.sum() == 99
    assert list(cache.unreadable) == ["t7"]
    assert "unreadable audio: t7.wav: " in said.getvalue()
    assert "unreadable 1" in said.getvalue()
    with pytest.raises(ClipError, match="row 7 has no clip"):
        cache.crops(np.array([3, 7]), None)
