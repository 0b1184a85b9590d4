// What CUDA sources need to run on a CPU: a launch runs its blocks one after the other, and a block's threads as threads
// that meet at __syncthreads. Slow, and a GPU's memory model is not in it; what a kernel computes is.
#pragma once
#include <pthread.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline pthread_barrier_t cuda_barrier;
inline void __syncthreads() { pthread_barrier_wait(&cuda_barrier); }

namespace dpc {

struct BFloat16 {
  uint16_t bits;
};
typedef _Float16 Float16;
inline float widen(BFloat16 value) {
  uint32_t word = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &word, 4);
  return result;
}
inline float widen(Float16 value) { return float(value); }
inline void narrow(float value, BFloat16* to) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  to->bits = value != value ? uint16_t((word >> 16) | 0x40) : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}
inline void narrow(float value, Float16* to) { *to = Float16(value); }

template <class Body>
void launch(dim3 grid, dim3 block, Body body) {
  gridDim = grid, blockDim = block;
  const unsigned count = block.x * block.y * block.z;
  pthread_barrier_init(&cuda_barrier, nullptr, count);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < count; t++)
    threads.emplace_back([=] {
      threadIdx = {t % block.x, t / block.x % block.y, t / block.x / block.y};
      for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
          for (unsigned x = 0; x < grid.x; x++) {
            blockIdx = {x, y, z};
            body();
            __syncthreads();
          }
    });
  for (auto& thread : threads) thread.join();
  pthread_barrier_destroy(&cuda_barrier);
}

}  // namespace dpc
