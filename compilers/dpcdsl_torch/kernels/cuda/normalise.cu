// The passes of a batch normalisation: the moments of a map, y = scale x + shift and its ReLU, and what the gradient needs.
#include "device.cuh"

namespace dpc {

// One block's mean and sum of squared deviations by channel, to mean[blockIdx.x] and deviations[blockIdx.x]: [c].
// Deviations are taken from the block's first value: of numbers near each other, nothing cancels.
template <class T, int Count>
__device__ inline void find_moments(const Map& x, int share, double* mean, double* deviations) {
  const int64_t c = first_channel<Count>();
  const Range mine = range(x, share);
  const bool has_channels = c < x.c;
  const T* from = static_cast<const T*>(x.data) + c;
  float pivot[Count] = {}, sum[Count] = {}, squares[Count] = {};
  if (has_channels) {
    const Place at = place(x, mine.begin);
    load<Count>(from + offset(x, at.n, at.y, at.x), pivot);
  }
  for (unsigned p = mine.begin + threadIdx.y; has_channels && p < mine.end; p += kSumLanesY) {
    const Place at = place(x, p);
    float value[Count];
    load<Count>(from + offset(x, at.n, at.y, at.x), value);
#pragma unroll
    for (int i = 0; i < Count; i++) {
      const float away = value[i] - pivot[i];
      sum[i] += away;
      squares[i] += away * away;
    }
  }
  sum_lanes<Count>(sum);
  sum_lanes<Count>(squares);
  if (threadIdx.y > 0 || !has_channels) return;
  const double count = mine.end - mine.begin;
  for (int i = 0; i < Count; i++) {
    const int64_t at = blockIdx.x * x.c + c + i;
    const double total = sum[i], found = squares[i] - total * total / count;
    mean[at] = pivot[i] + total / count;  // in fp32 it would lose what blocks differ by
    deviations[at] = found < 0 ? 0 : found;
  }
}

// y = max(scale x + shift, floor).
template <class T, int Count>
__device__ inline void normalise(const Map& x, const float* scale, const float* shift, float floor, const Map& y) {
  const int64_t c = first_channel<Count>();
  if (c >= x.c) return;
  float factor[Count], more[Count];
  load_vector<Count>(scale + c, factor);
  load_vector<Count>(shift + c, more);
  const unsigned first = (blockIdx.x * kLanesY + threadIdx.y) * kPositions, count = unsigned(positions(x));
#pragma unroll
  for (unsigned p = first; p < first + kPositions; p++) {
    if (p >= count) return;
    const Place at = place(x, p);
    float value[Count];
    load<Count>(static_cast<const T*>(x.data) + offset(x, at.n, at.y, at.x) + c, value);
#pragma unroll
    for (int i = 0; i < Count; i++) value[i] = clamp(factor[i] * value[i] + more[i], floor);
    store<Count>(value, static_cast<T*>(y.data) + offset(y, at.n, at.y, at.x) + c);
  }
}

// One block's sums by channel of g and of g (x - mean) inverse, to partial[blockIdx.x]: [2, c]. g is the sum of one or two
// gradients (`two` has no data if there is one) where y = scale x + shift is above the floor.
template <class T, int Count>
__device__ inline void sum_gradients(const Map& one, const Map& two, const Map& x, const float* scale,
                                     const float* shift, float floor, const float* mean, const float* inverse, int share,
                                     float* partial) {
  const int64_t c = first_channel<Count>();
  const Range mine = range(x, share);
  const bool has_channels = c < x.c;
  float plain[Count] = {}, with[Count] = {};
  if (has_channels) {
    float factor[Count], more[Count], middle[Count];
    load_vector<Count>(scale + c, factor);
    load_vector<Count>(shift + c, more);
    load_vector<Count>(mean + c, middle);
    for (unsigned p = mine.begin + threadIdx.y; p < mine.end; p += kSumLanesY) {
      const Place at = place(x, p);
      float value[Count], gradient[Count], other[Count] = {};
      load<Count>(static_cast<const T*>(x.data) + offset(x, at.n, at.y, at.x) + c, value);
      load<Count>(static_cast<const T*>(one.data) + offset(one, at.n, at.y, at.x) + c, gradient);
      if (two.data) load<Count>(static_cast<const T*>(two.data) + offset(two, at.n, at.y, at.x) + c, other);
#pragma unroll
      for (int i = 0; i < Count; i++) {
        const float g = factor[i] * value[i] + more[i] <= floor ? 0.0f : gradient[i] + other[i];
        plain[i] += g;
        with[i] += g * (value[i] - middle[i]);
      }
    }
  }
  sum_lanes<Count>(plain);
  sum_lanes<Count>(with);
  if (threadIdx.y > 0 || !has_channels) return;
  float* to = partial + blockIdx.x * 2 * x.c + c;
  for (int i = 0; i < Count; i++) {
    to[i] = plain[i];
    to[x.c + i] = with[i] * inverse[c + i];
  }
}

// g = a g + b (x - mean) + c, in place.
template <class T, int Count>
__device__ inline void differentiate(const Map& g, const Map& x, const float* a, const float* b, const float* mean,
                                     const float* constant) {
  const int64_t c = first_channel<Count>();
  if (c >= x.c) return;
  float of_g[Count], of_x[Count], middle[Count], more[Count];
  load_vector<Count>(a + c, of_g);
  load_vector<Count>(b + c, of_x);
  load_vector<Count>(mean + c, middle);
  load_vector<Count>(constant + c, more);
  const unsigned first = (blockIdx.x * kLanesY + threadIdx.y) * kPositions, count = unsigned(positions(x));
#pragma unroll
  for (unsigned p = first; p < first + kPositions; p++) {
    if (p >= count) return;
    const Place at = place(x, p);
    T* to = static_cast<T*>(g.data) + offset(g, at.n, at.y, at.x) + c;
    float value[Count], gradient[Count];
    load<Count>(static_cast<const T*>(x.data) + offset(x, at.n, at.y, at.x) + c, value);
    load<Count>(to, gradient);
#pragma unroll
    for (int i = 0; i < Count; i++) gradient[i] = of_g[i] * gradient[i] + of_x[i] * (value[i] - middle[i]) + more[i];
    store<Count>(gradient, to);
  }
}

}  // namespace dpc

using namespace dpc;

#define DPC_NORMALISE(Type, name, Count)                                                                              \
  DPC_KERNEL(kLanesX* kSumLanesY) dpc_moments_##name##_##Count(Map x, int share, double* mean, double* deviations) {  \
    find_moments<Type, Count>(x, share, mean, deviations);                                                            \
  }                                                                                                                   \
  DPC_KERNEL(kLanesX* kLanesY)                                                                                        \
  dpc_affine_##name##_##Count(Map x, const float* scale, const float* shift, float floor, Map y) {                    \
    normalise<Type, Count>(x, scale, shift, floor, y);                                                                \
  }                                                                                                                   \
  DPC_KERNEL(kLanesX* kSumLanesY)                                                                                     \
  dpc_gradient_sums_##name##_##Count(Map one, Map two, Map x, const float* scale, const float* shift, float floor,    \
                                     const float* mean, const float* inverse, int share, float* partial) {            \
    sum_gradients<Type, Count>(one, two, x, scale, shift, floor, mean, inverse, share, partial);                      \
  }                                                                                                                   \
  DPC_KERNEL(kLanesX* kLanesY)                                                                                        \
  dpc_affine_backward_##name##_##Count(Map g, Map x, const float* a, const float* b, const float* mean,               \
                                       const float* constant) {                                                       \
    differentiate<Type, Count>(g, x, a, b, mean, constant);                                                           \
  }

DPC_EVERY_TYPE(DPC_NORMALISE)

// total[i] = sum of partial[s][i] over the blocks, in their order. A thread a value.
extern "C" __global__ void dpc_total(const float* partial, int blocks, int64_t values, float* total) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= values) return;
  double sum = 0;
  for (int s = 0; s < blocks; s++) sum += partial[s * values + i];
  total[i] = float(sum);
}

// Mean and variance of all positions from those of the blocks (Chan, Golub, LeVeque 1979). A thread a channel.
extern "C" __global__ void dpc_moments_total(const double* mean, const double* deviations, int share, int64_t count,
                                             int64_t channels, float* to_mean, float* to_variance) {
  const int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  double middle = 0, squares = 0;
  for (int64_t done = 0, s = 0; done < count; done += share, s++) {
    const double more = double(count - done < share ? count - done : share), total = double(done) + more;
    const double delta = mean[s * channels + c] - middle;
    middle += delta * (more / total);
    squares += deviations[s * channels + c] + delta * delta * (double(done) * more / total);
  }
  to_mean[c] = float(middle);
  to_variance[c] = float(squares / double(count));
}
