"""Where a checkpoint lies: in a folder, or under a name of the Hugging Face hub, in its cache or fetched into it."""

import hashlib
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import HFValidationError, validate_repo_id

from index.errors import DebutError

CONFIG, WEIGHTS, TOKENIZER, EXTRACTOR = FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "preprocessor_config.json",
)
POOLING = "1_Pooling/config.json"
"""All that is ever read of a checkpoint: no pickles, no code. The last is there beside encoders of sentences alone."""


class CheckpointError(DebutError):
    """A checkpoint that is not there, cannot be read, or does not match the model."""

    code = "checkpoint_unusable"


def checkpoint_folder(checkpoint: str, *more: str) -> Path:
    """Return the folder of a checkpoint, which has config.json, model.safetensors and the files `more`.

    A directory is used as it is. Any other name is looked up in the hub's local cache, and only if it is not there
    whole it is downloaded into it; HF_HUB_OFFLINE=1 forbids that. Raises CheckpointError.
    """
    folder, wanted = Path(checkpoint), (CONFIG, WEIGHTS, *more)
    if not folder.is_dir():
        folder = _cached(checkpoint, wanted) or _downloaded(checkpoint)
    for name in wanted:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{checkpoint} has no {name}: save it there with transformers' save_pretrained, or take another "
                "checkpoint"
            )
    return folder


def checkpoint_fingerprint(checkpoint: str) -> str:
    """What tells a checkpoint's settings and weights from all others, whatever its folder is called. Raises
    CheckpointError.
    """
    folder, digest = checkpoint_folder(checkpoint), hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _cached(name: str, wanted: tuple[str, ...]) -> Path | None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CheckpointError(f"{name} is neither a folder nor a name of the Hugging Face hub: give one of both") from (
            error
        )
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*wanted, POOLING], local_files_only=True))
    except OSError:
        return None
    return folder if all((folder / file).is_file() for file in wanted) else None


def _downloaded(name: str) -> Path:
    if constants.is_offline_mode():
        raise _missing(name, "HF_HUB_OFFLINE is set")
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*FILES, POOLING]))
    except Exception as error:  # what its HTTP client raises is no part of its interface
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")
        raise _missing(name, reason[:200]) from error


def _missing(name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is neither a folder nor in the local cache of the Hugging Face hub nor to be had from there "
        f"({reason}): download it elsewhere with `hf download {name} --local-dir DIR` and give DIR"
    )
