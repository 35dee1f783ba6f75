// A tile that is filled twice, from memory of any layout, for test_tiles.py.

#include "cuda/machine/stage.cuh"

using namespace memformer::cuda;

struct Tokens {
  char* data;
  int64_t stride[3];  // of tasks, rows and numbers, in bytes
  int64_t tasks;
};

__device__ void fill(Tile<DeviceBlock<warp_threads>>& tile, const Tokens& from, int width, float* to) {
  const auto& layout = tile.layout;
  const bool together = from.stride[2] == sizeof(float) && from.stride[1] == layout.row_bytes;
  TokenArray tokens{from.data, memformer::Storage::float32, sizeof(float), width, together, {}};
  for (int k = 0; k < 3; ++k) tokens.stride[k] = from.stride[k];
  const int tasks = static_cast<int>(from.tasks), lane = tile.block.lane(), numbers = layout.rows * width;
  tile.start(tokens, 0, tasks, 0, layout.rows);
  tile.wait();
  if (lane < tasks) {
    for (int k = 0; k < numbers; ++k) to[lane * numbers + k] = reinterpret_cast<const float*>(tile.task())[k];
  }
  tile.block.sync();
}

extern "C" __global__ void __launch_bounds__(warp_threads)
    fill_twice(const __grid_constant__ Tokens first, const __grid_constant__ Tokens second, TileLayout layout,
               int width, float* to_first, float* to_second) {
  const DeviceBlock<warp_threads> block{};
  Tile<DeviceBlock<warp_threads>> tile{block, layout, block.shared() + 128,
                                       reinterpret_cast<Arrivals*>(block.shared())};
  tile.make();
  block.sync();
  fill(tile, first, width, to_first);
  fill(tile, second, width, to_second);
}
