// What every CUDA kernel shares: numbers, vectors of channels, and the taps of a launch.
//
// The sources compile as C++ too, where a header of the tests says what blockIdx is (and __syncthreads): so what a kernel
// computes is tested on machines that have no GPU.
#pragma once
#include "taps.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace dpc {

#if defined(__CUDACC__)
typedef __nv_bfloat16 BFloat16;
typedef __half Float16;
__device__ inline float widen(BFloat16 value) { return __bfloat162float(value); }
__device__ inline float widen(Float16 value) { return __half2float(value); }
__device__ inline void narrow(float value, BFloat16* to) { *to = __float2bfloat16_rn(value); }
__device__ inline void narrow(float value, Float16* to) { *to = __float2half_rn(value); }
#endif
__device__ inline float widen(float value) { return value; }
__device__ inline void narrow(float value, float* to) { *to = value; }

// Elements that one access of 16 bytes moves.
template <class T>
constexpr int kAccess = 16 / int(sizeof(T));

template <class T, int Count>
struct alignas(sizeof(T) * Count) Pack {
  T value[Count];
};

template <int Count, class T>
__device__ inline void load(const T* from, float* to) {
  const Pack<T, Count> pack = *reinterpret_cast<const Pack<T, Count>*>(from);
#pragma unroll
  for (int i = 0; i < Count; i++) to[i] = widen(pack.value[i]);
}

// fp32, of which nothing says how it is aligned.
template <int Count>
__device__ inline void load_vector(const float* from, float* to) {
#pragma unroll
  for (int i = 0; i < Count; i++) to[i] = from[i];
}

template <int Count, class T>
__device__ inline void store(const float* from, T* to) {
  Pack<T, Count> pack;
#pragma unroll
  for (int i = 0; i < Count; i++) narrow(from[i], &pack.value[i]);
  *reinterpret_cast<Pack<T, Count>*>(to) = pack;
}

// max(value, floor) that keeps NaN. A floor of minus infinity is no ReLU.
__device__ inline float clamp(float value, float floor) { return value < floor ? floor : value; }

// Taps as an argument of a launch: every thread of a warp reads the same one, out of the constant bank.
constexpr int kMostTaps = 1024;
struct TapList {
  int32_t count;
  int32_t dy[kMostTaps], dx[kMostTaps];
};

struct Place {
  int n, y, x;
};

// Where position p of a map is. Launches have less than 2^31 positions.
__device__ inline Place place(const Map& map, unsigned p) {
  const unsigned w = unsigned(map.w), h = unsigned(map.h), row = p / w;
  return {int(row / h), int(row % h), int(p % w)};
}

__device__ inline bool is_inside(const Map& map, int y, int x) {
  return unsigned(y) < unsigned(map.h) && unsigned(x) < unsigned(map.w);
}

// How a block shares a map. Where threads do the same everywhere: kLanesX along channels, `Count` of them each, and
// kLanesY along positions, kPositions each, one after the other. Grid: [positions / (kLanesY kPositions),
// channels / (kLanesX Count)].
constexpr int kLanesX = 32;
constexpr int kLanesY = 4;
constexpr int kPositions = 4;

// Where they sum over positions: every block takes a range of `share`, and its threads every kSumLanesY-th position of it.
// Each block writes what it found; another kernel adds that up, in the order of the blocks. Whoever runs first, the sums
// come out the same. Grid: [positions / share, channels / (kLanesX Count)].
constexpr int kSumLanesY = 8;

struct Range {
  unsigned begin, end;
};
__device__ inline Range range(const Map& map, int share) {
  const unsigned count = unsigned(positions(map)), begin = blockIdx.x * unsigned(share);
  return {begin, count - begin < unsigned(share) ? count : begin + unsigned(share)};
}

// The first of a thread's channels.
template <int Count>
__device__ inline int64_t first_channel() {
  return int64_t(blockIdx.y * kLanesX + threadIdx.x) * Count;
}

// What a block's threads of the same channels have, added up in their order, for the first of them.
template <int Count>
__device__ inline void sum_lanes(float* value) {
  __shared__ float all[kSumLanesY][kLanesX * Count];
#pragma unroll
  for (int i = 0; i < Count; i++) all[threadIdx.y][threadIdx.x * Count + i] = value[i];
  __syncthreads();
  if (threadIdx.y == 0) {
#pragma unroll
    for (int i = 0; i < Count; i++) {
      float total = 0;
      for (int lane = 0; lane < kSumLanesY; lane++) total += all[lane][threadIdx.x * Count + i];
      value[i] = total;
    }
  }
  __syncthreads();
}

}  // namespace dpc

// DPC_EVERY_TYPE(MACRO): MACRO(type, name, channels of a thread) for the types of maps.
#define DPC_EVERY_TYPE(MACRO) \
  MACRO(float, fp32, 4)       \
  MACRO(float, fp32, 1)       \
  MACRO(BFloat16, bf16, 8)    \
  MACRO(BFloat16, bf16, 1)    \
  MACRO(Float16, fp16, 8)     \
  MACRO(Float16, fp16, 1)
#define DPC_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
