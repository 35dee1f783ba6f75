"""How large a task each kind of kernel serves, for networks and for training. Who reads them: `plan` and `training`."""

LARGEST_TASK = 2**30
"""Most numbers N D of a task in the native libraries, which find them by 32-bit integers, and of a task that training
draws, whose stream has so many blocks. csrc/binding/sizes.h has the same limit."""

TINY_WIDTH = 16
"""Largest D of the tiny regimes, where a task's matrices fit in registers and cache; largest d where features stay."""

TINY_TOKENS = 128
"""Largest N of the tiny token regime: a task's tokens stay on chip for all layers."""

WIDE_WIDTH = 512
"""Largest D of the CPU's wide regimes, where features stay or are summed and vectors run along one task, which stays in
a core's caches together with a layer's parameters. Beyond, torch's products share such matrices among all cores."""

WIDE_MATRICES = 256
"""Largest D of the CPU's wide regime where D-by-D matrices of a task are multiplied, for one layer and for networks
whose features move: up to here those products were measured against torch's, and of several tasks are faster with what
surrounds them.
"""

WIDE_WEIGHTS = 256
"""Most weights of a quadratic in the CPU's wide regime: h is read once a task there, so that no Gram matrix hides what
products with larger matrices wait for."""

TINY_CONTEXT = 1024
"""Largest N of the tiny Gram regime on a GPU, where a thread or a small team sums a task's context alone: a longer one
would keep it busy while few tasks leave the rest of the GPU idle. The tile regime spreads a context over programs."""

TILE_WIDTH = 128
"""Largest side of a tile, which fits in shared memory: most features where they stay or are summed, largest D elsewhere
in the tile regime."""

LAYER_REGISTERS = 32
"""Most earlier registers of a layer in a GPU's tiny token regime, whose kernel gets their addresses as arguments."""

LONGEST_RAGGED = 2**24
"""Most tokens of a ragged task in the native libraries: a lane compares them with its length in float32, which is exact
so far."""

HEAD_WIDTH = 256
"""Widest head of the attention kernels: chunks fit in a GPU's shared memory, sums in a core's caches."""

WIDEST = TILE_WIDTH + 1
"""Largest D of the kernels for Gram matrices and for response-only networks in Gram space: the features are a tile, the
response is a vector."""

WIDEST_MATRICES = 64
"""Largest D of the kernels that run all layers on D-by-D matrices: above it those outgrow what a program keeps on chip,
and batched products through torch keep a GPU busier."""

LONGEST = 4096
"""Largest N of the kernels that run all layers on tokens: a program owns a whole task, and a longer one keeps a
multiprocessor waiting for it."""

TRAINED_SIDE = TINY_WIDTH
"""Largest side of the matrices of a model that the native library trains."""

TRAINED_FEATURES = 8
"""Most features of a model that the CUDA library trains: those of a task that one thread holds."""

LONGEST_STATISTICS = 2**24
"""Most examples of a task that the CUDA library draws as statistics: a thread adds up the exponents of half as many
uniforms in float32."""
