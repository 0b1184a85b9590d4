// Passes of training: what lies between two batch normalisations is one pass, with their sums gathered on the way.
//
//   forward   d = depthwise(x), moments of d | p = pointwise(ReLU(norm d)), moments of p | y = ReLU(norm p)
//   backward  sums over y's gradient | pointwise and ReLU back, sums on the way | normalisation back | depthwise back
//
// A normalisation is given as scale and shift (y = scale x + shift), its gradient as three factors a channel:
// dx = a g + b (x - mean) + c, centred so that nothing cancels where the mean is far from 0.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "evaluation.h"
#include "turn.h"

namespace dpc {

// Mean and sum of squared deviations by channel, merged from blocks (Chan, Golub, LeVeque 1979): without cancellation.
struct Moments {
  int64_t count = 0;
  std::vector<double> mean, deviations;

  explicit Moments(int64_t channels) : mean(channels), deviations(channels) {}

  void merge(int64_t more, int64_t c, double other_mean, double other_deviations) {
    double total = double(count + more), delta = other_mean - mean[c];
    mean[c] += delta * (double(more) / total);
    deviations[c] += other_deviations + delta * delta * (double(count) * double(more) / total);
  }

  void merge(const Moments& other) {
    if (other.count == 0) return;
    for (size_t c = 0; c < mean.size(); c++) merge(other.count, int64_t(c), other.mean[c], other.deviations[c]);
    count += other.count;
  }

  // All of them together: the mean, and the mean of the squared deviations.
  static void write(const std::vector<Moments>& all, float* to_mean, float* to_variance) {
    Moments whole(int64_t(all[0].mean.size()));
    for (const Moments& one : all) whole.merge(one);
    for (size_t c = 0; c < whole.mean.size(); c++) {
      to_mean[c] = float(whole.mean[c]);
      to_variance[c] = float(whole.deviations[c] / double(std::max<int64_t>(whole.count, 1)));
    }
  }

  // `rows` positions of all channels, `step` apart.
  template <class T>
  void add(const T* from, int64_t step, int64_t rows) {
    const int64_t channels = int64_t(mean.size());
    each_vector(channels, [&](int64_t c, auto lanes) {
      // From the first row's value on, which is as near to the mean as the others are: one pass, and little cancels.
      const Vector first = lanes.load(from + c);
      Vector sum = {}, squares = {};
      for (int64_t i = 1; i < rows; i++) {
        Vector away = lanes.load(from + i * step + c) - first;
        sum += away;
        squares += away * away;
      }
      const Vector middle = first + sum / float(rows);
      const Vector deviations_here = squares - sum * sum / float(rows);
      for (int64_t k = 0; k < std::min<int64_t>(kLanes, channels - c); k++)
        merge(rows, c + k, middle[k], std::max(deviations_here[k], 0.0f));
    });
    count += rows;
  }
};

// What the training passes read a map as: matrices, so that a position's place needs no division.
template <class T>
T* row(const Map& map, int64_t position) {
  return static_cast<T*>(map.data) + position * map.stride_w;
}

constexpr int64_t kStatisticsBlock = 48;

inline Share block_range(int64_t block, int64_t size, int64_t count) {
  return {block * size, std::min((block + 1) * size, count)};
}

// A thread's share of positions, in whole tiles of a product: in blocks, one thread could have a block more to do.
inline Share share_of_tiles(int64_t count, int thread, int threads) {
  const Share mine = share((count + kRows - 1) / kRows, thread, threads);
  return {mine.first * kRows, std::min(mine.last * kRows, count)};
}

// Rows of a map that will be read when a product is done, for it to bring near.
template <class T>
class Reads {
 public:
  Ahead of(const Map& map, int64_t c, int64_t channels, const Share& range) {
    for (int64_t i = range.first; i < range.last; i++)
      rows_[i - range.first] = reinterpret_cast<const char*>(row<T>(map, i) + c);
    return {rows_, range.last - range.first, channels * int64_t(sizeof(T))};
  }

 private:
  const char* rows_[kBlock];
};

// B of a product, [depth, columns] or turned, [columns, depth], into panels; what is beyond the columns is 0.
inline void pack(const float* from, bool turned, int64_t depth, int64_t columns, float* to, int threads) {
  in_threads(threads, [&](int thread, int all) {
    const Share mine = share(padded(columns) / kTile, thread, all);
    for (int64_t p = mine.first; p < mine.last; p++) {
      const int64_t first = p * kTile, width = std::min(kTile, columns - first);
      float* panel = to + first * depth;
      if (width < kTile) std::fill_n(panel, depth * kTile, 0.0f);
      if (turned)
        turn(from + first * depth, depth, width, depth, panel, kTile);
      else
        for (int64_t k = 0; k < depth; k++) std::copy_n(from + k * columns + first, width, panel + k * kTile);
    }
  });
}

// y = depthwise(x), and the moments of y unless they are null.
template <class T>
void depthwise_forward(const Map& x, const Depthwise& conv, const Map& y, float* mean, float* variance, int threads) {
  const int64_t count = positions(x), blocks = (count + kStatisticsBlock - 1) / kStatisticsBlock;
  std::vector<Moments> moments(mean ? std::max(threads, 1) : 0, Moments(x.c));
  Layout layout;
  layout.floats(gathered(conv.taps.count, x.c));
  char* memory = static_cast<char*>(scratch(layout.bytes() * std::max(threads, 1)));
  in_threads(threads, [&](int thread, int all) {
    float* room = reinterpret_cast<float*>(memory + thread * layout.bytes());
    Share mine = share(blocks, thread, all);
    for (int64_t b = mine.first; b < mine.last; b++) {
      Share range = block_range(b, kStatisticsBlock, count);
      T* to = row<T>(y, range.first);
      convolve<T>(x, conv, 0, x.c, range.first, range.last - range.first, to, y.stride_w, room);
      if (mean) moments[thread].add(to, y.stride_w, range.last - range.first);
    }
  });
  if (mean) Moments::write(moments, mean, variance);
}

// A normalisation and ReLU on the way in: value = max(scale x + shift, floor); scale null means the map as it is.
struct Affine {
  const float* scale;
  const float* shift;
  float floor;
};

// Rows of a chunk of channels, `step` apart, or in panels of a product's B where `panel` is from one to the next.
struct Rows {
  float* data;
  int64_t step, panel;
  static Rows plain(float* data, int64_t step) { return {data, step, kTile}; }
  static Rows panels(float* data, int64_t count) { return {data, kTile, count * kTile}; }
  float* at(int64_t i, int64_t c) const { return data + c / kTile * panel + i * step + c % kTile; }
};

template <class T>
void activate(const Map& x, const Affine& affine, int64_t c, int64_t channels, int64_t first, int64_t count, Rows to) {
  const Vector lowest = splat(affine.floor);
  for (int64_t i = 0; i < count; i++) {
    const T* from = row<T>(x, first + i) + c;
    if (affine.scale == nullptr)
      each_vector(channels, [&](int64_t k, auto lanes) {
        will_read(from + k + kAhead * x.stride_w);
        lanes.store(lanes.load(from + k), to.at(i, k));
      });
    else
      each_vector(channels, [&](int64_t k, auto lanes) {
        will_read(from + k + kAhead * x.stride_w);
        Vector value = lanes.load(from + k) * lanes.load(affine.scale + c + k) + lanes.load(affine.shift + c + k);
        lanes.store(clamp(value, lowest), to.at(i, k));
      });
  }
}

// p = pointwise(max(scale x + shift, floor)), and the moments of p. weight [filters, depth], fp32.
template <class T>
void pointwise_forward(const Map& x, const Affine& affine, const float* weight, const Map& p, float* mean,
                       float* variance, int threads) {
  const int64_t count = positions(x), chunk = depth_of_chunk(x.c), columns = padded(p.c);
  Layout layout;
  const int64_t a_at = layout.floats(kBlock * chunk), c_at = layout.floats(kBlock * columns);
  Layout common;
  common.floats(x.c * columns);
  char* memory = static_cast<char*>(scratch(common.bytes() + layout.bytes() * std::max(threads, 1)));
  float* packed = reinterpret_cast<float*>(memory);
  memory += common.bytes();
  pack(weight, true, x.c, p.c, packed, threads);
  std::vector<Moments> moments(mean ? std::max(threads, 1) : 0, Moments(p.c));
  in_threads(threads, [&](int thread, int all) {
    float* a = reinterpret_cast<float*>(memory + thread * layout.bytes() + a_at);
    float* c = reinterpret_cast<float*>(memory + thread * layout.bytes() + c_at);
    Reads<T> reads;
    const Share mine = share_of_tiles(count, thread, all);
    for (int64_t first = mine.first; first < mine.last; first += kBlock) {
      const Share range = {first, std::min(first + kBlock, mine.last)};
      const Share next = {range.last, std::min(range.last + kBlock, mine.last)};
      const int64_t rows = range.last - range.first;
      for (int64_t k = 0; k < x.c; k += chunk) {
        const int64_t depth = std::min(chunk, x.c - k);
        const float* left = a;
        int64_t left_row = depth;
        if (sizeof(T) == 4 && affine.scale == nullptr) {
          left = row<float>(x, range.first) + k;
          left_row = x.stride_w;
        } else {
          activate<T>(x, affine, k, depth, range.first, rows, Rows::plain(a, depth));
        }
        const bool last = k + chunk >= x.c;
        const int64_t then = last ? 0 : k + chunk;
        const Ahead ahead = reads.of(x, then, std::min(chunk, x.c - then), last ? next : range);
        multiply(rows, columns, depth, left, left_row, 1, packed + k * kTile, x.c * kTile, c, columns, k > 0, packed,
                 ahead);
      }
      for (int64_t i = 0; i < rows; i++) {
        T* to = row<T>(p, range.first + i);
        each_vector(p.c, [&](int64_t k, auto lanes) {
          will_write(to + k + kAhead * p.stride_w);
          lanes.store(lanes.load(c + i * columns + k), to + k);
        });
      }
      if (mean) moments[thread].add(row<T>(p, range.first), p.stride_w, rows);
    }
  });
  if (mean) Moments::write(moments, mean, variance);
}

// y = max(scale x + shift, floor).
template <class T>
void affine_forward(const Map& x, const Affine& affine, const Map& y, int threads) {
  const Vector lowest = splat(affine.floor);
  in_threads(threads, [&](int thread, int all) {
    Share mine = share(positions(x), thread, all);
    for (int64_t i = mine.first; i < mine.last; i++) {
      const T* from = row<T>(x, i);
      T* to = row<T>(y, i);
      each_vector(x.c, [&](int64_t k, auto lanes) {
        will_read(from + k + kAhead * x.stride_w);
        will_write(to + k + kAhead * y.stride_w);
        Vector value = lanes.load(from + k) * lanes.load(affine.scale + k) + lanes.load(affine.shift + k);
        lanes.store(clamp(value, lowest), to + k);
      });
    }
  });
}

// dx = a g + b (x - mean) + c by channel, in place of g.
template <class T>
void affine_backward(const Map& g, const Map& x, const float* a, const float* b, const float* mean, const float* c,
                     int threads) {
  in_threads(threads, [&](int thread, int all) {
    Share mine = share(positions(g), thread, all);
    for (int64_t i = mine.first; i < mine.last; i++) {
      T* gradient = row<T>(g, i);
      const T* value = row<T>(x, i);
      each_vector(g.c, [&](int64_t k, auto lanes) {
        Vector away = lanes.load(value + k) - lanes.load(mean + k);
        lanes.store(lanes.load(a + k) * lanes.load(gradient + k) + lanes.load(b + k) * away + lanes.load(c + k),
                    gradient + k);
      });
    }
  });
}

// Sums by channel of g and of g x_hat, where g has passed the ReLU and x_hat = (x - mean) * inverse.
class GradientSums {
 public:
  explicit GradientSums(int64_t channels) : plain_(channels), with_(channels) {}

  // A block's sums of channels [c, c + count).
  void add(int64_t c, int64_t count, const float* plain, const float* with) {
    for (int64_t k = 0; k < count; k++) {
      plain_[c + k] += plain[k];
      with_[c + k] += with[k];
    }
  }
  static void write(const std::vector<GradientSums>& all, float* plain, float* with) {
    for (size_t c = 0; c < all[0].plain_.size(); c++) {
      double plain_sum = 0, with_sum = 0;
      for (const GradientSums& one : all) {
        plain_sum += one.plain_[c];
        with_sum += one.with_[c];
      }
      plain[c] = float(plain_sum);
      with[c] = float(with_sum);
    }
  }

 private:
  std::vector<double> plain_, with_;
};

// The gradient that reaches a branch: from outside, from the branches that read it, or both.
template <class T>
struct Incoming {
  const Map* one;
  const Map* two;

  template <class Lanes>
  Vector at(int64_t position, int64_t c, Lanes lanes) const {
    const T* at = row<T>(*one, position) + c;
    will_read(at + kAhead * one->stride_w);
    Vector g = lanes.load(at);
    if (two == nullptr) return g;
    at = row<T>(*two, position) + c;
    will_read(at + kAhead * two->stride_w);
    return g + lanes.load(at);
  }
};

template <class T>
void gradient_sums(const Map& one, const Map* two, const Map& x, const Affine& affine, const float* mean,
                   const float* inverse, float* plain, float* with, int threads) {
  const int64_t count = positions(x), blocks = (count + kStatisticsBlock - 1) / kStatisticsBlock;
  const Incoming<T> incoming{&one, two};
  const Vector lowest = splat(affine.floor);
  std::vector<GradientSums> sums(std::max(threads, 1), GradientSums(x.c));
  in_threads(threads, [&](int thread, int all) {
    Share mine = share(blocks, thread, all);
    for (int64_t b = mine.first; b < mine.last; b++) {
      Share range = block_range(b, kStatisticsBlock, count);
      each_vector(x.c, [&](int64_t c, auto lanes) {
        const Vector scale = lanes.load(affine.scale + c), shift = lanes.load(affine.shift + c);
        const Vector middle = lanes.load(mean + c), unit = lanes.load(inverse + c);
        Vector s = {}, t = {};
        for (int64_t i = range.first; i < range.last; i++) {
          Vector value = lanes.load(row<T>(x, i) + c);
          Vector g = passed(incoming.at(i, c, lanes), value * scale + shift, lowest);
          s += g;
          t += g * ((value - middle) * unit);
        }
        float plain_lanes[kLanes], with_lanes[kLanes];
        store(s, plain_lanes);
        store(t, with_lanes);
        sums[thread].add(c, std::min<int64_t>(kLanes, x.c - c), plain_lanes, with_lanes);
      });
    }
  });
  GradientSums::write(sums, plain, with);
}

// A normalisation of such mean and variance: inverse is 1 / sqrt(variance + epsilon), and y = scale x + shift. Where the
// statistics are those of a single value it is its own mean: inverse is 0, and not what is left of rounding it.
inline void normalisation(int64_t channels, const float* mean, const float* variance, const float* weight,
                          const float* bias, float epsilon, bool single, float* inverse, float* scale, float* shift) {
  for (int64_t c = 0; c < channels; c++) {
    inverse[c] = single ? 0.0f : 1.0f / std::sqrt(variance[c] + epsilon);
    scale[c] = weight[c] * inverse[c];
    shift[c] = bias[c] - mean[c] * scale[c];
  }
}

// The factors b and c of its gradient, from the sums of g and g x_hat over `count` positions.
inline void normalisation_gradient(int64_t channels, const float* scale, const float* inverse, const float* plain,
                                   const float* with, int64_t count, float* b, float* c) {
  for (int64_t k = 0; k < channels; k++) {
    const float share = -scale[k] / float(count);
    b[k] = share * inverse[k] * with[k];
    c[k] = share * plain[k];
  }
}

// The normalisation after a product, backwards: dp = a g + b (p - mean) + c, where g has passed the ReLU of `affine`.
struct NormGradient {
  Affine affine;
  const float *a, *b, *mean, *c;
};

// Back through ReLU, normalisation and product: dx (+)= gradient of the product's input x, through x's own ReLU and
// times nothing else; dw [filters, depth] = gradient of the weight. weight [filters, depth], fp32. With `mean`, also the
// sums of the gradient that passed x's ReLU.
template <class T>
void pointwise_backward(const Map& one, const Map* two, const Map& p, const NormGradient& norm, const Map& x,
                        const Affine& before, const float* weight, const Map* dx, bool add,
                        float* dw, const float* mean, const float* inverse, float* plain, float* with, int threads) {
  const int64_t count = positions(x), tiles = (count + kRows - 1) / kRows;
  const int64_t chunk = depth_of_chunk(x.c), wide = padded(chunk), columns = padded(p.c) + 16, all_depth = padded(x.c);
  threads = int(std::min<int64_t>(std::max(threads, 1), std::max<int64_t>(tiles, 1)));
  Layout layout;
  const int64_t g_at = layout.floats(kBlock * columns), x_at = layout.floats(kBlock * wide);
  const int64_t dx_at = layout.floats(kBlock * wide), dw_at = layout.floats(p.c * all_depth);
  const int64_t total_at = layout.floats(2 * wide);
  Layout common;
  common.floats(p.c * all_depth);
  char* memory = static_cast<char*>(scratch(common.bytes() + layout.bytes() * threads));
  float* packed = reinterpret_cast<float*>(memory);
  memory += common.bytes();
  if (dx) pack(weight, false, p.c, x.c, packed, threads);
  const Incoming<T> incoming{&one, two};
  const Vector lowest = splat(norm.affine.floor), lowest_before = splat(before.floor);
  std::vector<GradientSums> sums(mean ? threads : 0, GradientSums(x.c));
  std::vector<char> begun(threads, 0);
  in_threads(threads, [&](int thread, int all) {
    char* own = memory + thread * layout.bytes();
    float *g = reinterpret_cast<float*>(own + g_at), *values = reinterpret_cast<float*>(own + x_at);
    float *gx = reinterpret_cast<float*>(own + dx_at), *gw = reinterpret_cast<float*>(own + dw_at);
    float* total = reinterpret_cast<float*>(own + total_at);
    Reads<T> reads_p, reads_x;
    const Share mine = share_of_tiles(count, thread, all);
    for (int64_t first = mine.first; first < mine.last; first += kBlock) {
      const Share range = {first, std::min(first + kBlock, mine.last)};
      const Share next = {range.last, std::min(range.last + kBlock, mine.last)};
      const int64_t rows = range.last - range.first;
      for (int64_t i = 0; i < rows; i++) {
        const T* at = row<T>(p, range.first + i);
        each_vector(p.c, [&](int64_t c, auto lanes) {
          will_read(at + c + kAhead * p.stride_w);
          Vector v = lanes.load(at + c);
          Vector after = v * lanes.load(norm.affine.scale + c) + lanes.load(norm.affine.shift + c);
          Vector passing = passed(incoming.at(range.first + i, c, lanes), after, lowest);
          Vector away = v - lanes.load(norm.mean + c);
          lanes.store(lanes.load(norm.a + c) * passing + lanes.load(norm.b + c) * away + lanes.load(norm.c + c),
                      g + i * columns + c);
        });
      }
      for (int64_t k = 0; k < x.c; k += chunk) {
        const int64_t depth = std::min(chunk, x.c - k), depth_row = padded(depth);
        const Rows value = Rows::panels(values, rows);
        if (depth_row != depth)  // what is multiplied by nothing must not be NaN
          std::fill_n(value.at(0, depth_row - kTile), rows * kTile, 0.0f);
        activate<T>(x, before, k, depth, range.first, rows, value);
        const bool last = k + chunk >= x.c;
        const int64_t then = last ? 0 : k + chunk;
        if (dw)
          multiply(p.c, depth_row, rows, g, 1, columns, values, rows * kTile, gw + k, all_depth, begun[thread] != 0,
                   packed + k * p.c, last ? reads_p.of(p, 0, p.c, next) : Ahead{});
        if (dx == nullptr) continue;
        multiply(rows, depth_row, p.c, g, columns, 1, packed + k * p.c, p.c * kTile, gx, depth_row, false, nullptr,
                 reads_x.of(x, then, std::min(chunk, x.c - then), last ? next : range));
        if (mean) std::fill_n(total, 2 * wide, 0.0f);
        for (int64_t i = 0; i < rows; i++) {
          const float* from = gx + i * depth_row;
          const T* at = row<T>(x, range.first + i) + k;
          T* to = row<T>(*dx, range.first + i) + k;
          each_vector(depth, [&](int64_t c, auto lanes) {
            Vector gradient = lanes.load(from + c);
            if (before.scale) gradient = passed(gradient, lanes.load(value.at(i, c)), lowest_before);
            will_write(to + c + kAhead * dx->stride_w);
            if (add) gradient += lanes.load(to + c);
            lanes.store(gradient, to + c);
            if (mean) {
              Vector unit = (lanes.load(at + c) - lanes.load(mean + k + c)) * lanes.load(inverse + k + c);
              store(load(total + c) + gradient, total + c);
              store(load(total + wide + c) + gradient * unit, total + wide + c);
            }
          });
        }
        if (mean) sums[thread].add(k, depth, total, total + wide);
      }
      begun[thread] = 1;
    }
  });
  if (mean) GradientSums::write(sums, plain, with);
  if (!dw) return;
  for (int64_t f = 0; f < p.c; f++)
    each_vector(x.c, [&](int64_t k, auto lanes) {
      Vector total = {};
      for (int t = 0; t < threads; t++)
        if (begun[t]) total += lanes.load(reinterpret_cast<float*>(memory + t * layout.bytes() + dw_at) + f * all_depth + k);
      lanes.store(total, dw + f * x.c + k);
    });
}

// dx (+)= gradient of a depthwise convolution's input, dw [taps, c] of its weight; either may be null.
template <class T>
void depthwise_backward(const Map& g, const Map& x, const Depthwise& conv, const Map* dx, bool add, float* dw,
                        int threads) {
  const int64_t taps = conv.taps.count, size = taps * g.c, count = positions(g);
  std::vector<int64_t> dy(taps), dx_offsets(taps);
  for (int64_t t = 0; t < taps; t++) {
    dy[t] = -conv.taps.dy[t];
    dx_offsets[t] = -conv.taps.dx[t];
  }
  Layout layout;
  const int64_t dw_at = layout.floats(dw ? size : 0), room_at = layout.floats(2 * gathered(kFewTaps, g.c));
  threads = std::max(threads, 1);
  char* memory = static_cast<char*>(scratch(layout.bytes() * threads));
  int started = 1;  // OpenMP may give fewer than it was asked for
  in_threads(threads, [&](int thread, int all) {
    if (thread == 0) started = all;
    char* own = memory + thread * layout.bytes();
    float* sums = dw ? reinterpret_cast<float*>(own + dw_at) : nullptr;
    if (sums) std::fill(sums, sums + size, 0.0f);
    Share mine = share(count, thread, all);
    // A run's sums are added up, and then the runs': long sums lose digits.
    convolution_gradients<T>(g, x, conv, dx, add, sums, dy.data(), dx_offsets.data(), mine.first,
                             mine.last - mine.first, reinterpret_cast<float*>(own + room_at));
  });
  if (!dw) return;
  for (int64_t i = 0; i < size; i++) {
    dw[i] = 0;
    for (int t = 0; t < started; t++) dw[i] += reinterpret_cast<float*>(memory + t * layout.bytes() + dw_at)[i];
  }
}

}  // namespace dpc
