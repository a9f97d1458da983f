"""The model card of a LARP checkpoint."""

from training.data.dataset import TRAIN, DataSet
from training.larp.config import LarpConfig
from training.larp.result import LarpResult

_READS = {"audio": "audio", "text": "a caption"}


def model_card(dataset: DataSet, config: LarpConfig, result: LarpResult, audio_share: float) -> str:
    """Markdown: what the model is for, what it has seen, how it scored, what to be careful about."""
    rows = [
        f"| {name} | {len(fit.history)} | {fit.best_epoch + 1} | {fit.best_score:.4f} |"
        for name, fit in result.stages.items()
    ]
    untrained = "" if result.untrained_score is None else f" Untrained it scored {result.untrained_score:.4f}."
    read = " and ".join(_READS[name] for name in config.towers)
    return "\n".join(
        [
            "# LARP towers",
            "",
            "Audio and caption of a track become vectors of one space, tracks of one playlist near",
            "(Salganik et al., LARP, KDD 2024, arXiv 2406.14333). Made for continuing playlists with tracks",
            "that nobody has played yet. A candidate scores the mean of the seeds' vectors times its own, each",
            f"{_joined(config, audio_share)}.",
            "",
            *_towers(config),
            f"- space: {config.dims} dimensions",
            f"- training split: {int((dataset.track_split == TRAIN).sum())} tracks (those with {read} "
            f"were learnt from), {len(dataset.members(TRAIN).ids)} playlists; fingerprint {dataset.fingerprint}",
            f"- seed {config.loop.seed}; all settings are in config.json",
            "",
            f"Score: {result.score_name} on the validation split, which selected the epoch.{untrained}",
            "",
            "| losses | epochs | best epoch | score |",
            "|---|---|---|---|",
            *rows,
            "",
            "The figures of the test split are in the manifest of the release. The model repeats the taste",
            "of the playlists it has seen: it knows little of styles and languages that are rare in them.",
            "",
        ]
    )


def _joined(config: LarpConfig, share: float) -> str:
    if len(config.towers) == 1:
        return f"the vector of the {config.towers[0]} tower, the only one"
    return f"the normalised sum of {share:.2g} x audio and {1 - share:.2g} x text"


def _towers(config: LarpConfig) -> list[str]:
    heads = ", head a whitening" if config.heads == "whitened" else ""
    fixed = ", encoder fixed" if config.freeze else ""
    reads = "captions" if config.caption == "sentence" else "fields"
    told = {
        "audio": f"- audio tower: {_origin(config.audio.checkpoint)}{fixed}{heads}; 10 s clips",
        "text": f"- text tower: {_origin(config.text.checkpoint)}{fixed}{heads}; {reads}: {', '.join(config.clauses)}",
    }
    return [told[name] for name in config.towers]


def _origin(checkpoint: str | None) -> str:
    return "from scratch" if checkpoint is None else f"from checkpoint {checkpoint.rstrip('/').rsplit('/')[-1]}"
