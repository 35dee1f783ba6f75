"""The package and its modules may be loaded again, as notebooks do."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

RUN = """
import importlib, sys, warnings
warnings.simplefilter("error", UserWarning)
import torch

z, q, target = torch.randn(3, 6, 4), -0.1 * torch.eye(3).expand(2, 1, 3, 3).clone(), torch.randn(3, 1)
k = torch.randn(2, 5, 2, 4)

def use():
    import memformer_kernels as package
    made = []
    for backend in ("auto", "torch"):
        leaf = q.clone().requires_grad_()
        loss = package.memformer_loss(z, target, leaf, backend=backend)
        made += [loss.detach(), *torch.autograd.grad(loss, leaf)]
        made.append(torch.func.grad(lambda q: package.memformer_loss(z, target, q, backend=backend))(q))
        made.append(torch.func.vmap(lambda z: package.memformer_stack(z[None], q, backend=backend))(z))
        with torch.autocast("cpu", torch.bfloat16):
            made.append(package.memformer_stack(z, q, backend=backend))
    made += [*package.memformer_layer(z, q[0]), package.context_gram(z), package.register_update(z, [z], z[:1, 0, 0])]
    made += [package.lfom_solve(q[0], z[:1, 0, :3], q[:, 0]), package.linear_attention(k, k, k, causal=True)]
    assert package.explain(z, q) == package.warmup(z, q)
    torch.manual_seed(0)
    model = package.nn.Memformer(3, 2)
    for backend in ("auto", "torch"):
        state = package.TrainState.of([model.stack_arguments()])
        sampler, optimizer = package.GaussianTokens(3, 8, 32), package.Adam(0.1)
        made.append(package.train_steps(state, sampler, 2, optimizer=optimizer, backend=backend))
    return made

def load(names):
    for name in names:
        importlib.reload(importlib.import_module(name))

import memformer_kernels
compiled = torch.compile(lambda z: memformer_kernels.memformer_stack(z, q), fullgraph=True, backend="aot_eager")
before, drawn = use(), compiled(z)
loss = memformer_kernels.memformer_loss(z, target, q.requires_grad_(), backend="torch")
q.requires_grad_(False)
modules = sys.argv[2:]

def same():
    for ours, theirs in zip(use(), before, strict=True):
        assert torch.equal(ours, theirs)

if sys.argv[1] == "each":
    for name in modules:
        load([name])
        try:
            same()
        except Exception as error:
            raise AssertionError(name) from error
        load(modules)  # a class that is loaded again is another class: the modules that hold it follow
elif sys.argv[1] == "all":
    load(modules)
else:
    for name in [name for name in sys.modules if name.split(".")[0] in ("memformer_kernels", "memformer_lab")]:
        del sys.modules[name]
same()
loss.backward()
assert torch.equal(compiled(z), drawn)
print("reloaded")
"""


def _modules(package: str) -> list[str]:
    """In an order that has every module after those that it imports, which is that of importing."""
    root = importlib.import_module(package)
    names = [package, *(info.name for info in pkgutil.walk_packages(root.__path__, f"{package}."))]
    for name in names:
        if not name.endswith(("__main__", ".kernels", ".tensorboard")) and ".kernels." not in name:
            importlib.import_module(name)
    return [name for name in sys.modules if name.split(".")[0] == package and ".kernels" not in name]


@pytest.mark.parametrize(
    ("package", "how"),
    [
        ("memformer_kernels", "all"),
        pytest.param("memformer_lab", "all", marks=pytest.mark.slow),
        pytest.param("memformer_kernels", "purge", marks=pytest.mark.slow),
        pytest.param("memformer_kernels", "each", marks=pytest.mark.slow),
    ],
)
def test_loading_again(package: str, how: str) -> None:
    names = [] if how == "purge" else _modules(package)
    command = [sys.executable, "-c", RUN, how, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "reloaded", done.stderr
