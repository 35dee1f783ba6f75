"""The command `memformer-lab profile`."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from memformer_lab.profiling.call import SIZES, Call, profile_call
from memformer_lab.profiling.view import print_profile, print_virtual
from memformer_lab.reports.terminal import command, memory_for, usable_device, was_given
from memformer_lab.runs.files import write_atomically

HELP = "Say where one call runs and why, what it cannot avoid, and how near it comes to the machine's limit."

_CALL = Call()


def profile(
    context: typer.Context,
    d: Annotated[int, typer.Option(help="Features.")] = _CALL.d,
    n: Annotated[int, typer.Option(help="Labelled examples in a context.")] = _CALL.n,
    queries: Annotated[int, typer.Option(help="Queries a task.")] = _CALL.queries,
    batch: Annotated[int, typer.Option(help="Tasks.")] = _CALL.batch,
    layers: Annotated[int, typer.Option(help="Layers.")] = _CALL.layers,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = _CALL.heads,
    rule: Annotated[str, typer.Option(help="As in train.")] = _CALL.rule,
    granularity: Annotated[
        Optional[str],  # noqa: UP045, typer before 0.13 cannot read the other spelling
        typer.Option(help="As in train.", show_default="the rule's own"),
    ] = _CALL.granularity,
    structure: Annotated[str, typer.Option(help="response-only, block or dense.")] = _CALL.structure,
    dtype: Annotated[str, typer.Option(help="Of the tokens: float32, float64, bfloat16 or float16.")] = _CALL.dtype,
    direction: Annotated[
        str, typer.Option(help="training (a loss and the parameters' gradients) or forward (a prediction).")
    ] = _CALL.direction,
    backend: Annotated[str, typer.Option(help="auto, torch, cpu, cuda or triton.")] = _CALL.backend,
    algorithm: Annotated[str, typer.Option(help="auto, gram or token.")] = _CALL.algorithm,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = _CALL.device,
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to time.")] = 1.0,
    trace: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where a torch.profiler trace of one call goes.", show_default="none"),
    ] = None,
    virtual: Annotated[
        bool,
        typer.Option(
            "--virtual",
            help="Time nothing: run the Triton kernels on a virtual GPU on the CPU, count what they do, and predict "
            "their time on an H200. Default --batch 1024.",
        ),
    ] = False,
) -> None:
    """The command, as `HELP` says."""
    given = locals()
    values = {field.name: given[field.name] for field in dataclasses.fields(Call)}
    with command(*([trace] if trace else [])) as console:
        if virtual:
            _profile_virtually(Call(**values), was_given(context, "batch"), trace, console)
            return
        usable_device(device)
        call = Call(**values)
        # Made elsewhere and written at the end: a trace that cannot be written must not lose what is to be printed.
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, "trace.json") if trace else None
            with memory_for(**{name: getattr(call, name) for name in SIZES}):
                found = profile_call(call, seconds=seconds, trace=made)
            try:
                if trace and made:
                    write_atomically(trace, made.read_bytes())
            finally:
                print_profile(found, console)


def _profile_virtually(call: Call, chosen: bool, trace: Path | None, console: Console) -> None:
    """Profile on a virtual GPU.

    Args:
        call: what is profiled.
        chosen: whether the call's number of tasks was given.
        trace: refused.
        console: where to print.
    """
    if trace is not None:
        raise ValueError("--trace: a virtual GPU keeps no time to trace")
    # Needs Triton, which the lab else does without.
    from memformer_lab.profiling.virtual import TASKS, profile_virtually

    with memory_for(**{name: getattr(call, name) for name in SIZES}):
        found = profile_virtually(call if chosen else dataclasses.replace(call, batch=TASKS))
    print_virtual(found, console)
