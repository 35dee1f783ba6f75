"""Edits of PTX: only of the function that is named, and only where the pattern stands as often as said."""

import pytest

from tests.virtual_gpu.edits import edited, functions

TEXT = """
.func helper(.param .b32 a);
.visible .entry kernel()
{
\t.reg .b32 %r<3>;
\t{ .reg .b64 state; bar.sync \t0; }  // of all
\t.loc 1 2 3
\tadd.v2 \t{%r1, %r2}, 1;
}
.func helper(.param .b32 a)
{
bar.sync 0;
bar.sync 0;
}
"""


def test_one_function_is_edited() -> None:
    assert functions(TEXT) == ["helper", "kernel", "helper"]
    without = edited(TEXT, "kernel", r"bar\.sync 0; ", "")
    assert without.count("bar.sync 0;") == 2
    assert "{ .reg .b64 state; }\nadd.v2 {%r1, %r2}, 1;\n}" in without
    assert edited(TEXT, "helper", r"bar\.sync 0;\n", "", places=2).count("bar.sync 0;") == 1


def test_another_number_of_places_and_another_function_are_refused() -> None:
    with pytest.raises(AssertionError, match="stands at 2 places of helper, not at 1"):
        edited(TEXT, "helper", r"bar\.sync 0;\n", "")
    with pytest.raises(ValueError, match="no definition of other"):
        edited(TEXT, "other", "bar", "")
