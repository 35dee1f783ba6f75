"""The table's cells: every row under every column, and what a cell says where it is not a plain yes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.compatibility import concerns, ranks, training
from tests.compatibility.subjects import SUBJECTS, Subject

COLUMNS: dict[str, str] = {
    "compile": "`torch.compile(fullgraph=True)`: results and gradients are the eager ones",
    "compile of torch.func": "`torch.compile(fullgraph=True)` of `torch.func.grad` and `jvp`",
    "torch.func": "`functional_call` with `grad`, `vjp`, `jvp`, and `vmap(grad)` for gradients of every sample",
    "legacy vmap": "`torch.autograd.functional.jacobian(vectorize=True)`, `torch.autograd.grad(is_grads_batched=True)`",
    "autocast": "bfloat16 autocast: results within 5% of float32's, all gradients together within 10%",
    "checkpoint": "`torch.utils.checkpoint`, reentrant and not",
    "export": "`torch.export` with a dynamic number of samples",
    "fx": "`torch.fx.symbolic_trace`; functions that a program calls itself are wrapped by its `torch.fx.wrap`",
    "DDP": "`DistributedDataParallel` on two processes trains as one process on all data",
    "FSDP2": "`fully_shard` on two processes trains as one process on all data",
    "DTensor": "samples in shards, uneven where there is no `nn.Linear`: results and gradients of one process",
    "fork": "a child of a parent that used its threads, after `torch.set_num_threads(1)` as in torch's data loaders",
    "threads": "four Python threads at a time",
    "signals": "a handler's exception is raised within 2 s, and the next call is right",
}
ROWS = (*SUBJECTS, training.ROW)

_BY_SUBJECT: dict[str, Callable[[Subject], None]] = {
    "compile": concerns.compiled,
    "compile of torch.func": concerns.compiled_func,
    "torch.func": concerns.func,
    "legacy vmap": concerns.legacy_vmap,
    "autocast": concerns.autocast,
    "checkpoint": concerns.checkpointed,
    "export": concerns.exported,
    "fx": concerns.traced,
    "fork": concerns.forked,
    "threads": concerns.threaded,
    "signals": concerns.signalled,
}

ON_RANKS = tuple(ranks.CHECKS)
"""Columns whose checks two processes make together."""

SLOW = ("compile of torch.func",)
"""Columns that `make test` leaves to `make test-all`."""

NO_DERIVATIVE = "no derivative: a state holds copies that require no gradient"

NO_GRAPH = "in no graph: a compiled program breaks its graph there, and steps are taken as they are without a compiler"

NOTES: dict[tuple[str, str], str] = {
    **{
        (training.ROW, column): NO_DERIVATIVE
        for column in ("compile of torch.func", "torch.func", "legacy vmap", "checkpoint")
    },
    (training.ROW, "compile"): NO_GRAPH,
}
"""Cells that pass their check and say something else than yes."""

ERRORS: dict[tuple[str, str], str] = {
    (training.ROW, "export"): "train_steps: training writes to its state and is no program to export; export the model",
    (training.ROW, "fx"): "steps: expected an int, got Proxy(steps) (Proxy)",
    (training.ROW, "FSDP2"): "q: expected a whole tensor, as full_tensor() makes of a DTensor, got",
    (training.ROW, "DTensor"): "q: expected a whole tensor, as full_tensor() makes of a DTensor, got",
}
"""Cells that end in an error, and how its message begins."""


@dataclass(frozen=True)
class Cell:
    """What a row does under a column. note: what stands in the table in place of yes. error: how the check fails."""

    row: str
    column: str
    note: str | None
    error: str | None

    @property
    def id(self) -> str:
        return f"{self.column}-{self.row}"

    @property
    def check(self) -> Callable[[], None]:
        """The check, for columns that need no other process."""
        if self.row == training.ROW:
            return training.CHECKS[self.column]
        return partial(_BY_SUBJECT[self.column], SUBJECTS[self.row])


CELLS = [Cell(row, column, NOTES.get((row, column)), ERRORS.get((row, column))) for column in COLUMNS for row in ROWS]
