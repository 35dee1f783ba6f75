from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from memformer_lab.solvers.published import RULES, PublishedRule, load_published, read_published

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
FILES: dict[str, PublishedRule] = {
    "linear_transformer": "linear", "cgd_scalar": "cgd", "lfom_hadamard_sum": "sum", "lfom_gdpp": "residual",
}  # fmt: skip


@pytest.mark.parametrize(("name", "rule"), FILES.items())
def test_loaded_modules_compute_what_the_published_code_did(name: str, rule: PublishedRule) -> None:
    path = GOLDEN / f"{name}.npz"
    model = load_published(read_published(path), rule)
    assert model.q.dtype == torch.float64
    with np.load(path, allow_pickle=False) as archive:
        z, expected = torch.from_numpy(archive["Z0"]), torch.from_numpy(archive["ZL"])
        target, loss = torch.from_numpy(archive["target"]), float(archive["loss"])
    with torch.no_grad():
        assert float((model(z) - expected).norm() / expected.norm()) < 1e-10
        assert float(model.loss(z, target[:, None])) == pytest.approx(loss, rel=1e-10)


def test_the_rules_differ() -> None:
    """Loading under a wrong rule is noticed by the numbers, so the test above can fail."""
    arrays = read_published(GOLDEN / "lfom_gdpp.npz")
    with np.load(GOLDEN / "lfom_gdpp.npz", allow_pickle=False) as archive:
        z, expected = torch.from_numpy(archive["Z0"]), torch.from_numpy(archive["ZL"])
    for rule in ("linear", "sum"):
        with torch.no_grad():
            assert float((load_published(arrays, rule)(z) - expected).norm() / expected.norm()) > 1e-3  # type: ignore[arg-type]


def test_safetensors_are_read_and_pickles_are_not(tmp_path: Path) -> None:
    arrays = read_published(GOLDEN / "cgd_scalar.npz")
    save_file(arrays, tmp_path / "model.safetensors")
    again = read_published(tmp_path / "model.safetensors")
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
    arrays = read_published(GOLDEN / "lfom_gdpp.npz")
    with pytest.raises(ValueError, match=f"rule must be one of {', '.join(RULES)}"):
        load_published(arrays, "adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rule 'cgd' needs allparam, alpha, gamma, got allparam"):
        load_published({"allparam": arrays["allparam"]}, "cgd")
    with pytest.raises(ValueError, match=r"allparam must be \(L, H, 2, d, d\)"):
        load_published({"allparam": torch.zeros(4, 1, 5, 5)}, "linear")
    with pytest.raises(ValueError, match="alpha must be"):
        load_published(arrays | {"alpha": torch.zeros(4, 1, 21, 5)}, "residual")
    with pytest.raises(ValueError, match=r"alpha must be \(4,\)"):
        load_published(arrays, "cgd")
