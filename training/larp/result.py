"""What a training of LARP found."""

from dataclasses import dataclass, field

from training.loop import FitResult


@dataclass(frozen=True)
class LarpResult:
    """What a training found: how validation scored it (`score_name`), untrained and after each stage."""

    score_name: str
    untrained_score: float | None
    stages: dict[str, FitResult] = field(default_factory=dict)

    @property
    def best_score(self) -> float:
        """The score of the weights that were kept: those of the last stage's best epoch."""
        return [*self.stages.values()][-1].best_score
