// Branches in evaluation mode, fused: depthwise -> bias, ReLU -> pointwise -> bias, ReLU (-> projection), a block of
// positions at a time. What a branch computes on the way stays in the cache; only its result is written.
#pragma once
#include <algorithm>
#include <atomic>

#include "depthwise.h"
#include "gemm.h"
#include "resize.h"

namespace dpc {

struct Branch {
  Depthwise depthwise;      // taps.count is 0 where there is none
  const void* weight;       // in panels [depth, kTile], fp32; or [depth / 2, kTile, 2], bf16
  int64_t filters;
  const float* bias;        // [filters]
  float floor;
  Map y;                    // where the result goes; data is null if only the projection needs it
  const void* projection;   // [filters, of the projection], as weight; null without
};

// A projection split over the branches. Each call adds its branches' part.
struct Projection {
  int64_t filters;
  const float* bias;        // [filters]; read by the first call
  float floor;              // applied by the last
  int32_t first, last;
  Map sum;                  // fp32; what earlier calls have summed up
  Map out;                  // written by the last call; its channels may be strided
  int64_t grids;            // pooled branches, projected before they are resized
  const Map* grid;          // fp32 [n, gh, gw, filters], channels last, without holes
  int32_t align_corners;
};

// How many positions and input channels a block has: what it keeps must fit into the cache of a core.
constexpr int64_t kBlock = 96;
constexpr int64_t kDepth = 320;

// A multiple of kTile: training pads a chunk's rows to it, and chunks must not reach into each other.
inline int64_t depth_of_chunk(int64_t channels) {
  int64_t chunks = (channels + kDepth - 1) / kDepth;
  return (channels + chunks * kTile - 1) / (chunks * kTile) * kTile;
}

template <class T, class S>
void copy_rows(const Map& x, int64_t c, int64_t channels, int64_t first, int64_t count, S* to, int64_t to_step) {
  each_run(x.h, x.w, Taps{0, nullptr, nullptr}, first, count, [&](const Run& run) {
    const T* from = static_cast<const T*>(x.data) + offset(x, run.n, run.y, run.x) + c;
    for (int64_t i = 0; i < run.length; i++)
      each_vector(channels, [&](int64_t k, auto lanes) {
        lanes.store(lanes.load(from + i * x.stride_w + k), to + (run.index + i) * to_step + k);
      });
  });
}

// Rows of `sum` plus bias, through the ReLU, to the map, and back to `kept` for a projection.
template <class T, class S>
void finish_rows(const float* sum, int64_t row, const float* bias, float floor, const Map* y, int64_t first,
                 int64_t count, int64_t filters, S* kept, int64_t kept_row) {
  const Vector lowest = splat(floor);
  each_run(y ? y->h : 1, y ? y->w : first + count, Taps{0, nullptr, nullptr}, first, count, [&](const Run& run) {
    T* to = y ? static_cast<T*>(y->data) + offset(*y, run.n, run.y, run.x) : nullptr;
    for (int64_t i = 0; i < run.length; i++) {
      const float* from = sum + (run.index + i) * row;
      S* keep = kept ? kept + (run.index + i) * kept_row : nullptr;
      if (to == nullptr || y->stride_c == 1) {
        each_vector(filters, [&](int64_t c, auto lanes) {
          Vector value = clamp(lanes.load(from + c) + (bias ? lanes.load(bias + c) : Vector{}), lowest);
          if (to) {
            will_write(to + (i + kAhead) * y->stride_w + c);
            lanes.store(value, to + i * y->stride_w + c);
          }
          if (keep) lanes.store(value, keep + c);
        });
      }
    }
    if (to && y->stride_c != 1)  // positions are next to each other then, and so is what is written
      for (int64_t c = 0; c < filters; c++)
        for (int64_t i = 0; i < run.length; i++)
          narrow(clamp(sum[(run.index + i) * row + c] + (bias ? bias[c] : 0.0f), floor),
                 to + c * y->stride_c + i * y->stride_w);
  });
}

// The projection's sums at the start of a block.
inline void begin_projection(const Projection& projection, int64_t h, int64_t w, int64_t first, int64_t count,
                             float* sum) {
  const int64_t row = padded(projection.filters);
  if (!projection.first) copy_rows<float>(projection.sum, 0, projection.filters, first, count, sum, row);
  for (int64_t i = 0; i < count; i++) {
    float* to = sum + i * row;
    if (projection.first) std::copy(projection.bias, projection.bias + projection.filters, to);
    std::fill(to + projection.filters, to + row, 0.0f);
    int64_t p = first + i, n = p / (h * w), y = p / w % h, x = p % w;
    for (int64_t g = 0; g < projection.grids; g++) {
      const Map& grid = projection.grid[g];
      Sample rows = sample(y, grid.h, h, projection.align_corners), columns = sample(x, grid.w, w, projection.align_corners);
      const float* data = static_cast<const float*>(grid.data);
      const float *a = data + offset(grid, n, rows.low, columns.low), *b = data + offset(grid, n, rows.low, columns.high);
      const float *c = data + offset(grid, n, rows.high, columns.low), *d = data + offset(grid, n, rows.high, columns.high);
      float down = rows.weight, along = columns.weight;
      each_vector(projection.filters, [&](int64_t k, auto lanes) {
        Vector above = lanes.load(a + k) * (1 - along) + lanes.load(b + k) * along;
        Vector below = lanes.load(c + k) * (1 - along) + lanes.load(d + k) * along;
        lanes.store(lanes.load(to + k) + above * (1 - down) + below * down, to + k);
      });
    }
  }
}

// What of x the next block or chunk of a plain product reads: `channels` from c at the positions from `first`.
template <class T>
Ahead ahead_of(const Map& x, int64_t c, int64_t channels, int64_t first) {
  if (first >= positions(x) || !is_matrix(x)) return {};
  const T* at = static_cast<const T*>(x.data) + first * x.stride_w + c;
  const int64_t rows = std::min(kBlock, positions(x) - first);
  return {reinterpret_cast<const char*>(at), channels * int64_t(sizeof(T)), x.stride_w * int64_t(sizeof(T)), rows};
}

// S is what the product is computed in: float, or BFloat16 in pairs.
template <class T, class S>
void evaluate(const Map& x, int64_t branches, const Branch* branch, const Projection* projection, int threads) {
  constexpr int64_t kPair = sizeof(S) == 2 ? 2 : 1;
  const int64_t chunk = depth_of_chunk(x.c), count = positions(x), blocks = (count + kBlock - 1) / kBlock;
  int64_t widest = 0;
  for (int64_t b = 0; b < branches; b++) widest = std::max(widest, padded(branch[b].filters));
  const int64_t projected = projection ? padded(projection->filters) : 0;
  const int64_t panel = (x.c + x.c % kPair) * kTile;
  Layout layout;
  const int64_t a_at = layout.floats(kBlock * (chunk + kLanes)), c_at = layout.floats(kBlock * widest);
  const int64_t kept_at = layout.floats(projection && kPair == 2 ? kBlock * widest : 0);
  const int64_t sum_at = layout.floats(kBlock * projected);
  int64_t most_taps = 0;
  for (int64_t b = 0; b < branches; b++) most_taps = std::max(most_taps, branch[b].depthwise.taps.count);
  const int64_t room_at = layout.floats(gathered(most_taps, chunk));
  char* memory = static_cast<char*>(scratch(layout.bytes() * std::max(threads, 1)));
  std::atomic<int64_t> next{0};
  in_threads(threads, [&](int thread, int) {
    char* own = memory + thread * layout.bytes();
    S* a = reinterpret_cast<S*>(own + a_at);
    float* c = reinterpret_cast<float*>(own + c_at);
    float* sum = reinterpret_cast<float*>(own + sum_at);
    float* room = reinterpret_cast<float*>(own + room_at);
    // A block's result does not depend on who computes it. The one after is taken early, to know what it will read.
    for (int64_t block = next++, following; block < blocks; block = following) {
      following = next++;
      const int64_t first = block * kBlock, rows = std::min(kBlock, count - first);
      if (projection) begin_projection(*projection, x.h, x.w, first, rows, sum);
      for (int64_t b = 0; b < branches; b++) {
        const Branch& op = branch[b];
        const int64_t columns = padded(op.filters);
        for (int64_t k = 0; k < x.c; k += chunk) {
          const int64_t depth = std::min(chunk, x.c - k), row = depth + (kPair == 2 ? depth % 2 : 0);
          const bool plain = op.depthwise.taps.count == 0;
          const S* left = a;
          int64_t left_row = row;
          if (plain && sizeof(T) == sizeof(S) && is_matrix(x) && depth % kPair == 0) {
            left = static_cast<const S*>(x.data) + first * x.stride_w + k;
            left_row = x.stride_w;
          } else {
            if (row != depth)  // half a pair more, which must not be NaN
              for (int64_t i = 0; i < rows; i++) narrow(0.0f, a + i * row + depth);
            if (plain)
              copy_rows<T>(x, k, depth, first, rows, a, row);
            else
              convolve<T>(x, op.depthwise, k, depth, first, rows, a, row, room);
          }
          const S* right = static_cast<const S*>(op.weight) + k * kTile;
          Ahead ahead;  // a depthwise convolution looks after its own
          if (plain && k + chunk < x.c)
            ahead = ahead_of<T>(x, k + chunk, std::min(chunk, x.c - k - chunk), first);
          else if (plain && b + 1 == branches)
            ahead = ahead_of<T>(x, 0, std::min(chunk, x.c), following * kBlock);
          if constexpr (kPair == 1)
            multiply(rows, columns, depth, left, left_row, 1, right, panel, c, columns, k > 0, ahead);
          else if constexpr (kHasPairs)
            multiply(rows, columns, row / 2, left, left_row, right, panel, c, columns, k > 0, ahead);
        }
        const Map* y = op.y.data ? &op.y : nullptr;
        if (projection == nullptr || op.projection == nullptr) {
          finish_rows<T, float>(c, columns, op.bias, op.floor, y, first, rows, op.filters, nullptr, 0);
        } else if constexpr (kPair == 1) {
          finish_rows<T, float>(c, columns, op.bias, op.floor, y, first, rows, op.filters, c, columns);
          multiply(rows, projected, op.filters, c, columns, 1, static_cast<const float*>(op.projection),
                   op.filters * kTile, sum, projected, true);
        } else if constexpr (kHasPairs) {
          S* kept = reinterpret_cast<S*>(own + kept_at);
          const int64_t even = op.filters + op.filters % 2;
          if (even != op.filters)
            for (int64_t i = 0; i < rows; i++) narrow(0.0f, kept + i * even + op.filters);
          finish_rows<T, S>(c, columns, op.bias, op.floor, y, first, rows, op.filters, kept, even);
          multiply(rows, projected, even / 2, kept, even, static_cast<const S*>(op.projection), even * kTile, sum,
                   projected, true);
        }
      }
      if (projection && projection->last)
        finish_rows<T, float>(sum, projected, nullptr, projection->floor, &projection->out, first, rows,
                              projection->filters, nullptr, 0);
      else if (projection)
        finish_rows<float, float>(sum, projected, nullptr, -__builtin_inff(), &projection->sum, first, rows,
                                  projection->filters, nullptr, 0);
    }
  });
}

}  // namespace dpc
