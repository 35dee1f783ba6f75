"""What the CUDA compiler made: registers, memory and instructions of every kernel in an object, for every architecture.

Read with cuobjdump, from the CUDA toolkit or the copy that comes with Triton. Instructions are counted in the code, not
as they are executed: a loop's body counts once.
"""

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

DOUBLE = frozenset({"DFMA", "DADD", "DMUL", "DSETP", "DMNMX"})
DIVISION = frozenset({"MUFU.RCP", "MUFU.RCP64H", "MUFU.RSQ", "MUFU.SQRT"})
LOCAL = frozenset({"LDL", "STL"})


@dataclass(frozen=True)
class Code:
    """One kernel for one architecture. stack: bytes of local memory a thread; shared: bytes known when compiling.

    instructions: how often each stands in the code, by its whole name ("LDS.128"), predicates and operands left out.
    """

    name: str
    architecture: str
    registers: int
    stack: int
    shared: int
    instructions: Counter[str] = field(default_factory=Counter, hash=False)

    def count(self, *operations: str) -> int:
        """Instructions of these operations, whatever follows: "LDS" counts "LDS.128" too."""
        wanted = tuple(f"{operation}." for operation in operations)
        return sum(n for name, n in self.instructions.items() if name in operations or name.startswith(wanted))


def find_cuobjdump() -> str | None:
    """The toolkit's, else Triton's; None without either."""
    found = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    if found:
        return found
    spec = importlib.util.find_spec("triton")
    folders = spec.submodule_search_locations if spec else None
    tool = Path(folders[0], "backends", "nvidia", "bin", "cuobjdump") if folders else None
    return str(tool) if tool is not None and tool.is_file() else None


def read_code(path: Path, architecture: str | None = None) -> list[Code]:
    """The kernels in an object, a library or a cubin; of one architecture ("sm_90") or of all.

    Raises:
        RuntimeError: there is no cuobjdump, or it cannot read the file.
    """
    tool = find_cuobjdump()
    if tool is None:
        raise RuntimeError("no cuobjdump here: it comes with the CUDA toolkit and with Triton")
    chosen = ["-arch", architecture] if architecture else []
    text = _run(tool, "-res-usage", "-sass", *chosen, str(path))
    return parse(text)


def parse(text: str) -> list[Code]:
    """The kernels in what `cuobjdump -res-usage -sass` prints."""
    made = []
    for part in re.split(r"^Fatbin elf code:$", text, flags=re.MULTILINE):
        used = {
            name: {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", figures)}
            for name, figures in re.findall(r"^ Function (\S+):\n\s*(.*)$", part, flags=re.MULTILINE)
        }
        for body in re.split(r"^\s*Function : ", part, flags=re.MULTILINE)[1:]:
            name = body.split("\n", 1)[0].strip()
            found = re.search(r"EF_CUDA_SM(\d+)", body)
            figures = used.get(name, {})
            made.append(
                Code(
                    name=name,
                    architecture=f"sm_{found[1]}" if found else "",
                    registers=figures.get("REG", 0),
                    stack=figures.get("STACK", 0),
                    shared=figures.get("SHARED", 0),
                    instructions=Counter(
                        re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+ )?([A-Z][A-Z0-9_.]*)", body)
                    ),
                )
            )
    return made


def demangled(names: list[str]) -> list[str]:
    """C++ names as they are written, where there is a c++filt, else as they are."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    return _run(tool, *names).splitlines()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()}")
    return done.stdout
