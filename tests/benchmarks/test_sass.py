"""What cuobjdump prints of compiled code, as it is read."""

from collections import Counter

from benchmarks.gpu.sass import parse

PRINTED = """
Fatbin elf code:
================
arch = sm_90
Resource usage:
 Common:
  GLOBAL:0
 Function _Z1kPf:
  REG:40 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:544 TEXTURE:0 SURFACE:0 SAMPLER:0

\t\tFunction : _Z1kPf
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDS.128 R4, [R5] ;                         /* 0x0000000000057919 */
        /*0020*/               @P1 FFMA R3, R3, R4, R5 ;                      /* 0x000000ffff037224 */
        /*0030*/              @UP0 UBLKCP.S.G [UR4], [UR6], UR8 ;             /* 0x000000ffff037224 */
        /*0040*/                   FFMA.FTZ R3, R3, R4, R5 ;                  /* 0x000000ffff037224 */
        /*1050*/                   STL [R1], R4 ;                             /* 0x000000ffff037224 */
\t\t..........
"""


def test_printed_code_is_read() -> None:
    (code,) = parse(PRINTED)
    assert (code.name, code.architecture, code.registers, code.stack, code.shared) == ("_Z1kPf", "sm_90", 40, 16, 1024)
    assert code.instructions == Counter({"LDC": 1, "LDS.128": 1, "FFMA": 1, "FFMA.FTZ": 1, "UBLKCP.S.G": 1, "STL": 1})
    assert code.count("FFMA") == 2
    assert code.count("LDS", "STL", "UBLKCP") == 3
    assert code.count("LD") == 0
