"""Every private name of PyTorch that this package uses, each under a name that says what it answers.

Nothing private is used elsewhere. All are looked up when the package is imported, so that a PyTorch that has moved one
says so there, by name, and not in the middle of somebody's training.
"""

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _find(path: str) -> Any:
    """What a dotted path below torch names; ImportError, with the path, where this PyTorch has nothing there."""
    try:
        return reduce(getattr, path.split("."), torch)
    except AttributeError:
        raise ImportError(
            f"memformer_kernels needs torch.{path}, which torch {torch.__version__} does not have: "
            "install another torch, or a newer memformer_kernels"
        ) from None


_C = "_C."
_VF = "_VF."

# Autograd below the level of torch.autograd.Function, and the dispatcher.
if TYPE_CHECKING:
    from torch.autograd.function import _SingleLevelFunction

    class SingleLevelFunction(_SingleLevelFunction):
        """A torch.autograd.Function of one level."""

else:
    SingleLevelFunction = _find("autograd.function._SingleLevelFunction")
enable_single_level_function: Any = _find("_functorch.utils.enable_single_level_autograd_function")
any_requires_grad: Callable[..., bool] = _find(_C + "_any_requires_grad")
below_autograd: Callable[[], Any] = _find(_C + "_AutoDispatchBelowAutograd")
after_autograd: Any = _find(_C + "_after_autograd_keyset")
cuda_kernels: Any = _find(_C + "DispatchKeySet")(_find(_C + "DispatchKey.CUDA"))

# Forward-mode derivatives.
pushes_forward: Callable[[], bool] = _find(_C + "_is_fwd_grad_enabled")
set_pushes_forward: Callable[[bool], Any] = _find("autograd.forward_ad._set_fwd_grad_enabled")
make_dual: Callable[..., Tensor] = _find(_VF + "_make_dual")
unpack_dual: Callable[..., tuple[Tensor, Tensor | None]] = _find(_VF + "_unpack_dual")

# torch.func's transforms, and torch.autograd's own vmap.
is_transformed: Callable[[Tensor], bool] = _find(_C + "_functorch.is_functorch_wrapped_tensor")
is_batched_by_autograd: Callable[[Tensor], bool] = _find(_C + "_functorch.is_legacy_batchedtensor")
add_batch_axis: Callable[..., Tensor] = _find("_add_batch_dim")
remove_batch_axis: Callable[..., Tensor] = _find("_remove_batch_dim")
_enter_vmap: Callable[[], int] = _find(_C + "_vmapmode_increment_nesting")
_leave_vmap: Callable[[], int] = _find(_C + "_vmapmode_decrement_nesting")

# Whoever else listens to operations.
autocasts_somewhere: Callable[[], bool] = _find(_C + "_is_any_autocast_enabled")
dispatch_modes: Callable[[], int] = _find(_C + "_len_torch_dispatch_stack")
_function_modes: Callable[[], int] = _find(_C + "_len_torch_function_stack")
_transforms_active: Callable[[], bool] = _find(_C + "_are_functorch_transforms_active")
_is_tracing: Callable[[], bool] = _find(_C + "_is_tracing")
_profiles: Callable[[], bool] = _find(_C + "_autograd._profiler_enabled")
_FakeTensor: Any = _find("_subclasses.FakeTensor")

# Lists of tensors at once.
copy_all: Callable[..., None] = _find("_foreach_copy_")
scale_all: Callable[..., None] = _find("_foreach_mul_")

_find("autograd.forward_ad._current_level")  # read again by each question below


def transforming() -> bool:
    """Whether a transform of torch.func or forward-mode AD is active."""
    return _transforms_active() or forward_ad._current_level >= 0


def undisturbed() -> bool:
    """Whether nothing but autograd sees what this thread does with plain tensors. No compiler traces this."""
    return not (
        _transforms_active()
        or forward_ad._current_level >= 0
        or autocasts_somewhere()
        or dispatch_modes()
        or _function_modes()
        or _is_tracing()
        or _profiles()
    )


def autograd_vmap_level() -> int:
    """The innermost level of torch.autograd's own vmap."""
    level = _enter_vmap() - 1
    _leave_vmap()
    return level


def has_data(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers: one of shapes alone does not."""
    return not isinstance(tensor, _FakeTensor)


def schema_of(op: Any) -> Any:
    """What a registered operator takes and returns."""
    return op._schema


def argument_names(op: Any) -> tuple[str, ...]:
    """The names of a registered operator's arguments."""
    return tuple(argument.name for argument in schema_of(op).arguments)


def constant_under_compilers(function: _Function) -> _Function:
    """Makes a compiler that traces a call of the function take its answer as a constant.

    As torch.compiler.assume_constant_result does, which imports the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
