"""The `memformer-lab` command: train, evaluate, info, run, profile, reproduce and solve."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Optional

import torch
import typer
from rich.console import Console
from torch.distributed import ProcessGroup

from memformer_kernels import build_info
from memformer_lab.experiments.budget import Budget
from memformer_lab.experiments.command import HELP as REPRODUCE
from memformer_lab.experiments.command import reproduce
from memformer_lab.experiments.showcase import run_showcase
from memformer_lab.profiling.call import SIZES, Call, profile_call
from memformer_lab.profiling.view import print_profile
from memformer_lab.reports.solve import HELP as SOLVE
from memformer_lab.reports.solve import solve
from memformer_lab.reports.tables import estimate_table
from memformer_lab.reports.terminal import MOST_WORKERS, command, cores, memory_for, standard_streams, task_progress
from memformer_lab.runs import checkpoint as checkpoints
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.files import write_atomically
from memformer_lab.runs.metrics import tensorboard_log
from memformer_lab.runs.models import evaluate as judge
from memformer_lab.runs.models import load_model
from memformer_lab.runs.parallel import is_writer, process_group
from memformer_lab.runs.trainer import Record, fault
from memformer_lab.runs.training import CHECKPOINT, METRICS, TrainingResult, continue_training
from memformer_lab.runs.training import train as train_anew

RESULTS = Path("results")
"""Where commands write unless told otherwise, below the current folder."""

TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's logs, below that of a run."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train Memformers on random regression tasks, judge them, reproduce experiments, and solve tables of "
    "your own.",
)
# Help is given in words and never left to docstrings, which `python -OO` takes away.
app.command(help=REPRODUCE)(reproduce)
app.command(help=SOLVE)(solve)

_RUN = TrainingConfig()
_CALL = Call()
_FIELDS = tuple(field.name for field in dataclasses.fields(TrainingConfig))


def main() -> None:
    """Entry point of `memformer-lab`. Exit codes: 0, 1 for a run that diverged, 2 for bad input."""
    with standard_streams():
        app()


@app.command(
    help="Train one model; leaves checkpoint.safetensors and metrics.jsonl. Under torchrun, ranks share every batch."
)
def train(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint and the metrics.")] = RESULTS / "train",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the checkpoint in the output folder, with --steps to another end."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run in the output folder.")] = False,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 1000,
    device: Annotated[str, typer.Option(help="Where to train, e.g. cpu or cuda.")] = "cpu",
    d: Annotated[int, typer.Option(help="Features.")] = _RUN.d,
    n: Annotated[int, typer.Option(help="Labelled examples in a context.")] = _RUN.n,
    layers: Annotated[int, typer.Option(help="Layers.")] = _RUN.layers,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = _RUN.heads,
    rule: Annotated[
        str, typer.Option(help="linear, cgd, recursive, lfom, lfom_shared, lfom_residual or gated_heads.")
    ] = _RUN.rule,
    granularity: Annotated[
        Optional[str],  # noqa: UP045, typer before 0.13 cannot read the other spelling
        typer.Option(help="Of memory: scalar, feature, token or full.", show_default="the rule's own"),
    ] = _RUN.granularity,
    structure: Annotated[str, typer.Option(help="response-only, block or dense.")] = _RUN.structure,
    tasks: Annotated[str, typer.Option(help="nonisotropic, isotropic or standardised.")] = _RUN.tasks,
    rotation_seed: Annotated[int, typer.Option(help="Seed of the tasks' rotation.")] = _RUN.rotation_seed,
    queries: Annotated[int, typer.Option(help="Queries a task, where they are drawn.")] = _RUN.queries,
    batch: Annotated[int, typer.Option(help="Tasks a step.")] = _RUN.batch,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = _RUN.steps,
    resample: Annotated[int, typer.Option(help="Steps that a batch is kept for.")] = _RUN.resample,
    learning_rate: Annotated[float, typer.Option(help="Adam's learning rate.")] = _RUN.learning_rate,
    betas: Annotated[tuple[float, float], typer.Option(help="Adam's decay rates.")] = _RUN.betas,
    clip: Annotated[float, typer.Option(help="Largest gradient norm of a matrix; 0: any.")] = _RUN.clip or 0.0,
    schedule: Annotated[str, typer.Option(help="constant, step or cosine.")] = _RUN.schedule,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = _RUN.warmup,
    decay: Annotated[float, typer.Option(help="Factor of the step schedule.")] = _RUN.decay,
    decay_every: Annotated[int, typer.Option(help="Steps between two such factors.")] = _RUN.decay_every,
    seed: Annotated[int, typer.Option(help="Seed of parameters and tasks.")] = _RUN.seed,
    log_every: Annotated[int, typer.Option(help="Steps between two lines of metrics.")] = _RUN.log_every,
    backend: Annotated[
        str, typer.Option(help="torch: autograd, step by step; cpu: native steps; auto: the quickest that fits.")
    ] = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log for TensorBoard too, in the output folder.")
    ] = False,
) -> None:
    with command(output) as console, process_group() as group:
        writes = is_writer(group)
        console.quiet = not writes
        place, exists = _device(device), (output / CHECKPOINT).exists()
        if resume:
            given = [name for name in _FIELDS if _was_given(context, name) and name != "steps"]
            if given or overwrite:
                names = ", ".join(f"--{name.replace('_', '-')}" for name in given or ["overwrite"])
                raise ValueError(f"{names} cannot go with --resume, which takes the run from its checkpoint")
            config = checkpoints.load(output / CHECKPOINT).config
            if _was_given(context, "steps"):
                config = dataclasses.replace(config, steps=steps)
        else:
            if exists and not overwrite and writes:
                raise ValueError(f"{output} holds a run: give --resume, --overwrite or another --output")
            values = {name: context.params[name] for name in _FIELDS}
            config = TrainingConfig(**{**values, "clip": clip or None})
            if config.backend == "auto" and (reason := fault(config)) is not None:
                config = dataclasses.replace(config, backend="torch")
                console.print(f"Training step by step: {reason}.")
        log = tensorboard_log(output / TENSORBOARD) if tensorboard and writes else nullcontext()
        sizes = ("d", "n", "layers", "heads", "queries", "batch")
        with memory_for(**{name: getattr(config, name) for name in sizes}), log as write:
            result = _train(config, output, resume, checkpoint_every, place, console, write, group)
        rate = result.tasks / result.seconds if result.tasks else 0.0
        console.print(f"Trained on {result.tasks:,} tasks in {result.seconds:.1f} s, {rate:,.0f} tasks/s.")
        console.print(f"Wrote {output / CHECKPOINT} and {output / METRICS}", soft_wrap=True)


@app.command(help="Print a trained model's log mean squared query error on fresh tasks.")
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or the folder of a run.")],
    tasks: Annotated[int, typer.Option(min=1, help="Fresh tasks to judge on.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the fresh tasks.")] = 0,
    layers: Annotated[bool, typer.Option("--layers", help="Judge the prediction after each layer.")] = False,
) -> None:
    with command() as console:
        model, config = load_model(checkpoint / CHECKPOINT if checkpoint.is_dir() else checkpoint)
        with memory_for(tasks=tasks):
            estimates = judge(model, config, tasks=tasks, seed=seed, layers=layers)
        rows = range(1, config.layers + 1) if layers else [config.layers]
        title = (
            f"{config.rule}, {config.structure}, {config.layers} layers on {config.tasks} tasks, d={config.d}, "
            f"n={config.n}"
        )
        console.print(estimate_table(title, dict(zip(map(str, rows), estimates, strict=True))))


@app.command(help="Print versions, backends and where results go; or what a checkpoint holds.")
def info(
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="A checkpoint file, or the folder of a run.", show_default="none"),
    ] = None,
) -> None:
    with command() as console:
        if checkpoint is None:
            lines = [
                str(build_info()),
                f"CPU threads: {torch.get_num_threads()}, cores: {cores()}",
                f"results: {RESULTS.resolve()}",
            ]
        else:
            held = checkpoints.load(checkpoint / CHECKPOINT if checkpoint.is_dir() else checkpoint)
            lines = [
                f"{checkpoints.FORMAT}, version {checkpoints.VERSION}, step {held.step} of {held.config.steps}",
                json.dumps(held.config.to_dict()),
                *(f"{name}: {tuple(value.shape)} {value.dtype}" for name, value in held.model.items()),
            ]
        for line in lines:
            console.print(line, soft_wrap=True)


@app.command(help="The main job: train, judge beside classical optimisers and on measured data, and draw.")
def run(
    output: Annotated[Path, typer.Option(help="Folder for the report, the figure and the runs.")] = RESULTS,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=MOST_WORKERS, help="Processes that share the work.", show_default="one a core"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds of work, for a trial.")] = False,
) -> None:
    with command(output) as console:
        budget = Budget.quick() if quick else Budget()
        run_showcase(output, seed=seed, budget=budget, workers=workers or cores(), console=console)


@app.command(
    help="Say where one call runs and why, what it cannot avoid, and how near it comes to the machine's limit."
)
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
        Optional[str],  # noqa: UP045
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
    given = locals()
    values = {field.name: given[field.name] for field in dataclasses.fields(Call)}
    with command(*([trace] if trace else [])) as console:
        if virtual:
            _profile_virtually(Call(**values), _was_given(context, "batch"), trace, console)
            return
        _device(device)
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
    """chosen: whether the call's number of tasks is somebody's choice."""
    if trace is not None:
        raise ValueError("--trace: a virtual GPU keeps no time to trace")
    # Needs Triton, which the lab else does without.
    from memformer_lab.profiling.virtual import TASKS, profile_virtually
    from memformer_lab.profiling.virtual_view import print_virtual

    with memory_for(**{name: getattr(call, name) for name in SIZES}):
        found = profile_virtually(call if chosen else dataclasses.replace(call, batch=TASKS))
    print_virtual(found, console)


def _train(
    config: TrainingConfig,
    output: Path,
    resume: bool,
    checkpoint_every: int,
    device: torch.device,
    console: Console,
    write: Callable[[Record], None] | None,
    group: ProcessGroup | None,
) -> TrainingResult:
    with task_progress(console) as progress:
        bar = progress.add_task("training", total=config.steps * config.batch, note="")

        def show(record: Record) -> None:
            progress.update(bar, completed=record["step"] * config.batch, note=f"loss {record['loss']:.4g}")
            if write:
                write(record)

        if resume:
            return continue_training(
                output,
                steps=config.steps,
                checkpoint_every=checkpoint_every,
                device=device,
                on_record=show,
                group=group,
            )
        return train_anew(config, output, checkpoint_every=checkpoint_every, device=device, on_record=show, group=group)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        # Read back, which is what a device of shapes alone cannot do.
        torch.zeros(1, device=device, dtype=torch.float32).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"device {name!r} cannot be used: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    return device
