"""A torch module -> one ONNX file that says nothing of the machine it was made on."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class _ByName(nn.Module):
    """A module of one mapping, as the exporter wants it: one argument an input."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(dict(zip(self.names, inputs, strict=True)))


def export_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Any, path: Path, *, as_mapping: bool = False
) -> None:
    """Write `module` as `path`, weights inside: graph inputs by the names of `inputs`, one output "vector".

    `dynamic` maps an input's name to its dynamic axes (torch.export.Dim by axis), None for none. With `as_mapping` the
    module takes one mapping of all inputs, else keyword arguments. Appears whole or not at all.
    """
    names = list(inputs)
    arguments: dict[str, Any] = {"args": (), "kwargs": dict(inputs), "dynamic_shapes": dynamic}
    if as_mapping:
        module = _ByName(module, names)
        shapes = (tuple(dynamic[name] for name in names),) if dynamic else None
        arguments = {"args": tuple(inputs.values()), "dynamic_shapes": shapes}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            **arguments,
            input_names=names,
            output_names=["vector"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _forget_sources(program)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        program.save(part, external_data=False)
        os.replace(part, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter (prints, log lines, deprecations of its own parts) from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _forget_sources(program: Any) -> None:
    """Take out what the exporter noted beside each node: stack traces with this machine's paths."""
    graph = program.model.graph
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
