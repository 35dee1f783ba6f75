"""The `memformer-lab` command: train, evaluate, explain, info, run, profile, reproduce and solve."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import torch
import typer
from rich.console import Console
from torch.distributed import ProcessGroup

from memformer_kernels import __version__, build_info
from memformer_lab.experiments.command import HELP as REPRODUCE
from memformer_lab.experiments.command import reproduce
from memformer_lab.experiments.contests import Budget
from memformer_lab.experiments.showcase import run_showcase
from memformer_lab.profiling.command import HELP as PROFILE
from memformer_lab.profiling.command import profile
from memformer_lab.reports.drawing import draw_comparison
from memformer_lab.reports.pictures import format_of
from memformer_lab.reports.results import plain
from memformer_lab.reports.tables import estimate_table, score_table
from memformer_lab.reports.terminal import (
    MOST_WORKERS,
    command,
    cores,
    memory_for,
    standard_streams,
    task_progress,
    usable_device,
    was_given,
)
from memformer_lab.runs import checkpoint as checkpoints
from memformer_lab.runs.config import PRESETS, TrainingConfig
from memformer_lab.runs.files import keep_earlier, write_atomically
from memformer_lab.runs.metrics import tensorboard_log
from memformer_lab.runs.models import evaluate as judge
from memformer_lab.runs.models import load_model
from memformer_lab.runs.parallel import is_writer, process_group
from memformer_lab.runs.trainer import Record, fault
from memformer_lab.runs.training import CHECKPOINT, METRICS, TrainingResult, continue_training
from memformer_lab.runs.training import train as train_run
from memformer_lab.spectrum.command import HELP as EXPLAIN
from memformer_lab.spectrum.command import explain

RESULTS = Path("results")
"""Where commands write unless told otherwise, below the current folder."""

TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's logs, below that of a run."""

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Train Memformers on random regression tasks, judge them, reproduce experiments, and solve tables of "
    "your own.",
)
# Help is given in words and never left to docstrings, which `python -OO` takes away.
app.command(help=REPRODUCE)(reproduce)

_RUN = TrainingConfig()
_FIELDS = tuple(field.name for field in dataclasses.fields(TrainingConfig))


def main() -> None:
    """Entry point of `memformer-lab`. Exit codes: 0, 1 for a run that diverged, 2 for bad input."""
    with standard_streams():
        app()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"memformer-lab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


@app.command(
    help="Predict one column from the others: Memformer compared with OLS and ridge on held-out rows.",
    epilog="Want it to "
    "see what a learned optimiser makes of a table: there is nothing to fit or tune, and with 2 to 64 rows a column "
    "and some noise it is about as good as ridge. OLS and ridge are better where columns outnumber half the rows, and "
    "where responses have little noise; the output says so.",
)
def solve(
    table: Annotated[Path, typer.Argument(help="A CSV file with a header line.")],
    target: Annotated[str, typer.Option(help="Column to predict.")],
    figure: Annotated[Path, typer.Option(help="Where the plot goes: .png, .svg or .pdf.")] = Path(
        "results", "solve.png"
    ),
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds.")] = 0,
    sep: Annotated[
        Optional[str],  # noqa: UP045, typer before 0.13 cannot read the other spelling
        typer.Option(help="What separates the columns; tab for a tab.", show_default="found out"),
    ] = None,
    decimal: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The decimal sign, . or a comma.", show_default="found out"),
    ] = None,
    encoding: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The file's encoding, e.g. cp1252.", show_default="found out"),
    ] = None,
) -> None:
    with command(figure) as console:
        # Imported at use: pandas and scikit-learn take seconds.
        from memformer_lab.solvers.comparison import advice, compare
        from memformer_lab.tasks.table import read_table

        form = format_of(figure)
        separator = {"tab": "\t", "\\t": "\t"}.get(sep, sep) if sep is not None else None
        problem = read_table(table, target, folds, separator=separator, decimal=decimal, encoding=encoding)
        comparison = compare(problem, folds, seed)
        # In a line of its own: a table would fold it, and a column's name with it, to its own width.
        title = f"{target} from {len(problem.features)} columns, {len(problem.y)} rows, {folds}-fold cross-validation"
        kept = None
        try:
            kept = keep_earlier(figure)
            write_atomically(figure, draw_comparison(problem, comparison, form))
        finally:
            console.print(title, soft_wrap=True)
            console.print(score_table(comparison))
            for name, score in comparison.items():
                if score.failure:
                    console.print(f"{name} failed: {score.failure}", soft_wrap=True)
            for line in advice(problem, comparison, folds):
                console.print(line, soft_wrap=True)
        console.print(f"Wrote {figure}{f'; the earlier one is {kept}' if kept else ''}", soft_wrap=True)


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
    preconditioner: Annotated[str, typer.Option(help="free; scalar: A is a number a layer.")] = _RUN.preconditioner,
    tied: Annotated[bool, typer.Option("--tied", help="All layers share their matrices.")] = _RUN.tied,
    tasks: Annotated[str, typer.Option(help=f"{', '.join(PRESETS[:-1])} or {PRESETS[-1]}.")] = _RUN.tasks,
    scales: Annotated[
        str, typer.Option(help="Of tasks gaussian: d standard deviations, with commas.", show_default="all 1")
    ] = "",
    prior: Annotated[str, typer.Option(help="Of tasks gaussian: isotropic or inverse.")] = _RUN.prior,
    noise: Annotated[float, typer.Option(help="Standard deviation of the responses' noise.")] = _RUN.noise,
    rotation_seed: Annotated[int, typer.Option(help="Seed of the tasks' rotation.")] = _RUN.rotation_seed,
    queries: Annotated[int, typer.Option(help="Queries a task, where they are drawn.")] = _RUN.queries,
    batch: Annotated[int, typer.Option(help="Tasks a step.")] = _RUN.batch,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = _RUN.steps,
    resample: Annotated[int, typer.Option(help="Steps that a batch is kept for.")] = _RUN.resample,
    optimizer: Annotated[str, typer.Option(help="adam or sgd.")] = _RUN.optimizer,
    learning_rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="At the schedule's peak.", show_default="0.1; 0.03 for block, 0.01 for dense structure"),
    ] = None,
    betas: Annotated[tuple[float, float], typer.Option(help="Adam's decay rates.")] = _RUN.betas,
    momentum: Annotated[float, typer.Option(help="SGD's.")] = _RUN.momentum,
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
        place, exists = usable_device(device), (output / CHECKPOINT).exists()
        if resume:
            given = [name for name in _FIELDS if was_given(context, name) and name != "steps"]
            if given or overwrite:
                names = ", ".join(f"--{name.replace('_', '-')}" for name in given or ["overwrite"])
                raise ValueError(f"{names} cannot go with --resume, which takes the run from its checkpoint")
            config = checkpoints.load(output / CHECKPOINT).config
            if was_given(context, "steps"):
                config = dataclasses.replace(config, steps=steps)
        else:
            if exists and not overwrite and writes:
                raise ValueError(f"{output} holds a run: give --resume, --overwrite or another --output")
            values = {name: context.params[name] for name in _FIELDS}
            config = TrainingConfig(**{**values, "clip": clip or None, "scales": _numbers("scales", scales)})
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    with command() as console:
        model, config = load_model(checkpoint / CHECKPOINT if checkpoint.is_dir() else checkpoint)
        with memory_for(tasks=tasks):
            estimates = judge(model, config, tasks=tasks, seed=seed, layers=layers)
        rows = range(1, config.layers + 1) if layers else [config.layers]
        if as_json:
            console.print(json.dumps(plain([dataclasses.asdict(one) for one in estimates])), soft_wrap=True)
            return
        title = (
            f"{config.rule}, {config.structure}, {config.layers} layers on {config.tasks} tasks, d={config.d}, "
            f"n={config.n}"
        )
        console.print(estimate_table(title, dict(zip(map(str, rows), estimates, strict=True))))


app.command(help=EXPLAIN)(explain)


@app.command(help="Print versions, backends and where results go; or what a checkpoint holds.")
def info(
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="A checkpoint file, or the folder of a run.", show_default="none"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    with command() as console:
        told, lines = _about(checkpoint)
        for line in [json.dumps(told)] if as_json else lines:
            console.print(line, soft_wrap=True)


@app.command(help="The main job: train, compare with classical optimisers, judge on measured data, and draw.")
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


app.command(help=PROFILE)(profile)


def _about(checkpoint: Path | None) -> tuple[dict[str, Any], list[str]]:
    """What `info` tells, as plain values and as lines."""
    if checkpoint is None:
        build, threads, results = build_info(), torch.get_num_threads(), str(RESULTS.resolve())
        told = {"build": plain(dataclasses.asdict(build)), "threads": threads, "cores": cores(), "results": results}
        return told, [str(build), f"CPU threads: {threads}, cores: {cores()}", f"results: {results}"]
    held = checkpoints.load(checkpoint / CHECKPOINT if checkpoint.is_dir() else checkpoint)
    config = held.config.to_dict()
    told = {
        "format": checkpoints.FORMAT,
        "version": checkpoints.VERSION,
        "step": held.step,
        "config": config,
        "model": {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in held.model.items()},
    }
    return told, [
        f"{checkpoints.FORMAT}, version {checkpoints.VERSION}, step {held.step} of {held.config.steps}",
        json.dumps(config),
        *(f"{name}: {tuple(x.shape)} {x.dtype}" for name, x in held.model.items()),
    ]


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise ValueError(f"{name} must be numbers with commas between them, got {text!r}") from None


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
        return train_run(config, output, checkpoint_every=checkpoint_every, device=device, on_record=show, group=group)
