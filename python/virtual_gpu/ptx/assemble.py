"""From a kernel in a source to the code of the machine."""

from virtual_gpu.ptx.assembler import Assembler, Globals
from virtual_gpu.ptx.code import Code
from virtual_gpu.ptx.flow import reconverge
from virtual_gpu.ptx.selection import select
from virtual_gpu.ptx.source import Function, Source


def assemble(source: Source, memory: Globals, entry: Function) -> Code:
    """Raises UnknownInstruction for what the machine cannot execute."""
    code = Assembler(source, memory, entry, select).code
    reconverge(code)
    return code
