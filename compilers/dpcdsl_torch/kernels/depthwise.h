// Dilated depthwise convolution over valid taps only, vectorised over channels.
#pragma once
#include "parallel.h"
#include "taps.h"
#include "vector.h"

namespace dpc {

constexpr int64_t kMostTaps = 1024;

// A run of positions in one row for which the same taps are inside the map.
struct Run {
  int64_t index;   // of its first position, counted from the start of the range
  int64_t n, y, x;
  int64_t length;
  int64_t valid;   // how many taps are inside
  const int16_t* taps;
};

// body(run) for the positions [first, first + count) of a map of h x w.
template <class Body>
void each_run(int64_t h, int64_t w, const Taps& taps, int64_t first, int64_t count, Body body) {
  int16_t valid[kMostTaps];
  for (int64_t index = 0; index < count;) {
    int64_t p = first + index, n = p / (h * w), y = p / w % h, x = p % w;
    int64_t until = count - index < w - x ? x + count - index : w;
    int64_t found = 0;
    for (int64_t t = 0; t < taps.count; t++)
      if (in_row(taps.dy[t], y, h) && in_column(taps.dx[t], x, w, &until)) valid[found++] = int16_t(t);
    body(Run{index, n, y, x, until - x, found, valid});
    index += until - x;
  }
}

// What a depthwise convolution has beside its input: weight [taps, c], bias [c] or null, and the floor of its ReLU.
struct Depthwise {
  Taps taps;
  const float* weight;
  const float* bias;
  float floor;
};

template <int Count, class T, class S>
void convolve_run(const T* const* from, const float* const* weight, const float* bias, float floor, int64_t count,
                  int64_t length, int64_t step, int64_t channels, S* to, int64_t to_step) {
  const Vector lowest = splat(floor);
  const int64_t taps = Count < 0 ? count : Count;
  int64_t i = 0;
  for (; i + 2 <= length; i += 2)  // two positions share the loads of the weights
    each_vector(channels, [&](int64_t c, auto lanes) {
      Vector one = bias ? lanes.load(bias + c) : Vector{}, two = one;
#pragma GCC unroll 9
      for (int64_t t = 0; t < taps; t++) {
        Vector w = lanes.load(weight[t] + c);
        one += w * lanes.load(from[t] + i * step + c);
        two += w * lanes.load(from[t] + (i + 1) * step + c);
      }
      lanes.store(clamp(one, lowest), to + i * to_step + c);
      lanes.store(clamp(two, lowest), to + (i + 1) * to_step + c);
    });
  if (i < length)
    each_vector(channels, [&](int64_t c, auto lanes) {
      Vector sum = bias ? lanes.load(bias + c) : Vector{};
#pragma GCC unroll 9
      for (int64_t t = 0; t < taps; t++) sum += lanes.load(weight[t] + c) * lanes.load(from[t] + i * step + c);
      lanes.store(clamp(sum, lowest), to + i * to_step + c);
    });
}

// Channels [c, c + channels) of the convolution at `count` positions from `first`, into rows of `to`.
template <class T, class S>
void convolve(const Map& x, const Depthwise& conv, int64_t c, int64_t channels, int64_t first, int64_t count, S* to,
              int64_t to_step) {
  const T* data = static_cast<const T*>(x.data) + c;
  const float* bias = conv.bias ? conv.bias + c : nullptr;
  each_run(x.h, x.w, conv.taps, first, count, [&](const Run& run) {
    const T* from[kMostTaps];
    const float* weight[kMostTaps];
    for (int64_t i = 0; i < run.valid; i++) {
      int64_t t = run.taps[i];
      from[i] = data + offset(x, run.n, run.y + conv.taps.dy[t], run.x + conv.taps.dx[t]);
      weight[i] = conv.weight + t * x.c + c;
    }
    S* target = to + run.index * to_step;
    auto go = [&](auto number) {
      convolve_run<decltype(number)::value>(from, weight, bias, conv.floor, run.valid, run.length, x.stride_w, channels,
                                            target, to_step);
    };
    switch (run.valid) {
      case 1: return go(std::integral_constant<int, 1>{});
      case 2: return go(std::integral_constant<int, 2>{});
      case 3: return go(std::integral_constant<int, 3>{});
      case 4: return go(std::integral_constant<int, 4>{});
      case 6: return go(std::integral_constant<int, 6>{});
      case 9: return go(std::integral_constant<int, 9>{});
      default: return go(std::integral_constant<int, -1>{});
    }
  });
}

// Both gradients in one pass: gx (+)= sum of w_t g at (y - dy, x - dx), and dw_t += x g at the same places. Several
// positions share the loads and stores of weights and sums, which stay in L1.
template <int Positions, class T>
void gradients_at(const T* x, int64_t x_step, const T* const* from, int64_t g_step, const float* const* weight,
                  float* const* dw, T* gx, int64_t gx_step, bool add, int64_t taps, int64_t i, int64_t channels) {
  each_vector(channels, [&](int64_t c, auto lanes) {
    Vector here[Positions], gradient[Positions];
    for (int p = 0; p < Positions; p++) {
      here[p] = dw ? lanes.load(x + (i + p) * x_step + c) : Vector{};
      gradient[p] = add ? lanes.load(gx + (i + p) * gx_step + c) : Vector{};
    }
    for (int64_t t = 0; t < taps; t++) {
      const T* g = from[t] + i * g_step + c;
      Vector w = gx ? lanes.load(weight[t] + c) : Vector{}, sum = {};
#pragma GCC unroll 4
      for (int p = 0; p < Positions; p++) {
        Vector value = lanes.load(g + p * g_step);
        gradient[p] += w * value;
        sum += here[p] * value;
      }
      if (dw) lanes.store(lanes.load(dw[t] + c) + sum, dw[t] + c);
    }
    for (int p = 0; gx && p < Positions; p++) lanes.store(gradient[p], gx + (i + p) * gx_step + c);
  });
}

// `dw` is one thread's [taps, c], added to; gx or dw may be null.
template <class T>
void convolution_gradients(const Map& g, const Map& x, const Depthwise& conv, const Map* gx, bool add, float* dw,
                           const int64_t* minus_dy, const int64_t* minus_dx, int64_t first, int64_t count) {
  const T* gradient = static_cast<const T*>(g.data);
  each_run(g.h, g.w, Taps{conv.taps.count, minus_dy, minus_dx}, first, count, [&](const Run& run) {
    const T* here = dw ? static_cast<const T*>(x.data) + offset(x, run.n, run.y, run.x) : nullptr;
    T* to = gx ? static_cast<T*>(gx->data) + offset(*gx, run.n, run.y, run.x) : nullptr;
    const T* from[kMostTaps];
    const float* weight[kMostTaps];
    float* sums[kMostTaps];
    for (int64_t i = 0; i < run.valid; i++) {
      int64_t t = run.taps[i];
      from[i] = gradient + offset(g, run.n, run.y + minus_dy[t], run.x + minus_dx[t]);
      weight[i] = conv.weight ? conv.weight + t * g.c : nullptr;
      sums[i] = dw ? dw + t * g.c : nullptr;
    }
    auto go = [&](auto positions, int64_t i) {
      gradients_at<decltype(positions)::value>(here, x.stride_w, from, g.stride_w, weight, dw ? sums : nullptr, to,
                                               gx ? gx->stride_w : 0, add && gx != nullptr, run.valid, i, g.c);
    };
    int64_t i = 0;
    for (; i + 4 <= run.length; i += 4) go(std::integral_constant<int, 4>{}, i);
    for (; i < run.length; i++) go(std::integral_constant<int, 1>{}, i);
  });
}

}  // namespace dpc
