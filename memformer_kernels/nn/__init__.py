"""Modules over the public functions: whole Memformers by the name of their rule, and parts for other models."""

from memformer_kernels.nn.attention import FEATURE_MAPS, MemformerAttention
from memformer_kernels.nn.layer import MemformerLayer
from memformer_kernels.nn.memformer import RULES, Memformer, StackArguments
from memformer_kernels.nn.memory import MEMORIES, LayerMemory, RegisterMemory
from memformer_kernels.nn.parameters import GRANULARITIES, STRUCTURES

__all__ = [
    "FEATURE_MAPS",
    "GRANULARITIES",
    "MEMORIES",
    "RULES",
    "STRUCTURES",
    "LayerMemory",
    "Memformer",
    "MemformerAttention",
    "MemformerLayer",
    "RegisterMemory",
    "StackArguments",
]
