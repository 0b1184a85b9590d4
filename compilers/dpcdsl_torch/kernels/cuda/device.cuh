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
__device__ inline unsigned char* shared_memory() {  // of a launch, as much as it asked for
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}
#endif
__device__ inline float widen(float value) { return value; }
__device__ inline void narrow(float value, float* to) { *to = value; }

// Elements that one access of 16 bytes moves.
template <class T>
constexpr int kAccess = 16 / int(sizeof(T));

template <class T, int Count>
struct alignas(sizeof(T) * Count < 16 ? sizeof(T) * Count : 16) Pack {
  T value[Count];
};

template <int Count, class T>
__device__ inline void load(const T* from, float* to) {
  const Pack<T, Count> pack = *reinterpret_cast<const Pack<T, Count>*>(from);
#pragma unroll
  for (int i = 0; i < Count; i++) to[i] = widen(pack.value[i]);
}

// fp32: an access of 16 bytes where there are as many, which must be aligned to it.
template <int Count>
__device__ inline void load_vector(const float* from, float* to) {
  constexpr int kEach = Count % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int i = 0; i < Count; i += kEach) load<kEach>(from + i, to + i);
}

template <int Count, class T>
__device__ inline void store(const float* from, T* to) {
  Pack<T, Count> pack;
#pragma unroll
  for (int i = 0; i < Count; i++) narrow(from[i], &pack.value[i]);
  *reinterpret_cast<Pack<T, Count>*>(to) = pack;
}

// The same of `left` values, 0 for the others; all at once where they are aligned, and then none is missing.
template <int Count, class T>
__device__ inline void load_some(const T* from, int64_t left, bool aligned, float* to) {
  if (aligned) {
    load<Count>(from, to);
  } else {
#pragma unroll
    for (int i = 0; i < Count; i++) to[i] = i < left ? widen(from[i]) : 0.0f;
  }
}

template <int Count>
__device__ inline void load_some_floats(const float* from, int64_t left, bool aligned, float* to) {
  if (aligned)
    load_vector<Count>(from, to);
  else
    load_some<Count>(from, left, false, to);
}

template <int Count, class T>
__device__ inline void store_some(const float* from, T* to, int64_t left, bool aligned) {
  if (aligned) {
    store<Count>(from, to);
  } else {
#pragma unroll
    for (int i = 0; i < Count; i++)
      if (i < left) narrow(from[i], to + i);
  }
}

// What a number is once it is stored.
template <class T>
__device__ inline float rounded(float value) {
  T stored;
  narrow(value, &stored);
  return widen(stored);
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

// Whether a tap reads anything anywhere on a map.
__device__ inline bool is_ever_inside(const Map& map, int dy, int dx) {
  return dy < map.h && -dy < map.h && dx < map.w && -dx < map.w;
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

template <class T, int Count>
__device__ inline void load_at(const Map& map, const Place& at, int64_t c, float* to) {
  load<Count>(static_cast<const T*>(map.data) + offset(map, at.n, at.y, at.x) + c, to);
}
template <class T, int Count>
__device__ inline void store_at(const float* from, const Map& map, const Place& at, int64_t c) {
  store<Count>(from, static_cast<T*>(map.data) + offset(map, at.n, at.y, at.x) + c);
}

// body(place) for each of a thread's positions, where threads do the same everywhere.
template <int kTogether = kPositions, class Body>
__device__ inline void each_position(const Map& map, Body body) {
  const unsigned first = (blockIdx.x * kLanesY + threadIdx.y) * kPositions, count = unsigned(positions(map));
#pragma unroll kTogether
  for (unsigned p = first; p < first + kPositions; p++)
    if (p < count) body(place(map, p));
}

// What a block's `Lanes` threads of the same channels have, added up in their order, for the first of them.
template <int Count, int Lanes = kSumLanesY>
__device__ inline void sum_lanes(float* value) {
  __shared__ float all[Lanes][kLanesX * Count];
#pragma unroll
  for (int i = 0; i < Count; i++) all[threadIdx.y][threadIdx.x * Count + i] = value[i];
  __syncthreads();
  if (threadIdx.y == 0) {
#pragma unroll
    for (int i = 0; i < Count; i++) {
      float total = 0;
      for (int lane = 0; lane < Lanes; lane++) total += all[lane][threadIdx.x * Count + i];
      value[i] = total;
    }
  }
  __syncthreads();
}

// What the first of a block's threads of the same channels has, for all of them.
template <int Count>
__device__ inline void share_first(const float* value, float* to) {
  __shared__ float first[kLanesX * Count];
  if (threadIdx.y == 0) {
#pragma unroll
    for (int i = 0; i < Count; i++) first[threadIdx.x * Count + i] = value[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Count; i++) to[i] = first[threadIdx.x * Count + i];
}

// A block's mean and sum of squared deviations by channel, from the sums `one` and `two` of what its `rows` positions are
// away from the pivot, and of the squares of that.
template <int Count>
__device__ inline void write_moments(const float* pivot, const float* one, const float* two, unsigned rows, int64_t at,
                                     double* mean, double* deviations) {
#pragma unroll
  for (int i = 0; i < Count; i++) {
    const double total = one[i], found = two[i] - total * total / rows;
    mean[at + i] = pivot[i] + total / rows;  // in fp32 it would lose what blocks differ by
    deviations[at + i] = found < 0 ? 0 : found;
  }
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
