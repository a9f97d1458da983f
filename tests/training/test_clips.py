"""The clip cache: what is decoded, when it is decoded again, and what a crop holds."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from index.sound.audio import decode_span, repeat_pad
from index.sound.features import FRAMES, log_mel
from index.tracks.track import Track
from training.data import clips as clips_module
from training.data.clips import ClipCache, ClipError
from training.data.dataset import DataSet
from training.data.excerpts import COMMIT, Excerpts, locked
from training.data.frontend import LOG_MEL, FrontEnd
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
    at = np.random.default_rng(1).random(300)
    crops = cache.crops(rows, at)
    whole = log_mel(decode_span(tmp_path / "data/a.wav", 0.0, 10.05)[None])[0]
    starts = []
    for crop in crops[:, 0]:
        (match,) = [k for k in range(len(whole) - FRAMES + 1) if np.abs(crop - whole[k : k + FRAMES]).max() < 0.05]
        starts.append(match)
    assert starts == np.floor(6 * at).tolist()  # 1006 frames hold 6 places for 1001
    assert set(starts) == set(range(6))
    assert np.array_equal(crops, cache.crops(rows, at))


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
    assert Excerpts.load(folder, LOG_MEL).entries["a.wav"].mtime_ns == 1

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
    assert Excerpts.load(folder, LOG_MEL).entries["a.wav"].mtime_ns == 3


@pytest.mark.parametrize("damage", ["log", "data", "format"])
def test_a_damaged_cache_is_built_anew(tmp_path: Path, damage: str, decoded: list[str]) -> None:
    folder = tmp_path / "cache"
    dataset = dataset_of(tmp_path / "data", {"a": 11.0})
    before = ClipCache.build(dataset, folder, Silent()).crops(np.arange(1), None)
    (data,) = folder.glob("*.f16")
    header, *lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    if damage == "log":
        (folder / "log.jsonl").write_text("{\n")
    elif damage == "format":
        (folder / "log.jsonl").write_text(json.dumps(json.loads(header) | {"format": 0}) + "\n" + "".join(lines))
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
    (root / "t7.wav").unlink()
    assert "No such file" in ClipCache.build(DataSet.open(root), tmp_path / "cache", Silent()).unreadable["t7"]
    with locked(tmp_path / "cache"):  # what is still missing is no reason to write
        assert ClipCache.build(DataSet.open(root), tmp_path / "cache", Silent()).available.sum() == 99


# ----- a cache that grows -----


def copies_of(root: Path, count: int) -> DataSet:
    """A data set of `count` files, which is quick to write."""
    dataset_of(root, {"good": 10.0})
    names = [f"t{k:03d}" for k in range(count)]
    for name in names:
        shutil.copy(root / "good.wav", root / f"{name}.wav")
    write_dataset(root, [Track(name) for name in names], audio={name: f"{name}.wav" for name in names})
    return DataSet.open(root)


STUCK = """
import sys, time
from pathlib import Path
from training.data import clips
from training.data.dataset import DataSet
from training.progress import Silent

decode = clips._decode
def slow(path):
    if path.name == "t040.wav":
        time.sleep(600)
    return decode(path)
clips._decode = slow
clips.ClipCache.build(DataSet.open(sys.argv[1]), Path(sys.argv[2]), Silent(), workers=1)
"""


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path, decoded: list[str]) -> None:
    root, folder, count = tmp_path / "data", tmp_path / "cache", 60
    dataset = copies_of(root, count)
    whole = ClipCache.build(dataset, tmp_path / "other", Silent())
    decoded.clear()
    child = subprocess.Popen([sys.executable, "-c", STUCK, root, folder], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline, lines = time.monotonic() + 60, 0
        while lines < 1 + 40 // COMMIT * COMMIT:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
            lines = (folder / "log.jsonl").read_bytes().count(b"\n") if (folder / "log.jsonl").exists() else 0
        with pytest.raises(ClipError, match=r"another process is filling the clip cache .*; wait"):
            ClipCache.build(dataset, folder, Silent())
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert decoded == []
    cache = ClipCache.build(dataset, folder, Silent())
    assert sorted(decoded) == [f"t{k:03d}.wav" for k in range(40 // COMMIT * COMMIT, count)]
    assert cache.fingerprint == whole.fingerprint
    assert np.array_equal(cache.crops(np.arange(count), None), whole.crops(np.arange(count), None))


def test_half_a_write_at_the_end_does_no_harm(tmp_path: Path, decoded: list[str]) -> None:
    folder = tmp_path / "cache"
    before = ClipCache.build(dataset_of(tmp_path / "data", {"a": 11.0}), folder, Silent()).crops(np.arange(1), None)
    (data,) = folder.glob("*.f16")
    with open(data, "ab") as file:
        file.write(b"\x07" * 1001)
    with open(folder / "log.jsonl", "ab") as file:
        file.write(b'["b.wav", 10, 20, "abc", 11')
    more = dataset_of(tmp_path / "data", {"a": 11.0, "b": 12.0})
    after = ClipCache.build(more, folder, Silent()).crops(np.arange(2), None)
    assert decoded == ["a.wav", "b.wav"]
    assert np.array_equal(after[:1], before)
    assert np.array_equal(after, ClipCache.build(more, tmp_path / "fresh", Silent()).crops(np.arange(2), None))


def test_an_interrupt_keeps_what_was_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = copies_of(tmp_path / "data", 5)
    decode = clips_module._decode

    def stop(path: Path) -> object:
        if path.name == "t003.wav":
            raise KeyboardInterrupt
        return decode(path)

    monkeypatch.setattr(clips_module, "_decode", stop)
    with pytest.raises(KeyboardInterrupt):
        ClipCache.build(dataset, tmp_path / "cache", Silent(), workers=1)
    assert sorted(Excerpts.load(tmp_path / "cache", LOG_MEL).entries) == ["t000.wav", "t001.wav", "t002.wav"]


def test_new_tracks_are_appended_and_old_ones_compacted_when_they_are_most(tmp_path: Path) -> None:
    root, folder = tmp_path / "data", tmp_path / "cache"
    four = dict.fromkeys("abcd", 10.0)
    first = ClipCache.build(dataset_of(root, four), folder, Silent())
    (data,) = folder.glob("*.f16")
    began, size = data.stat().st_ino, data.stat().st_size
    expected = first.crops(np.arange(4), None)

    cache = ClipCache.build(dataset_of(root, {**four, "e": 10.0}), folder, Silent())
    assert (data.stat().st_ino, data.stat().st_size) == (began, size * 5 // 4)
    assert np.array_equal(cache.crops(np.arange(4), None), expected)

    three = ClipCache.build(dataset_of(root, dict.fromkeys("abc", 10.0)), folder, Silent())
    assert data.stat().st_size == size * 5 // 4  # two of five are not needed: not worth a copy
    assert np.array_equal(three.crops(np.arange(3), None), expected[:3])

    two = ClipCache.build(dataset_of(root, dict.fromkeys("ac", 10.0)), folder, Silent())
    (data,) = folder.glob("*.f16")
    assert data.stat().st_size == size // 2
    assert np.array_equal(
        two.crops(np.arange(2), None),
        ClipCache.build(dataset_of(root, dict.fromkeys("ac", 10.0)), tmp_path / "other", Silent()).crops(
            np.arange(2), None
        ),
    )
    assert np.array_equal(cache.crops(np.arange(4), None), expected)  # what was opened before stays whole


def test_a_cache_that_lacks_nothing_is_opened_while_another_process_holds_it(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "data", {"a": 10.0, "b": 10.0, "none": None})
    ClipCache.build(dataset, tmp_path / "cache", Silent())
    with locked(tmp_path / "cache"):
        assert ClipCache.build(dataset, tmp_path / "cache", Silent()).available.sum() == 2


# ----- samples instead of log-mel -----


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
def test_samples_are_those_of_the_middle_at_the_rate_asked_for(tmp_path: Path, rate: int) -> None:
    root = tmp_path / "data"
    dataset = dataset_of(root, {"sine": 41.0, "short": 3.0, "none": None})
    wave_of = np.sin(2 * np.pi * 440 * np.arange(41 * 48_000) / 48_000) / 2
    with wave.open(str(root / "sine.wav"), "wb") as file:
        file.setparams((1, 2, 48_000, 0, "NONE", ""))
        file.writeframes((wave_of * 32767).astype("<i2").tobytes())
    front_end = FrontEnd("pcm", rate)
    cache = ClipCache.build(dataset, front_end.folder(tmp_path / "clips"), Silent(), front_end=front_end)
    assert (tmp_path / f"clips-pcm-{rate}").is_dir()
    for at, start in ((None, 15.5), (np.zeros(1), 5.5), (np.full(1, 0.5), 15.5)):
        clip = cache.crops(np.array([0]), at)
        assert clip.shape == (1, 10 * rate)
        assert clip.dtype == np.float32
        expected = np.sin(2 * np.pi * 440 * (start + np.arange(10 * rate) / rate)) / 2
        inner = slice(100, -100)  # the excerpt's first samples are the filter's
        assert np.abs(clip[0, inner] - expected[inner]).max() < 1e-3
    short = cache.crops(np.array([1]), None)[0]
    assert np.abs(short[9 * rate + 100 :]).max() == 0  # three times, then silence
    assert cache.available.tolist() == [True, True, False]


def test_caches_of_two_front_ends_do_not_mix(tmp_path: Path) -> None:
    dataset, folder = dataset_of(tmp_path / "data", {"a": 10.0}), tmp_path / "cache"
    mel, pcm = (ClipCache.build(dataset, folder, Silent(), front_end=f) for f in (LOG_MEL, FrontEnd("pcm", 16_000)))
    assert mel.fingerprint != pcm.fingerprint
    assert pcm.crops(np.arange(1), None).shape == (1, 160_000)
    assert [path.suffix for path in folder.glob("excerpts-*")] == [".i16"]
    with pytest.raises(ValueError, match="no front end"):
        FrontEnd("mfcc", 16_000)


def test_the_threads_of_blas_do_not_show(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "data", {"a": 20.0, "b": 31.0})
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            cache = ClipCache.build(dataset, tmp_path / f"cache-{threads}", Silent(), workers=1)
        found.append(cache.crops(np.arange(2), None))
    assert np.array_equal(found[0], found[1])
