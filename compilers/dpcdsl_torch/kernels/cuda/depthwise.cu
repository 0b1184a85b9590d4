// Dilated depthwise convolution of maps whose channels lie side by side: forward, and both gradients.
//
// A thread has a few channels, as many as one access of 16 bytes moves where the strides allow it, and few positions of a
// row, which share what it reads of the weights. What several taps read comes from L1 and L2.
#include "device.cuh"

namespace dpc {

constexpr int kPositions = 4;  // of a thread, one after the other
constexpr int kLanesX = 32;    // threads of a block along channels, and along positions
constexpr int kLanesY = 4;

// y (+)= max(bias + sum of w_t x at (y + dy, x + dx), floor). The gradient of the input is the same of the gradient, with
// every tap on the other side. Grid: [positions / (kLanesY kPositions), channels / (kLanesX Count)].
template <class T, int Count>
__device__ inline void convolve(const Map& x, const Map& y, const TapList& taps, const float* weight, const float* bias,
                                float floor, bool add) {
  const int64_t c = int64_t(blockIdx.y * kLanesX + threadIdx.x) * Count;
  const unsigned first = (blockIdx.x * kLanesY + threadIdx.y) * kPositions, count = unsigned(positions(x));
  if (c >= x.c || first >= count) return;
  const T* from = static_cast<const T*>(x.data) + c;
  T* to = static_cast<T*>(y.data) + c;
  Place at[kPositions];
  float sum[kPositions][Count] = {};
#pragma unroll
  for (int p = 0; p < kPositions; p++) {
    at[p] = place(x, first + p < count ? first + p : count - 1);
    if (bias) load_vector<Count>(bias + c, sum[p]);
  }
  for (int t = 0; t < taps.count; t++) {
    const int dy = taps.dy[t], dx = taps.dx[t];
    float w[Count];
    load_vector<Count>(weight + t * x.c + c, w);
#pragma unroll
    for (int p = 0; p < kPositions; p++) {
      const int row = at[p].y + dy, column = at[p].x + dx;
      if (!is_inside(x, row, column)) continue;
      float value[Count];
      load<Count>(from + offset(x, at[p].n, row, column), value);
#pragma unroll
      for (int i = 0; i < Count; i++) sum[p][i] += w[i] * value[i];
    }
  }
#pragma unroll
  for (int p = 0; p < kPositions; p++) {
    if (first + p >= count) return;
    T* out = to + offset(y, at[p].n, at[p].y, at[p].x);
    float before[Count] = {};
    if (add) load<Count>(out, before);
#pragma unroll
    for (int i = 0; i < Count; i++) sum[p][i] = before[i] + clamp(sum[p][i], floor);
    store<Count>(sum[p], out);
  }
}

constexpr int kTogether = 9;  // taps whose sums a thread keeps at once
constexpr int kSumLanesY = 8;

// One block's share of the weight's gradient, sum of x (y + dy, x + dx) g, to partial[blockIdx.x]: [taps, c]. Blocks take
// `share` positions each, one after the other, and threads every kSumLanesY-th of them; whoever runs first, the sums are
// added in the same order. Grid: [positions / share, channels / (kLanesX Count)].
template <class T, int Count>
__device__ inline void sum_weight(const Map& g, const Map& x, const TapList& taps, int share, float* partial) {
  __shared__ float sums[kSumLanesY][kLanesX * Count];
  const int64_t c = int64_t(blockIdx.y * kLanesX + threadIdx.x) * Count;
  const unsigned begin = blockIdx.x * unsigned(share), count = unsigned(positions(x));
  const unsigned end = begin + unsigned(share) < count ? begin + unsigned(share) : count;
  const bool has_channels = c < x.c;
  float* to = partial + blockIdx.x * taps.count * x.c + c;
  for (int t = 0; t < taps.count; t += kTogether) {
    const int here = taps.count - t < kTogether ? taps.count - t : kTogether;
    float sum[kTogether][Count] = {};
    for (unsigned p = begin + threadIdx.y; has_channels && p < end; p += kSumLanesY) {
      const Place at = place(x, p);
      float gradient[Count];
      load<Count>(static_cast<const T*>(g.data) + offset(g, at.n, at.y, at.x) + c, gradient);
#pragma unroll
      for (int k = 0; k < kTogether; k++) {
        if (k >= here) break;
        const int row = at.y + taps.dy[t + k], column = at.x + taps.dx[t + k];
        if (!is_inside(x, row, column)) continue;
        float value[Count];
        load<Count>(static_cast<const T*>(x.data) + offset(x, at.n, row, column) + c, value);
#pragma unroll
        for (int i = 0; i < Count; i++) sum[k][i] += gradient[i] * value[i];
      }
    }
#pragma unroll
    for (int k = 0; k < kTogether; k++) {
      if (k >= here) break;
#pragma unroll
      for (int i = 0; i < Count; i++) sums[threadIdx.y][threadIdx.x * Count + i] = sum[k][i];
      __syncthreads();
      if (threadIdx.y == 0 && has_channels)
        for (int i = 0; i < Count; i++) {
          float total = 0;
          for (int lane = 0; lane < kSumLanesY; lane++) total += sums[lane][threadIdx.x * Count + i];
          to[(t + k) * x.c + i] = total;
        }
      __syncthreads();
    }
  }
}

}  // namespace dpc

using namespace dpc;

#define DPC_DEPTHWISE(Type, name, Count)                                                                            \
  extern "C" __global__ void __launch_bounds__(kLanesX* kLanesY) dpc_depthwise_##name##_##Count(                   \
      Map x, Map y, const __grid_constant__ TapList taps, const float* weight, const float* bias, float floor,      \
      int add) {                                                                                                    \
    convolve<Type, Count>(x, y, taps, weight, bias, floor, add != 0);                                               \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(kLanesX* kSumLanesY) dpc_depthwise_weight_##name##_##Count(         \
      Map g, Map x, const __grid_constant__ TapList taps, int share, float* partial) {                              \
    sum_weight<Type, Count>(g, x, taps, share, partial);                                                            \
  }

DPC_DEPTHWISE(float, fp32, 4)
DPC_DEPTHWISE(float, fp32, 1)
DPC_DEPTHWISE(BFloat16, bf16, 8)
DPC_DEPTHWISE(BFloat16, bf16, 1)
DPC_DEPTHWISE(Float16, fp16, 8)
DPC_DEPTHWISE(Float16, fp16, 1)

// total[i] = sum of partial[s][i] over `shares`, in their order. Grid: [values / block].
extern "C" __global__ void dpc_depthwise_weight_total(const float* partial, int shares, int64_t values, float* total) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= values) return;
  float sum = 0;
  for (int s = 0; s < shares; s++) sum += partial[s * values + i];
  total[i] = sum;
}
