// Average pooling over a grid, bilinear resize, and both backwards; and the change of memory format. A task is an image
// and a range of channels, so that no sum is shared between threads.
#pragma once
#include <algorithm>
#include <vector>

#include "parallel.h"
#include "resize.h"
#include "taps.h"
#include "turn.h"
#include "vector.h"

namespace dpc {

constexpr int64_t kChannels = 512;  // most of a task: as many as possible lie side by side, and their sums in L1

// body(image, first channel, channels) for every task.
template <class Body>
void each_channel_range(int64_t images, int64_t channels, int threads, Body body) {
  const int64_t each = (channels + std::max(threads, 1) * kLanes - 1) / (std::max(threads, 1) * kLanes) * kLanes;
  const int64_t width = std::min(std::max<int64_t>(each, kLanes), kChannels), ranges = (channels + width - 1) / width;
  in_threads(threads, [&](int thread, int all) {
    Share mine = share(images * ranges, thread, all);
    for (int64_t task = mine.first; task < mine.last; task++) {
      const int64_t c = task % ranges * width;
      body(task / ranges, c, std::min(width, channels - c));
    }
  });
}

// to [n, gh, gw, c], fp32, without holes: the mean of each cell.
template <class T>
void pool(const Map& x, const Map& to, int threads) {
  each_channel_range(x.n, x.c, threads, [&](int64_t n, int64_t first, int64_t channels) {
    const T* from = static_cast<const T*>(x.data) + n * x.stride_n + first;
    for (int64_t gy = 0; gy < to.h; gy++)
      for (int64_t gx = 0; gx < to.w; gx++) {
        const int64_t top = cell_begin(gy, to.h, x.h), bottom = cell_end(gy, to.h, x.h);
        const int64_t left = cell_begin(gx, to.w, x.w), right = cell_end(gx, to.w, x.w);
        float* target = static_cast<float*>(to.data) + offset(to, n, gy, gx) + first;
        float sum[kChannels] = {}, row[kChannels];
        for (int64_t y = top; y < bottom; y++) {  // a sum a row first: long sums lose digits
          std::fill_n(row, channels, 0.0f);
          for (int64_t i = left; i < right; i++) {
            const T* at = from + y * x.stride_h + i * x.stride_w;
            each_vector(channels, [&](int64_t c, auto lanes) {
              lanes.store(lanes.load(row + c) + lanes.load(at + c), row + c);
            });
          }
          for (int64_t c = 0; c < channels; c++) sum[c] += row[c];
        }
        const float area = float((bottom - top) * (right - left));
        for (int64_t c = 0; c < channels; c++) target[c] = sum[c] / area;
      }
  });
}

// dx (+)= each cell's gradient over its area.
template <class T>
void pool_backward(const Map& g, const Map& dx, bool add, int threads) {
  in_threads(threads, [&](int thread, int all) {
    Share mine = share(dx.n * dx.h, thread, all);
    for (int64_t task = mine.first; task < mine.last; task++) {
      const int64_t n = task / dx.h, y = task % dx.h;
      for (int64_t x = 0; x < dx.w; x++) {
        T* to = static_cast<T*>(dx.data) + offset(dx, n, y, x);
        bool more = add;
        for (int64_t gy = y * g.h / dx.h; gy < g.h && cell_begin(gy, g.h, dx.h) <= y; gy++) {
          if (cell_end(gy, g.h, dx.h) <= y) continue;
          for (int64_t gx = x * g.w / dx.w; gx < g.w && cell_begin(gx, g.w, dx.w) <= x; gx++) {
            if (cell_end(gx, g.w, dx.w) <= x) continue;
            const float area = float((cell_end(gy, g.h, dx.h) - cell_begin(gy, g.h, dx.h)) *
                                     (cell_end(gx, g.w, dx.w) - cell_begin(gx, g.w, dx.w)));
            const float* from = static_cast<const float*>(g.data) + offset(g, n, gy, gx);
            each_vector(dx.c, [&](int64_t c, auto lanes) {
              Vector value = lanes.load(from + c) / area;
              lanes.store(more ? lanes.load(to + c) + value : value, to + c);
            });
            more = true;
          }
        }
      }
    }
  });
}

// to = bilinear resize of from, fp32 [n, gh, gw, c].
template <class T>
void resize(const Map& from, const Map& to, bool align_corners, int threads) {
  in_threads(threads, [&](int thread, int all) {
    Share mine = share(to.n * to.h, thread, all);
    for (int64_t task = mine.first; task < mine.last; task++) {
      const int64_t n = task / to.h, y = task % to.h;
      const Sample rows = sample(y, from.h, to.h, align_corners);
      const float* data = static_cast<const float*>(from.data);
      for (int64_t x = 0; x < to.w; x++) {
        const Sample columns = sample(x, from.w, to.w, align_corners);
        const float *a = data + offset(from, n, rows.low, columns.low), *b = data + offset(from, n, rows.low, columns.high);
        const float *c = data + offset(from, n, rows.high, columns.low), *d = data + offset(from, n, rows.high, columns.high);
        T* target = static_cast<T*>(to.data) + offset(to, n, y, x);
        const float down = rows.weight, along = columns.weight;
        each_vector(to.c, [&](int64_t k, auto lanes) {
          Vector above = lanes.load(a + k) * (1 - along) + lanes.load(b + k) * along;
          Vector below = lanes.load(c + k) * (1 - along) + lanes.load(d + k) * along;
          lanes.store(above * (1 - down) + below * down, target + k);
        });
      }
    }
  });
}

// to, fp32 [n, gh, gw, c] = gradient of what was resized; the map's gradient is one, or one + two.
template <class T>
void resize_backward(const Map& one, const Map* two, const Map& to, bool align_corners, int threads) {
  each_channel_range(one.n, one.c, threads, [&](int64_t n, int64_t first, int64_t channels) {
    std::vector<float> along(to.w * kChannels);
    for (int64_t i = 0; i < to.h * to.w; i++)
      std::fill_n(static_cast<float*>(to.data) + offset(to, n, i / to.w, i % to.w) + first, channels, 0.0f);
    for (int64_t y = 0; y < one.h; y++) {
      std::fill(along.begin(), along.end(), 0.0f);
      for (int64_t x = 0; x < one.w; x++) {
        const Sample columns = sample(x, to.w, one.w, align_corners);
        const T* g = static_cast<const T*>(one.data) + offset(one, n, y, x) + first;
        const T* h = two ? static_cast<const T*>(two->data) + offset(*two, n, y, x) + first : nullptr;
        float *low = along.data() + columns.low * kChannels, *high = along.data() + columns.high * kChannels;
        each_vector(channels, [&](int64_t c, auto lanes) {
          Vector value = lanes.load(g + c);
          if (h) value += lanes.load(h + c);
          lanes.store(lanes.load(low + c) + value * (1 - columns.weight), low + c);
          if (columns.weight != 0) lanes.store(lanes.load(high + c) + value * columns.weight, high + c);
        });
      }
      const Sample rows = sample(y, to.h, one.h, align_corners);
      for (int64_t x = 0; x < to.w; x++) {
        float* low = static_cast<float*>(to.data) + offset(to, n, rows.low, x) + first;
        float* high = static_cast<float*>(to.data) + offset(to, n, rows.high, x) + first;
        each_vector(channels, [&](int64_t c, auto lanes) {
          Vector value = lanes.load(along.data() + x * kChannels + c);
          lanes.store(lanes.load(low + c) + value * (1 - rows.weight), low + c);
          if (rows.weight != 0) lanes.store(lanes.load(high + c) + value * rows.weight, high + c);
        });
      }
    }
  });
}

// `count` values side by side; past the cache if the map does not fit into it.
template <class T>
void copy_line(const T* from, int64_t count, T* to, bool past) {
  if constexpr (sizeof(T) == 4)
    if (past && reinterpret_cast<uintptr_t>(to) % sizeof(Vector) == 0 && count % kLanes == 0) {
      for (int64_t i = 0; i < count; i += kLanes) store_past(load(from + i), to + i);
      return;
    }
  std::copy(from, from + count, to);
}

constexpr int64_t kLargeMap = 16 << 20;  // bytes that will not be in the cache when they are read

// A map of any strides into one of any strides, tile by tile, so that both sides move whole cache lines.
template <class T>
void copy_map(const Map& from, const Map& to, int threads) {
  constexpr int64_t kPositions = 128, kChannels = 64;
  const int64_t size = from.h * from.w, tiles = (size + kPositions - 1) / kPositions;
  const bool past = from.n * size * from.c * int64_t(sizeof(T)) > kLargeMap;
  const auto dense = [](const Map& map) { return map.stride_w == 1 && (map.h == 1 || map.stride_h == map.w); };
  const bool from_dense = dense(from), to_dense = dense(to);
  in_threads(threads, [&](int thread, int all) {
    // A position's channels side by side. Rows are not a power of 2 apart, which would share the lines of the cache.
    constexpr int64_t kRow = kChannels + 8;
    T tile[kPositions * kRow];
    int64_t source[kPositions], target[kPositions];
    Share mine = share(from.n * tiles, thread, all);
    for (int64_t task = mine.first; task < mine.last; task++) {
      const int64_t n = task / tiles, p = task % tiles * kPositions, count = std::min(kPositions, size - p);
      for (int64_t i = 0; i < count; i++) {
        source[i] = offset(from, n, (p + i) / from.w, (p + i) % from.w);
        target[i] = offset(to, n, (p + i) / from.w, (p + i) % from.w);
      }
      for (int64_t c = 0; c < from.c; c += kChannels) {
        const int64_t channels = std::min(kChannels, from.c - c);
        const T* data = static_cast<const T*>(from.data) + c * from.stride_c;
        T* result = static_cast<T*>(to.data) + c * to.stride_c;
        if (from.stride_c == 1)
          for (int64_t i = 0; i < count; i++) std::copy(data + source[i], data + source[i] + channels, tile + i * kRow);
        else if (from_dense)
          turn(data + source[0], from.stride_c, channels, count, tile, kRow);
        else
          for (int64_t k = 0; k < channels; k++)
            for (int64_t i = 0; i < count; i++) tile[i * kRow + k] = data[k * from.stride_c + source[i]];
        if (to.stride_c == 1)
          for (int64_t i = 0; i < count; i++) copy_line(tile + i * kRow, channels, result + target[i], past);
        else if (to_dense)
          turn(tile, kRow, count, channels, result + target[0], to.stride_c);
        else
          for (int64_t k = 0; k < channels; k++)
            for (int64_t i = 0; i < count; i++) result[k * to.stride_c + target[i]] = tile[i * kRow + k];
      }
    }
    settle();
  });
}

}  // namespace dpc
