"""What a trained response-only network learned: its residual polynomial, and the plain function that it is."""

from memformer_lab.spectrum.explanation import Explanation, explain
from memformer_lab.spectrum.formula import numpy_source
from memformer_lab.spectrum.picture import draw

__all__ = ["Explanation", "draw", "explain", "numpy_source"]
