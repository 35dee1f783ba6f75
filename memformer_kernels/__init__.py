"""Fused kernels for Memformers: linear Transformers with memory registers that run learned first-order methods.

Start with `memformer_predict` and `memformer_loss` (whole networks on batches of small regression tasks),
`memformer_layer` (one layer for another model), `nn.Memformer` (a module) or `train_steps` (training);
`linear_attention`, `register_update`, `nn.MemformerAttention` and `nn.RegisterMemory` are for models of your own at any
width. The contract is the docstrings of `memformer_kernels.functional`; a call goes functional -> calls (check, plan,
remember) -> torch_ops (an operation that PyTorch knows) -> backends.
"""

from memformer_kernels import nn
from memformer_kernels.availability import build_info
from memformer_kernels.explain import explain, warmup
from memformer_kernels.functional import (
    AttentionState,
    attention_state,
    attention_step,
    context_gram,
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_prefix_loss,
    memformer_prefix_predict,
    memformer_stack,
    register_update,
)
from memformer_kernels.training import (
    SGD,
    Adam,
    AdamW,
    DrawnTasks,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    RankLost,
    Schedule,
    TrainingPlan,
    TrainState,
    explain_training,
    predict_split_context,
    train_steps,
)
from memformer_kernels.version import __version__

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AttentionState",
    "DrawnTasks",
    "FixedTasks",
    "GaussianStatistics",
    "GaussianTokens",
    "RankLost",
    "Schedule",
    "TrainState",
    "TrainingPlan",
    "__version__",
    "attention_state",
    "attention_step",
    "build_info",
    "context_gram",
    "explain",
    "explain_training",
    "lfom_solve",
    "linear_attention",
    "memformer_layer",
    "memformer_loss",
    "memformer_predict",
    "memformer_prefix_loss",
    "memformer_prefix_predict",
    "memformer_stack",
    "nn",
    "predict_split_context",
    "register_update",
    "train_steps",
    "warmup",
]
