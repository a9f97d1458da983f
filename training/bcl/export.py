"""BCL -> matcher/ of a release: matcher.onnx and fields.json, what `index.models.matcher` runs without torch."""

from pathlib import Path

import torch
from torch import Tensor, nn

from index.models.fields import FieldSet
from training.bcl.model import Bcl, Inputs
from training.folders import replace_folder
from training.onnx_export import export_onnx

ORDER = ("categorical", "multi", "numeric", "numeric_known", "dense", "dense_known")
_EXAMPLES = 3  # rows of the traced batch; neither 0 nor 1, which the exporter would take for constants


def export_matcher(model: Bcl, directory: Path) -> None:
    """Write matcher.onnx and fields.json into `directory`, or replace it.

    Inputs are those of `FieldSet.transform` (absent kinds left out), batch dynamic; output "vector" f32 [N,
    dims + content_dims], `Bcl.matching`. All weights are inside the one file.
    """
    arrays = _example(model.fields)
    batch = torch.export.Dim("batch", min=1)

    def fill(folder: Path) -> None:
        dynamic = {name: {0: batch} for name in arrays}
        export_onnx(_Matching(model.cpu().eval()), arrays, dynamic, folder / "matcher.onnx", as_mapping=True)
        (folder / "fields.json").write_text(model.fields.to_json() + "\n", encoding="utf-8")

    replace_folder(directory, fill)


class _Matching(nn.Module):
    """The matching vector as a module of its own."""

    def __init__(self, model: Bcl) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        return self.model.matching(inputs)


def _example(fields: FieldSet) -> dict[str, Tensor]:
    counts = {kind: len(fields.of(kind)) for kind in ("categorical", "multi", "numeric")}
    blocks = len(fields.groups) - sum(counts.values())
    width = next((spec.block for spec in fields.of("dense")), 0)
    shapes = {
        "categorical": (counts["categorical"],),
        "multi": (counts["multi"], fields.slots),
        "numeric": (counts["numeric"],),
        "numeric_known": (counts["numeric"],),
        "dense": (blocks, width),
        "dense_known": (blocks,),
    }
    kinds = {"categorical": torch.int64, "multi": torch.int64}
    return {
        name: torch.zeros((_EXAMPLES, *shapes[name]), dtype=kinds.get(name, torch.float32))
        for name in ORDER
        if shapes[name][0]
    }
