// Dilated depthwise convolution over valid taps only, vectorised over channels.
#pragma once
#include <algorithm>
#include <type_traits>

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

// Weights of the taps of one run, a vector of channels at a time: [channels / kLanes, taps, kLanes]. One pointer and
// fixed distances reach them all, which leaves the registers to the map's rows.
inline void gather(const float* const* from, int64_t taps, int64_t channels, float* to) {
  each_vector(channels, [&](int64_t c, auto lanes) {
    for (int64_t t = 0; t < taps; t++) store(lanes.load(from[t] + c), to + c * taps + t * kLanes);
  });
}

constexpr int64_t kFewTaps = 9;  // as many as there are registers for their rows

inline int64_t gathered(int64_t taps, int64_t channels) { return taps * (channels + kLanes); }

// The taps that are the first to see a line of their row: of a whole 3x3 kernel the rightmost of each row, else the last.
template <int Count>
constexpr bool leads(int tap) {
  return Count == 9 ? tap % 3 == 2 : tap == Count - 1;
}

// `to` = the taps at `length` positions. Two positions share the loads of the weights.
template <int Count, class T, class S>
void convolve_run(const T* const* from, const float* weight, const float* bias, float floor, int64_t length,
                  int64_t step, int64_t channels, S* to, int64_t to_step) {
  const Vector lowest = splat(floor);
  int64_t i = 0;
  for (; i + 2 <= length; i += 2) {
    const T* at[Count + 1];
    for (int t = 0; t < Count; t++) at[t] = from[t] + i * step;
    S* first = to + i * to_step;
    each_vector(channels, [&](int64_t c, auto lanes) {
      Vector one = bias ? lanes.load(bias + c) : Vector{}, two = one;
      const float* w = weight + c * Count;
#pragma GCC unroll 9
      for (int t = 0; t < Count; t++) {
        Vector factor = load(w + t * kLanes);
        if (leads<Count>(t)) {
          will_read(at[t] + kAhead * step + c);
          will_read(at[t] + (kAhead + 1) * step + c);
        }
        one += factor * lanes.load(at[t] + c);
        two += factor * lanes.load(at[t] + step + c);
      }
      lanes.store(clamp(one, lowest), first + c);
      lanes.store(clamp(two, lowest), first + to_step + c);
    });
  }
  if (i < length) {
    const T* at[Count + 1];
    for (int t = 0; t < Count; t++) at[t] = from[t] + i * step;
    each_vector(channels, [&](int64_t c, auto lanes) {
      Vector sum = bias ? lanes.load(bias + c) : Vector{};
      const float* w = weight + c * Count;
#pragma GCC unroll 9
      for (int t = 0; t < Count; t++) sum += load(w + t * kLanes) * lanes.load(at[t] + c);
      lanes.store(clamp(sum, lowest), to + i * to_step + c);
    });
  }
}

// The same for any number of taps, a position at a time.
template <class T, class S>
void convolve_many(const T* const* from, const float* weight, const float* bias, float floor, int64_t taps,
                   int64_t length, int64_t step, int64_t channels, S* to, int64_t to_step) {
  const Vector lowest = splat(floor);
  for (int64_t i = 0; i < length; i++)
    each_vector(channels, [&](int64_t c, auto lanes) {
      Vector sum = bias ? lanes.load(bias + c) : Vector{};
      for (int64_t t = 0; t < taps; t++)
        sum += load(weight + c * taps + t * kLanes) * lanes.load(from[t] + i * step + c);
      lanes.store(clamp(sum, lowest), to + i * to_step + c);
    });
}

// body(std::integral_constant<int, n>) for the n of 0 to kFewTaps.
template <class Body>
void few_taps(int64_t n, Body body) {
  switch (n) {
    case 0: return body(std::integral_constant<int, 0>{});
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
    case 5: return body(std::integral_constant<int, 5>{});
    case 6: return body(std::integral_constant<int, 6>{});
    case 7: return body(std::integral_constant<int, 7>{});
    case 8: return body(std::integral_constant<int, 8>{});
    default: return body(std::integral_constant<int, 9>{});
  }
}

// A run's rows, side by side, as many channels at a time as two lines of the cache have: what several taps read is fetched
// from afar once, and lines whole.
constexpr int64_t kNear = 48;                // positions of a run at a time
constexpr int64_t kGroup = 32 / kLanes;      // vectors
constexpr int64_t kNearFloats = 7 * 1024;    // three rows of them, with what the taps reach beyond: it fits into L1

// `to` = the taps at `length` positions of whole vectors of channels, by way of `near`. False if they do not fit.
template <int Count, class T, class S>
bool convolve_near(const T* const* from, const int64_t* dy, const int64_t* dx, const float* weight, const float* bias,
                   float floor, int64_t length, int64_t step, int64_t vectors, S* to, int64_t to_step, float* near) {
  int64_t rows = 0, row_of[Count + 1], first_of[Count + 1], left = dx[0], right = dx[0];
  for (int t = 0; t < Count; t++) {
    if (t == 0 || dy[t] != dy[t - 1]) first_of[rows++] = t;
    row_of[t] = rows - 1;
    left = std::min(left, dx[t]);
    right = std::max(right, dx[t]);
  }
  const int64_t width = std::min(length, kNear) + right - left, plane = rows * width * kLanes;
  if (plane * kGroup > kNearFloats) return false;
  const Vector lowest = splat(floor);
  for (int64_t begun = 0; begun < length; begun += kNear) {
    const int64_t here = std::min(kNear, length - begun);
    for (int64_t first = 0; first < vectors; first += kGroup) {
      auto bring = [&](auto group) {  // a number, known when this is compiled if it is the usual one
        for (int64_t r = 0; r < rows; r++) {
          const int64_t t = first_of[r];
          const T* row = from[t] + (begun - dx[t] + left) * step + first * kLanes;
          float* line = near + r * width * kLanes;
          for (int64_t p = 0; p < here + right - left; p++)
            for (int64_t v = 0; v < group; v++)
              store(load(row + p * step + v * kLanes), line + v * plane + p * kLanes);
        }
      };
      const int64_t group = std::min(kGroup, vectors - first);
      if (group == kGroup)
        bring(std::integral_constant<int64_t, kGroup>{});
      else
        bring(group);
      for (int64_t v = 0; v < group; v++) {
        const int64_t c = (first + v) * kLanes;
        const float* at[Count + 1];
        Vector w[Count + 1];
        for (int t = 0; t < Count; t++) {
          at[t] = near + v * plane + (row_of[t] * width + dx[t] - left) * kLanes;
          w[t] = load(weight + c * Count + t * kLanes);
        }
        const Vector start = bias ? load(bias + c) : Vector{};
        S* target = to + begun * to_step + c;
        for (int64_t i = 0; i < here; i++) {
          Vector sum = start;
#pragma GCC unroll 9
          for (int t = 0; t < Count; t++) sum += w[t] * load(at[t] + i * kLanes);
          store(clamp(sum, lowest), target + i * to_step);
        }
      }
    }
  }
  return true;
}

// A copy of what a convolution reads of a range of positions: for each image row of the range and each row of taps, the
// map's positions from the leftmost tap to the rightmost, side by side.
template <class T>
struct Copy {
  const T* data;
  int64_t step;           // elements from one position to the next
  const int64_t* column;  // [image rows, rows of taps]: at which step column 0 of the map's row would be
};

// Channels [c, c + channels) of the convolution at `count` positions from `first`, into rows of `to`. `room` holds
// gathered(taps, channels) floats. Read is `copy`, of these positions and channels, if there is one.
template <class T, class S>
void convolve(const Map& x, const Depthwise& conv, int64_t c, int64_t channels, int64_t first, int64_t count, S* to,
              int64_t to_step, float* room, const Copy<T>* copy = nullptr) {
  const T* data = static_cast<const T*>(x.data) + c;
  const int64_t step = copy ? copy->step : x.stride_w;
  int64_t tap_rows = 0, row_of[kMostTaps];
  for (int64_t t = 0; copy && t < conv.taps.count; t++)
    row_of[t] = t > 0 && conv.taps.dy[t] == conv.taps.dy[t - 1] ? tap_rows - 1 : tap_rows++;
  const float* bias = conv.bias ? conv.bias + c : nullptr;
  each_run(x.h, x.w, conv.taps, first, count, [&](const Run& run) {
    const T* from[kMostTaps];
    const float* weight[kMostTaps];
    for (int64_t i = 0; i < run.valid; i++) {
      int64_t t = run.taps[i];
      if (copy) {
        const int64_t row = run.n * x.h + run.y - first / x.w;
        from[i] = copy->data + (copy->column[row * tap_rows + row_of[t]] + run.x + conv.taps.dx[t]) * step;
      } else {
        from[i] = data + offset(x, run.n, run.y + conv.taps.dy[t], run.x + conv.taps.dx[t]);
      }
      weight[i] = conv.weight + t * x.c + c;
    }
    gather(weight, run.valid, channels, room);
    S* target = to + run.index * to_step;
    if (run.valid > kFewTaps)
      convolve_many(from, room, bias, conv.floor, run.valid, run.length, step, channels, target, to_step);
    else
      few_taps(run.valid, [&](auto number) {
        constexpr int n = decltype(number)::value;
        if constexpr (n >= 6) {
          int64_t dy[n], dx[n];
          for (int t = 0; t < n; t++) {
            dy[t] = conv.taps.dy[run.taps[t]];
            dx[t] = conv.taps.dx[run.taps[t]];
          }
          alignas(64) float near[kNearFloats];
          if (channels % kLanes == 0 && convolve_near<n>(from, dy, dx, room, bias, conv.floor, run.length, step,
                                                         channels / kLanes, target, to_step, near))
            return;
        }
        convolve_run<n>(from, room, bias, conv.floor, run.length, step, channels, target, to_step);
      });
  });
}

// Both gradients of one run: gx (+)= sum of w_t g at (y - dy, x - dx), and dw_t += x g at the same places. `weight` and
// `dw` are gathered. Several positions share the loads and stores of weights and sums.
template <int Count, int Positions, class T>
void gradients_at(const T* x, int64_t x_step, const T* const* from, int64_t g_step, const float* weight, float* dw,
                  T* gx, int64_t gx_step, bool add, int64_t channels) {
  const T* at[Count + 1];
  for (int t = 0; t < Count; t++) at[t] = from[t];
  each_vector(channels, [&](int64_t c, auto lanes) {
    Vector here[Positions], gradient[Positions];
    for (int p = 0; p < Positions; p++) {
      here[p] = dw ? lanes.load(x + p * x_step + c) : Vector{};
      gradient[p] = add ? lanes.load(gx + p * gx_step + c) : Vector{};
    }
#pragma GCC unroll 9
    for (int t = 0; t < Count; t++) {
      Vector w = gx ? load(weight + c * Count + t * kLanes) : Vector{}, sum = {};
#pragma GCC unroll 4
      for (int p = 0; p < Positions; p++) {
        Vector value = lanes.load(at[t] + p * g_step + c);
        gradient[p] += w * value;
        sum += here[p] * value;
      }
      float* total = dw + c * Count + t * kLanes;
      if (dw) store(load(total) + sum, total);
    }
    for (int p = 0; gx && p < Positions; p++) lanes.store(gradient[p], gx + p * gx_step + c);
  });
}

// `dw` is one thread's [taps, c], added to; gx or dw may be null. `room` holds twice gathered(kFewTaps, c) floats.
template <class T>
void convolution_gradients(const Map& g, const Map& x, const Depthwise& conv, const Map* gx, bool add, float* dw,
                           const int64_t* minus_dy, const int64_t* minus_dx, int64_t first, int64_t count, float* room) {
  const T* gradient = static_cast<const T*>(g.data);
  float* totals = dw ? room + gathered(kFewTaps, g.c) : nullptr;
  each_run(g.h, g.w, Taps{conv.taps.count, minus_dy, minus_dx}, first, count, [&](const Run& run) {
    const T* here = dw ? static_cast<const T*>(x.data) + offset(x, run.n, run.y, run.x) : nullptr;
    T* to = gx ? static_cast<T*>(gx->data) + offset(*gx, run.n, run.y, run.x) : nullptr;
    bool more = add && gx != nullptr;
    // A few taps at a time; where there is none, the gradient of the input is still to be written.
    for (int64_t begun = 0; begun < run.valid || begun == 0; begun += kFewTaps) {
      const int64_t number = run.valid - begun < kFewTaps ? run.valid - begun : kFewTaps;
      const T* from[kFewTaps];
      const float* weight[kFewTaps];
      for (int64_t i = 0; i < number; i++) {
        int64_t t = run.taps[begun + i];
        from[i] = gradient + offset(g, run.n, run.y + minus_dy[t], run.x + minus_dx[t]);
        weight[i] = conv.weight ? conv.weight + t * g.c : nullptr;
      }
      if (gx) gather(weight, number, g.c, room);
      if (dw) std::fill_n(totals, gathered(number, g.c), 0.0f);
      few_taps(number, [&](auto taps) {
        constexpr int n = decltype(taps)::value;
        auto go = [&](auto positions, int64_t i) {
          const T* shifted[n + 1];
          for (int t = 0; t < n; t++) shifted[t] = from[t] + i * g.stride_w;
          gradients_at<n, decltype(positions)::value>(dw ? here + i * x.stride_w : nullptr, x.stride_w, shifted,
                                                      g.stride_w, room, totals, to ? to + i * gx->stride_w : nullptr,
                                                      to ? gx->stride_w : 0, more, g.c);
        };
        int64_t i = 0;
        for (; i + 4 <= run.length; i += 4) go(std::integral_constant<int, 4>{}, i);
        for (; i < run.length; i++) go(std::integral_constant<int, 1>{}, i);
      });
      for (int64_t k = 0; dw && k < number; k++) {
        float* sums = dw + run.taps[begun + k] * g.c;
        each_vector(g.c, [&](int64_t c, auto lanes) {
          lanes.store(lanes.load(sums + c) + load(totals + c * number + k * kLanes), sums + c);
        });
      }
      more = gx != nullptr;
    }
  });
}

}  // namespace dpc
