// The gradient of a 1x1 convolution's weight: the sum over positions of g (of the product) times what the product read.
//
// A block has 64 filters, kOuterColumns channels and a range of positions, and writes what it found; dpc_total adds that up, in
// the order of the blocks.
#include "matrix.cuh"

namespace dpc {

constexpr int kOuterColumns = 128;

// partial[blockIdx.x] [filters, channels] = sum over positions [share blockIdx.x, share) of g x', x' = max(scale x + shift,
// floor) if there is a scale. Grid: [positions / share, channels / kOuterColumns, filters / 64].
template <class T, Arithmetic how>
__device__ inline void multiply_outer(const Map& g, const Map& x, const float* scale, const float* shift, float floor,
                                      int share, bool aligned, float* partial) {
  constexpr int kCount = kAccess<T>, kDepth = kChunk<T>;
  constexpr int kPad = 8 * int(sizeof(T)), kStrideA = kRows * int(sizeof(T)) + kPad,
                kStrideB = kOuterColumns * int(sizeof(T)) + kPad, kStage = kDepth * (kStrideA + kStrideB);
  constexpr int kTiles = kOuterColumns / 8 / kWarps;
  unsigned char* stages = shared_memory();
  const Range mine = range(x, share);
  const int64_t first_filter = int64_t(blockIdx.z) * kRows, first_channel = int64_t(blockIdx.y) * kOuterColumns;

  // `Width` channels from `first` of a chunk's positions, 16 bytes after the other.
  const auto gather = [&](const Map& map, int64_t first, auto width, const float* scale, const float* shift,
                          unsigned begin, unsigned char* to, int stride) {
    constexpr int kWidth = decltype(width)::value, kPieces = kWidth / kCount;
#pragma unroll
    for (int item = threadIdx.x; item < kDepth * kPieces; item += kThreads) {
      const int row = item / kPieces, piece = item % kPieces;
      const int64_t c = first + piece * kCount, left = map.c - c;
      float value[kCount] = {};
      if (begin + row < mine.end && left > 0) {
        const Place at = place(map, begin + row);
        load_some<kCount>(static_cast<const T*>(map.data) + offset(map, at.n, at.y, at.x) + c, left, aligned, value);
        if (scale) {
          float factor[kCount], more[kCount];
          load_some_floats<kCount>(scale + c, left, aligned, factor);
          load_some_floats<kCount>(shift + c, left, aligned, more);
#pragma unroll
          for (int i = 0; i < kCount; i++) value[i] = clamp(factor[i] * value[i] + more[i], floor);
        }
      }
      store<kCount>(value, reinterpret_cast<T*>(to + row * stride + piece * 16));
    }
  };
  const auto fill = [&](unsigned char* stage, unsigned begin) {
    gather(g, first_filter, Whole<kRows>(), nullptr, nullptr, begin, stage, kStrideA);
    gather(x, first_channel, Whole<kOuterColumns>(), scale, shift, begin, stage + kDepth * kStrideA, kStrideB);
  };

  Sums<kTiles> sum = {};
  fill(stages, mine.begin);
  int which = 0;
  for (unsigned begin = mine.begin; begin < mine.end; begin += kDepth, which ^= 1) {
    const unsigned char* stage = stages + which * kStage;
    __syncthreads();  // this chunk is there, and nobody reads the one before any more
    if (begin + kDepth < mine.end) fill(stages + (which ^ 1) * kStage, begin + kDepth);
#pragma unroll
    for (int step = 0; step < kDepth; step += kStep / int(sizeof(T)))
      multiply_turned_step<T, how, kTiles>(
          stage + step * kStrideA, kStrideA,
          stage + kDepth * kStrideA + step * kStrideB + warp() * kTiles * 8 * int(sizeof(T)), kStrideB, sum);
  }
  float* to = partial + int64_t(blockIdx.x) * g.c * x.c;
#pragma unroll
  for (int i = 0; i < kRows / 16; i++)
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
      for (int d = 0; d < 4; d++) {
        const int64_t f = first_filter + 16 * i + lane() / 4 + d / 2 * 8;
        const int64_t c = first_channel + (warp() * kTiles + j) * 8 + 2 * (lane() % 4) + d % 2;
        if (f < g.c && c < x.c) to[f * x.c + c] = sum[i][j][d];
      }
}

}  // namespace dpc

using namespace dpc;

#define DPC_OUTER(Type, how, name)                                                                                  \
  extern "C" __global__ void __launch_bounds__(kThreads, 2)                                                         \
      dpc_outer_##name(Map g, Map x, const float* scale, const float* shift, float floor, int share, int aligned,   \
                       float* partial) {                                                                            \
    multiply_outer<Type, how>(g, x, scale, shift, floor, share, aligned != 0, partial);                             \
  }
DPC_OUTER(float, kFull, fp32)
DPC_OUTER(float, kTf32, tf32)
DPC_OUTER(BFloat16, kFull, bf16)
DPC_OUTER(Float16, kFull, fp16)
