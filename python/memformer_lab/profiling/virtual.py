"""One call's kernels on a virtual GPU, where no GPU is: what they do, and how long its model of time says they take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from memformer_kernels import explain
from memformer_lab.profiling.call import DTYPES, Call, action_of, make_arguments, network_of
from virtual_gpu import Device, Report
from virtual_gpu.build import BuildFailed
from virtual_gpu.hardware import H200, Gpu
from virtual_gpu.profile import Use, uses
from virtual_gpu.triton import driver_of

TASKS = 1024
"""Of a call whose number of tasks nobody chose: enough to fill one multiprocessor, and run in seconds where they are
small."""

CAPABILITY = 90
GPU = H200


@dataclass(frozen=True)
class VirtualProfile:
    """What was found.

    Attributes:
        call: what was profiled.
        algorithm: of the plan, as regime and reason are.
        floor: bytes that one task must move.
        uses: the kernels.
        reports: what the virtual GPU's checks found wrong, nothing as a rule.
        gpu: what was modelled.
    """

    call: Call
    algorithm: str
    regime: str
    reason: str
    floor: int
    uses: tuple[Use, ...]
    reports: tuple[Report, ...]
    gpu: Gpu = GPU

    def predicted_ns(self, use: Use) -> float:
        """Nanoseconds of one task in one kernel, on a GPU each of whose multiprocessors gets as many tasks."""
        return 1e9 * use.prediction.seconds / (self.call.batch * self.gpu.multiprocessors)


def profile_virtually(call: Call) -> VirtualProfile:
    """Makes a call once on a virtual H200 of one multiprocessor, by the Triton backend.

    Raises:
        ValueError: a call that the virtual GPU does not serve, or a virtual GPU that cannot be built or used here.
    """
    if call.backend not in ("auto", "triton"):
        raise ValueError(
            f"a virtual GPU runs the backend triton here, not {call.backend}; that of CUDA is linked again in the "
            "source tree alone (python -m benchmarks virtual)"
        )
    if call.device != "cpu":
        raise ValueError(f"a virtual GPU takes tensors of the CPU, not of {call.device}")
    call = replace(call, backend="triton")
    try:
        device = Device(CAPABILITY, multiprocessors=1)
        device.traced_block = 0
        model, z, target = make_arguments(call, torch.device("cpu"))
        action = action_of(call, model, z, target)
        with driver_of(device) as driver:
            tensors = (z, target) if call.training else (z,)
            chosen = {"context": call.n, "backend": call.backend, "algorithm": call.algorithm}
            plan = explain(*tensors, **model.stack_arguments(), **chosen)
            action()
        found = tuple(uses(driver.launches, GPU))
    except (RuntimeError, BuildFailed) as error:
        raise ValueError(f"on a virtual GPU: {error}") from error
    network = network_of(call, model, plan.algorithm == "token")
    floor = network.bytes_per_task(DTYPES[call.dtype].itemsize, call.training)
    reports = tuple(device.take_reports())
    return VirtualProfile(call, plan.algorithm, plan.regime, plan.reason, floor, found, reports)
