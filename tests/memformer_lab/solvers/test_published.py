"""The notebooks' layouts, against their forward passes written out here in plain torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from memformer_lab.solvers.published import LAYOUTS, PublishedRule, load_published, read_published

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
FILES: dict[str, PublishedRule] = {
    "linear_transformer": "linear", "cgd_scalar": "cgd", "lfom_hadamard_sum": "sum", "lfom_gdpp": "residual",
}  # fmt: skip
UNREAD = {"linear_transformer": ("alpha", "gamma"), "lfom_hadamard_sum": ("gamma",), "lfom_gdpp": ("gamma",)}
"""What the notebooks save beside what their forward pass reads."""

L, H, N, D = 3, 2, 7, 4


def golden(name: str) -> dict[str, Tensor]:
    arrays = read_published(GOLDEN / f"{name}.npz")
    return {key: value for key, value in arrays.items() if key not in UNREAD.get(name, ())}


def attention(p: Tensor, q: Tensor, z: Tensor) -> Tensor:
    """One head's attention with its n-by-n scores; the last token is never attended to."""
    wide = torch.nn.functional.pad
    corner = wide(p, (0, 1, 0, 1))
    corner[-1, -1] = 1
    scores = z @ wide(q, (0, 1, 0, 1)) @ z.transpose(1, 2)
    scores[:, :, -1] = 0
    return scores @ z @ corner.T / (z.shape[1] - 1)


def heads_sum(a: dict[str, Tensor], layer: int, z: Tensor) -> Tensor:
    return sum((attention(p, q, z) for p, q in a["allparam"][layer]), torch.zeros_like(z))


def linear(a: dict[str, Tensor], z: Tensor) -> Tensor:
    for layer in range(L):
        z = z + heads_sum(a, layer, z)
    return z


def decaying(a: dict[str, Tensor], z: Tensor) -> Tensor:
    """cgd and recursive: the memory is multiplied by gamma, number or Hadamard."""
    memory = torch.zeros_like(z)
    for layer in range(L):
        memory = memory * a["gamma"][layer] + heads_sum(a, layer, z)
        z = z + memory * (a["alpha"][layer] if "alpha" in a else 1)
    return z


def scaled(a: dict[str, Tensor], z: Tensor) -> Tensor:
    memory = torch.zeros_like(z)
    for layer in range(L):
        memory = memory * a["beta"][layer] + heads_sum(a, layer, z) * a["gamma"][layer]
        z = z + memory * a["alpha"][layer]
    return z


def weighted(a: dict[str, Tensor], z: Tensor) -> Tensor:
    memories: list[Tensor] = []
    for layer in range(L):
        memories.append(heads_sum(a, layer, z))
        z = z + sum(memory * weight for memory, weight in zip(memories, a["alpha"], strict=False))
    return z


def residual(a: dict[str, Tensor], z: Tensor) -> Tensor:
    memories: list[Tensor] = []
    for layer in range(L):
        new = heads_sum(a, layer, z)
        z = z + new + sum(memory * weight for memory, weight in zip(memories, a["alpha"], strict=False))
        memories.append(new)
    return z


def gated(a: dict[str, Tensor], z: Tensor) -> Tensor:
    memories: list[list[Tensor]] = [[] for _ in a["gate"]]
    for layer in range(L):
        moves = []
        for head, kept in enumerate(memories):
            p, q = a["allparam"][layer, head]
            new = attention(p, q, z)
            moves.append(new + sum(memory * a["gamma"][k, head] for k, memory in enumerate(kept)))
            kept.append(new)
        z = z + torch.einsum("h,hbnd->bnd", a["gate"], torch.stack(moves))
    return z


NOTEBOOKS: dict[str, tuple[PublishedRule, Callable[[dict[str, Tensor], Tensor], Tensor], dict[str, tuple[int, ...]]]]
NOTEBOOKS = {
    "linear": ("linear", linear, {}),
    "cgd": ("cgd", decaying, {"alpha": (L,), "gamma": (L,)}),
    "gamma alone": ("cgd", decaying, {"gamma": (L,)}),
    "alpha, beta and gamma": ("scaled_cgd", scaled, {"alpha": (L,), "beta": (L,), "gamma": (L,)}),
    "recursive": ("recursive", decaying, {"alpha": (L,), "gamma": (L, 1, N, D)}),
    "recursive, gamma alone": ("recursive", decaying, {"gamma": (L, 1, N, D)}),
    "sum": ("sum", weighted, {"alpha": (L, 1, N, D)}),
    "residual": ("residual", residual, {"alpha": (L, 1, N, D)}),
    "experts": ("experts", gated, {"gamma": (L, H, 1, N, D), "gate": (H,)}),
}


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters of a layout and tokens, float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"allparam": (L, H, 2, D - 1, D - 1), **shapes}
    arrays = {
        name: 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }
    z = torch.randn(5, N, D, generator=generator, dtype=torch.float64)
    z[:, -1, -1] = 0
    return arrays, z


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_every_layout_is_here() -> None:
    assert {rule for rule, _, _ in NOTEBOOKS.values()} == set(LAYOUTS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_loaded_module_computes_what_the_notebook_does(name: str) -> None:
    rule, forward, shapes = NOTEBOOKS[name]
    arrays, z = drawn(shapes)
    expected = forward(arrays, z)
    with torch.no_grad():
        model = load_published(arrays, rule)
        assert apart(model(z), expected) < 1e-12
        assert apart(model.predict(z)[:, 0], -expected[:, -1, -1]) < 1e-12


def test_alpha_beta_and_gamma_are_not_taken_for_another_model(tmp_path: Path) -> None:
    """Without its beta this layout has the names and shapes of cgd, and predicts something else."""
    arrays, z = drawn(NOTEBOOKS["alpha, beta and gamma"][2])
    np.savez(tmp_path / "model.npz", **{name: value.numpy() for name, value in arrays.items()})
    read = read_published(tmp_path / "model.npz")
    assert read.keys() == arrays.keys()
    with pytest.raises(ValueError, match="rule 'cgd' does not read beta"):
        load_published(read, "cgd")
    assert apart(decaying(arrays, z), scaled(arrays, z)) > 0.1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_a_rule_does_not_read_or_lacks_is_named(name: str) -> None:
    rule, _, shapes = NOTEBOOKS[name]
    arrays, _ = drawn(shapes)
    with pytest.raises(ValueError, match=rf"rule '{rule}' does not read bias, delta;"):
        load_published(arrays | {"bias": torch.zeros(1), "delta": torch.zeros(1)}, rule)
    for lacking in shapes:
        if lacking not in LAYOUTS[rule].optional:
            with pytest.raises(ValueError, match=rf"rule '{rule}' needs allparam.*: no {lacking}"):
                load_published({key: value for key, value in arrays.items() if key != lacking}, rule)
        with pytest.raises(ValueError, match=rf"{lacking} must be \(.*got \({L + 9},\)"):
            load_published(arrays | {lacking: torch.zeros(L + 9)}, rule)


def test_an_expert_alone_is_a_residual_model() -> None:
    arrays, z = drawn(NOTEBOOKS["experts"][2])
    one = {"allparam": arrays["allparam"][:, 1:], "alpha": arrays["gamma"][:, 1]}
    with torch.no_grad():
        assert apart(load_published(one, "residual")(z), residual(one, z)) < 1e-12
        alone = arrays | {"gate": torch.tensor([0.0, 1.0], dtype=torch.float64)}
        assert apart(load_published(alone, "experts")(z), residual(one, z)) < 1e-12


def test_a_head_with_prompts_of_its_own_is_a_scaled_cgd_model() -> None:
    """The notebooks of several heads at B = 9 and 30 give each head a share of the batch."""
    arrays, z = drawn({"alpha": (L, H), "beta": (L, H), "gamma": (L, H)})
    with pytest.raises(ValueError, match=r"alpha must be \(L,\) = \(3,\), got \(3, 2\)"):
        load_published(arrays, "scaled_cgd")
    head = {name: value[:, 1:] if name == "allparam" else value[:, 1] for name, value in arrays.items()}
    with torch.no_grad():
        assert apart(load_published(head, "scaled_cgd")(z), scaled(head, z)) < 1e-12


def test_constraints_that_a_notebook_sets_on_every_call() -> None:
    arrays, z = drawn(NOTEBOOKS["cgd"][2])
    matrices = arrays["allparam"].clone()
    matrices[:, :, 0] = 0
    for layer in range(L):
        for head in range(H):
            matrices[layer, head, 1] = torch.eye(D - 1, dtype=torch.float64) * matrices[layer, head, 1].diag().mean()
    expected = decaying(arrays | {"allparam": matrices}, z)
    with torch.no_grad():
        assert apart(load_published(arrays, "cgd", zero_p=True, identity_q=True)(z), expected) < 1e-12
        assert apart(load_published(arrays, "cgd")(z), expected) > 0.1


@pytest.mark.parametrize(("name", "rule"), FILES.items())
def test_loaded_modules_compute_what_the_published_code_did(name: str, rule: PublishedRule) -> None:
    model = load_published(golden(name), rule)
    assert model.q.dtype == torch.float64
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        z, expected = torch.from_numpy(archive["Z0"]), torch.from_numpy(archive["ZL"])
        target, loss = torch.from_numpy(archive["target"]), float(archive["loss"])
    with torch.no_grad():
        assert apart(model(z), expected) < 1e-10
        assert float(model.loss(z, target[:, None])) == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("name", UNREAD)
def test_what_the_notebooks_save_unread_is_refused(name: str) -> None:
    arrays = read_published(GOLDEN / f"{name}.npz")
    with pytest.raises(ValueError, match=f"does not read {', '.join(UNREAD[name])};"):
        load_published(arrays, FILES[name])


def test_the_rules_differ() -> None:
    """Loading under a wrong rule is noticed by the numbers, so the tests above can fail."""
    arrays = golden("lfom_gdpp")
    with np.load(GOLDEN / "lfom_gdpp.npz", allow_pickle=False) as archive:
        z, expected = torch.from_numpy(archive["Z0"]), torch.from_numpy(archive["ZL"])
    with torch.no_grad():
        assert apart(load_published({"allparam": arrays["allparam"]}, "linear")(z), expected) > 1e-3
        assert apart(load_published(arrays, "sum")(z), expected) > 1e-3


def test_safetensors_are_read_and_pickles_are_not(tmp_path: Path) -> None:
    arrays = golden("cgd_scalar")
    save_file(arrays, tmp_path / "model.safetensors")
    again = read_published(tmp_path / "model.safetensors")
    assert again.keys() == arrays.keys()
    assert all(torch.equal(again[name], arrays[name]) for name in arrays)
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected an .npz or .safetensors file, got '.pth'"):
        read_published(tmp_path / "model.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_published(tmp_path / "broken.safetensors")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="expected 'allparam'"):
        read_published(tmp_path / "other.npz")


def test_bad_arrays_are_refused() -> None:
    arrays = golden("lfom_gdpp")
    with pytest.raises(ValueError, match=re.escape(f"rule must be one of {', '.join(LAYOUTS)}")):
        load_published(arrays, "adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"allparam must be \(L, H, 2, d, d\)"):
        load_published({"allparam": torch.zeros(4, 1, 5, 5)}, "linear")
    with pytest.raises(ValueError, match=r"alpha must be \(L, 1, N, D\) = \(4, 1, 21, 6\), got \(4, 1, 21, 5\)"):
        load_published(arrays | {"alpha": torch.zeros(4, 1, 21, 5)}, "residual")
    with pytest.raises(ValueError, match=r"alpha must be \(L,\) = \(4,\)"):
        load_published(arrays | {"gamma": torch.zeros(4)}, "cgd")
