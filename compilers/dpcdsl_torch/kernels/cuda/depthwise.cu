// Dilated depthwise convolution of maps whose channels lie side by side: forward, and both gradients.
//
// A thread has a few channels, as many as one access of 16 bytes moves where the strides allow it, and few positions of a
// row, which share what it reads of the weights. What several taps read comes from L1 and L2.
#include "device.cuh"

namespace dpc {

// y (+)= max(bias + sum of w_t x at (y + dy, x + dx), floor). The gradient of the input is the same of the gradient, with
// every tap on the other side. With moments, those of a block's positions as find_moments of normalise.cu has them.
// Grid: [positions / share, channels / (kLanesX Count)].
template <class T, int Count, bool has_moments>
__device__ inline void convolve(const Map& x, const Map& y, const TapList& taps, const float* weight, const float* bias,
                                float floor, bool add, int share, double* mean, double* deviations) {
  const int64_t c = first_channel<Count>();
  const Range mine = range(x, share);
  const bool has_channels = c < x.c;
  const T* from = static_cast<const T*>(x.data) + c;
  T* to = static_cast<T*>(y.data) + c;
  float pivot[Count] = {}, one[Count] = {}, two[Count] = {};
  for (unsigned begin = mine.begin; begin < mine.end; begin += kLanesY * kPositions) {
    const unsigned first = begin + threadIdx.y * kPositions;
    Place at[kPositions];
    float sum[kPositions][Count] = {};
    if (has_channels && first < mine.end) {
#pragma unroll
      for (int p = 0; p < kPositions; p++) {
        at[p] = place(x, first + p < mine.end ? first + p : mine.end - 1);
        if (bias) load_vector<Count>(bias + c, sum[p]);
      }
      for (int t = 0; t < taps.count; t++) {
        const int dy = taps.dy[t], dx = taps.dx[t];
        if (!is_ever_inside(x, dy, dx)) continue;
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
        if (first + p >= mine.end) continue;
        T* out = to + offset(y, at[p].n, at[p].y, at[p].x);
        float before[Count] = {};
        if (add) load<Count>(out, before);
#pragma unroll
        for (int i = 0; i < Count; i++) sum[p][i] = rounded<T>(before[i] + (has_moments ? sum[p][i] : clamp(sum[p][i], floor)));
        store<Count>(sum[p], out);
      }
    }
    if constexpr (has_moments) {
      if (begin == mine.begin) share_first<Count>(sum[0], pivot);
#pragma unroll
      for (int p = 0; p < kPositions; p++)
#pragma unroll
        for (int i = 0; i < Count; i++) {
          const float away = first + p < mine.end ? sum[p][i] - pivot[i] : 0.0f;
          one[i] += away;
          two[i] += away * away;
        }
    } else {
      break;  // it has as many as its threads take at once
    }
  }
  if constexpr (has_moments) {
    sum_lanes<Count, kLanesY>(one);
    sum_lanes<Count, kLanesY>(two);
    if (threadIdx.y == 0 && has_channels)
      write_moments<Count>(pivot, one, two, mine.end - mine.begin, blockIdx.x * x.c + c, mean, deviations);
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
      load_at<T, Count>(g, at, c, gradient);
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
    constexpr int kShare = kLanesY * kPositions;                                                                   \
    convolve<Type, Count, false>(x, y, taps, weight, bias, floor, add != 0, kShare, nullptr, nullptr);             \
  }                                                                                                                \
  DPC_KERNEL(kLanesX* kLanesY)                                                                                     \
  dpc_depthwise_moments_##name##_##Count(Map x, Map y, const __grid_constant__ TapList taps, const float* weight,  \
                                         int share, double* mean, double* deviations) {                            \
    convolve<Type, Count, true>(x, y, taps, weight, nullptr, 0, false, share, mean, deviations);            \
  }                                                                                                                \
  DPC_KERNEL(kLanesX* kSumLanesY)                                                                                  \
  dpc_depthwise_weight_##name##_##Count(Map g, Map x, const __grid_constant__ TapList taps, int share,             \
                                        float* partial) {                                                          \
    sum_weight<Type, Count>(g, x, taps, share, partial);                                                           \
  }

DPC_EVERY_TYPE(DPC_DEPTHWISE)
