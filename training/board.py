"""Curves for TensorBoard: what `tensorboard --logdir` of a workspace's board folder shows."""

from pathlib import Path


class Board:
    """Writes scalars by step, a folder a run. What an earlier run wrote there past step `done` is hidden."""

    def __init__(self, directory: Path, done: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, so not at the top

        self._writer = SummaryWriter(str(directory), purge_step=done + 1)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add a point to each named curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is left."""
        self._writer.close()
