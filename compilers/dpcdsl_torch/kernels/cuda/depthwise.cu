// Dilated depthwise convolution of maps whose channels lie side by side: forward, and both gradients.
//
// A thread has a few channels, as many as one access of 16 bytes moves where the strides allow it, and few positions of a
// row, which share what it reads of the weights. What several taps read comes from L1 and L2.
#include "device.cuh"

namespace dpc {

// y (+)= max(bias + sum of w_t x at (y + dy, x + dx), floor). The gradient of the input is the same of the gradient, with
// every tap on the other side.
template <class T, int Count>
__device__ inline void convolve(const Map& x, const Map& y, const TapList& taps, const float* weight, const float* bias,
                                float floor, bool add) {
  const int64_t c = first_channel<Count>();
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

// One block's part of the weight's gradient, sum of x (y + dy, x + dx) g, to partial[blockIdx.x]: [taps, c].
template <class T, int Count>
__device__ inline void sum_weight(const Map& g, const Map& x, const TapList& taps, int share, float* partial) {
  const int64_t c = first_channel<Count>();
  const Range mine = range(x, share);
  const bool has_channels = c < x.c;
  float* to = partial + blockIdx.x * taps.count * x.c + c;
  for (int t = 0; t < taps.count; t += kTogether) {
    const int here = taps.count - t < kTogether ? taps.count - t : kTogether;
    float sum[kTogether][Count] = {};
    for (unsigned p = mine.begin + threadIdx.y; has_channels && p < mine.end; p += kSumLanesY) {
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
      sum_lanes<Count>(sum[k]);
      if (threadIdx.y == 0 && has_channels)
        for (int i = 0; i < Count; i++) to[(t + k) * x.c + i] = sum[k][i];
    }
  }
}

}  // namespace dpc

using namespace dpc;

#define DPC_DEPTHWISE(Type, name, Count)                                                                           \
  DPC_KERNEL(kLanesX* kLanesY)                                                                                     \
  dpc_depthwise_##name##_##Count(Map x, Map y, const __grid_constant__ TapList taps, const float* weight,          \
                                 const float* bias, float floor, int add) {                                        \
    convolve<Type, Count>(x, y, taps, weight, bias, floor, add != 0);                                              \
  }                                                                                                                \
  DPC_KERNEL(kLanesX* kSumLanesY)                                                                                  \
  dpc_depthwise_weight_##name##_##Count(Map g, Map x, const __grid_constant__ TapList taps, int share,             \
                                        float* partial) {                                                          \
    sum_weight<Type, Count>(g, x, taps, share, partial);                                                           \
  }

DPC_EVERY_TYPE(DPC_DEPTHWISE)
