// The passes of a batch normalisation: the moments of a map, y = scale x + shift and its ReLU, and what gradients need.
#include "device.cuh"

namespace dpc {

// One block's mean and sum of squared deviations by channel, to mean[blockIdx.x] and deviations[blockIdx.x]: [c].
// Deviations are taken from the block's first value: of numbers near each other, nothing cancels.
template <class T, int Count>
__device__ inline void find_moments(const Map& x, int share, double* mean, double* deviations) {
  const int64_t c = first_channel<Count>();
  const Range mine = range(x, share);
  const bool has_channels = c < x.c;
  float pivot[Count] = {}, sum[Count] = {}, squares[Count] = {};
  if (has_channels) load_at<T, Count>(x, place(x, mine.begin), c, pivot);
  for (unsigned p = mine.begin + threadIdx.y; has_channels && p < mine.end; p += kSumLanesY) {
    float value[Count];
    load_at<T, Count>(x, place(x, p), c, value);
#pragma unroll
    for (int i = 0; i < Count; i++) {
      const float away = value[i] - pivot[i];
      sum[i] += away;
      squares[i] += away * away;
    }
  }
  sum_lanes<Count>(sum);
  sum_lanes<Count>(squares);
  if (threadIdx.y == 0 && has_channels)
    write_moments<Count>(pivot, sum, squares, mine.end - mine.begin, blockIdx.x * x.c + c, mean, deviations);
}

// y = max(scale x + shift, floor).
template <class T, int Count>
__device__ inline void normalise(const Map& x, const float* scale, const float* shift, float floor, const Map& y) {
  const int64_t c = first_channel<Count>();
  if (c >= x.c) return;
  float factor[Count], more[Count];
  load_vector<Count>(scale + c, factor);
  load_vector<Count>(shift + c, more);
  each_position(x, [&](const Place& at) {
    float value[Count];
    load_at<T, Count>(x, at, c, value);
#pragma unroll
    for (int i = 0; i < Count; i++) value[i] = clamp(factor[i] * value[i] + more[i], floor);
    store_at<T, Count>(value, y, at, c);
  });
}

// A position's x, and of one or two gradients (`two` has no data if there is one) what passes the ReLU of scale x + shift.
template <class T, int Count>
__device__ inline void load_passed(const Map& one, const Map& two, const Map& x, const Place& at, int64_t c,
                                   const float* scale, const float* shift, float floor, float* value, float* gradient) {
  float other[Count] = {};
  load_at<T, Count>(x, at, c, value);
  load_at<T, Count>(one, at, c, gradient);
  if (two.data) load_at<T, Count>(two, at, c, other);
#pragma unroll
  for (int i = 0; i < Count; i++)
    gradient[i] = scale[i] * value[i] + shift[i] <= floor ? 0.0f : gradient[i] + other[i];
}

// One block's sums by channel of g and of g (x - mean) inverse, to partial[blockIdx.x]: [2, c]; g as load_passed has it.
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
      float value[Count], gradient[Count];
      load_passed<T, Count>(one, two, x, at, c, factor, more, floor, value, gradient);
#pragma unroll
      for (int i = 0; i < Count; i++) {
        plain[i] += gradient[i];
        with[i] += gradient[i] * (value[i] - middle[i]);
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

// to = a g + b (x - mean) + c, where g is what has passed the ReLU of y = scale x + shift, of one or two gradients.
template <class T, int Count>
__device__ inline void gradient_of_norm(const Map& one, const Map& two, const Map& x, const float* scale,
                                        const float* shift, float floor, const float* a, const float* b,
                                        const float* mean, const float* constant, const Map& to) {
  const int64_t c = first_channel<Count>();
  if (c >= x.c) return;
  float factor[Count], add[Count], of_g[Count], of_x[Count], middle[Count], more[Count];
  load_vector<Count>(scale + c, factor);
  load_vector<Count>(shift + c, add);
  load_vector<Count>(a + c, of_g);
  load_vector<Count>(b + c, of_x);
  load_vector<Count>(mean + c, middle);
  load_vector<Count>(constant + c, more);
  each_position(x, [&](const Place& at) {
    float value[Count], gradient[Count];
    load_passed<T, Count>(one, two, x, at, c, factor, add, floor, value, gradient);
#pragma unroll
    for (int i = 0; i < Count; i++)
      gradient[i] = of_g[i] * gradient[i] + of_x[i] * (value[i] - middle[i]) + more[i];
    store_at<T, Count>(gradient, to, at, c);
  });
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
  each_position(x, [&](const Place& at) {
    float value[Count], gradient[Count];
    load_at<T, Count>(x, at, c, value);
    load_at<T, Count>(g, at, c, gradient);
#pragma unroll
    for (int i = 0; i < Count; i++) gradient[i] = of_g[i] * gradient[i] + of_x[i] * (value[i] - middle[i]) + more[i];
    store_at<T, Count>(gradient, g, at, c);
  });
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
  dpc_norm_gradient_##name##_##Count(Map one, Map two, Map x, const float* scale, const float* shift, float floor,    \
                                     const float* a, const float* b, const float* mean, const float* constant,        \
                                     Map to) {                                                                        \
    gradient_of_norm<Type, Count>(one, two, x, scale, shift, floor, a, b, mean, constant, to);                        \
  }                                                                                                                   \
  DPC_KERNEL(kLanesX* kLanesY)                                                                                        \
  dpc_affine_backward_##name##_##Count(Map g, Map x, const float* a, const float* b, const float* mean,               \
                                       const float* constant) {                                                       \
    differentiate<Type, Count>(g, x, a, b, mean, constant);                                                           \
  }

DPC_EVERY_TYPE(DPC_NORMALISE)

// What blocks found is added up by kLanesX threads a value or channel side by side, and kTotalLanesY that each have every
// kTotalLanesY-th block; in doubles, in an order of its own.
constexpr int kTotalLanesY = 32;
__device__ inline double sum_over_lanes(double value) {
  __shared__ double all[kTotalLanesY][kLanesX];
  __syncthreads();
  all[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  double sum = 0;
  for (int lane = 0; lane < kTotalLanesY; lane++) sum += all[lane][threadIdx.x];
  return sum;
}

// The sum of partial[s][i] over the blocks, of which the first `split` go to `one` and the others to `two`. Grid:
// [values / kLanesX].
DPC_KERNEL(kLanesX* kTotalLanesY)
dpc_total(const float* partial, int blocks, int64_t values, int64_t split, float* one, float* two) {
  const int64_t i = int64_t(blockIdx.x) * kLanesX + threadIdx.x;
  double sum = 0;
  for (int s = threadIdx.y; i < values && s < blocks; s += kTotalLanesY) sum += partial[s * values + i];
  sum = sum_over_lanes(sum);
  if (threadIdx.y == 0 && i < values) *(i < split ? one + i : two + (i - split)) = float(sum);
}

// Mean and variance of all positions from those of blocks of `share` of them. Grid: [channels / kLanesX].
DPC_KERNEL(kLanesX* kTotalLanesY)
dpc_moments_total(const double* mean, const double* deviations, int share, int64_t count, int64_t channels,
                  float* to_mean, float* to_variance) {
  const int64_t c = int64_t(blockIdx.x) * kLanesX + threadIdx.x;
  const int64_t blocks = (unsigned(count) + unsigned(share) - 1) / unsigned(share);
  const auto rows = [&](int64_t s) { return double(s + 1 < blocks ? share : count - s * share); };
  double sum = 0, squares = 0;
  for (int64_t s = threadIdx.y; c < channels && s < blocks; s += kTotalLanesY) sum += rows(s) * mean[s * channels + c];
  const double middle = sum_over_lanes(sum) / double(count);
  for (int64_t s = threadIdx.y; c < channels && s < blocks; s += kTotalLanesY) {
    const double away = mean[s * channels + c] - middle;
    squares += deviations[s * channels + c] + rows(s) * away * away;
  }
  squares = sum_over_lanes(squares);
  if (threadIdx.y > 0 || c >= channels) return;
  to_mean[c] = float(middle);
  to_variance[c] = float(squares / double(count));
}

constexpr int kVectorThreads = 128;

// (inverse, scale, shift) of Primitives.normalisation, [3, channels]. A thread a channel.
DPC_KERNEL(kVectorThreads)
dpc_normalisation(const float* mean, const float* variance, const float* weight, const float* bias, float epsilon,
                  int single, int64_t channels, float* to) {
  const int64_t c = int64_t(blockIdx.x) * kVectorThreads + threadIdx.x;
  if (c >= channels) return;
  const float inverse = single ? 0.0f : 1.0f / sqrtf(variance[c] + epsilon), scale = weight[c] * inverse;
  to[c] = inverse;
  to[channels + c] = scale;
  to[2 * channels + c] = bias[c] - mean[c] * scale;
}

// (b, c) of Primitives.normalisation_gradient, [2, channels]. A thread a channel.
DPC_KERNEL(kVectorThreads)
dpc_normalisation_gradient(const float* scale, const float* inverse, const float* plain, const float* by_value,
                           float count, int64_t channels, float* to) {
  const int64_t c = int64_t(blockIdx.x) * kVectorThreads + threadIdx.x;
  if (c >= channels) return;
  const float share = -scale[c] / count;
  to[c] = share * inverse[c] * by_value[c];
  to[channels + c] = share * plain[c];
}
