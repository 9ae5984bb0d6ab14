"""The command that shows how far what runs here is from the truth."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console

from ..errors import InputError
from ..json_file import check_writable, write_json
from ..kernels.backend import Backend, choices, use_backend
from ..models.model_directory import read_model
from .config import Precision
from .distributed import choose_device
from .parity import Row, as_dict, format_rows, model_rows, op_rows


def parity_command(
    model: tyro.conf.Positional[Path],
    /,
    *,
    backend: Backend = "auto",
    precision: Literal["both", "fp32", "bf16"] = "both",
    clips: int = 4,
    device: str = "auto",
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Compare every op, and a few steps of a model, forward and gradients, with the reference path in float64.

    Beside each error stands that of plain PyTorch in the same precision; exits with 1 where an error is beyond its
    budget (twice PyTorch's and two units in the last place).

    Args:
        model: Run directory of either stage, or a converted checkpoint.
        backend: fused and reference insist; auto takes what would run here.
        precision: Of parameters and inputs (ops), of the forward pass (model; parameters stay fp32).
        clips: Clips of noise in each of the model's steps.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        json_file: File to write the same figures to as JSON.
    """
    if clips < 2:
        raise InputError(f"--clips is {clips}; expected at least 2, so that there are pairs to tell apart")
    if json_file is not None:
        check_writable(json_file)
    chosen, network = choose_device(device), read_model(model)
    with use_backend(backend):
        refused = [choice.op for choice in choices(chosen) if choice.path == "refused"]
    if refused:
        raise InputError(
            f"backend fused was asked for, but on {chosen} there is no fused {', '.join(refused)}; "
            "--backend auto compares what runs here"
        )
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if precision == "both" else (precision,)
    rows: list[Row] = []
    with Console(stderr=True).status("comparing ops") as status:
        rows.extend(op_rows(backend, chosen, precisions))
        status.update("comparing a step of the model")
        rows.extend(model_rows(network, backend, chosen, precisions, clips))
    print(format_rows(rows))
    beyond = [row for row in rows if not row.ok]
    print(f"{len(rows)} comparisons on {chosen}, backend {backend}, torch {torch.__version__}", file=sys.stderr)
    if json_file is not None:
        write_json(json_file, {"device": str(chosen), "backend": backend, "rows": [as_dict(row) for row in rows]})
    if beyond:
        print(f"cacophony: {len(beyond)} of {len(rows)} comparisons are beyond their budget", file=sys.stderr)
    return 1 if beyond else 0
