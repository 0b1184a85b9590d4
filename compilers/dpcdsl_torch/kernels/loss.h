// Cross-entropy of logits that are resized to their labels' size, bilinearly: the large logits are never stored.
//
// The pixels whose samples lie between the same four logits are a cell. Within it, a row of pixels is a vector, and a class
// after the other is interpolated, so that a cell's softmax and its gradient need the four logits and nothing else. The
// gradient of each of the four is summed up over the cell, and those of a row of cells are kept apart until all are known:
// whatever thread has computed them, the sums come out the same.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "functions.h"
#include "parallel.h"
#include "resize.h"
#include "taps.h"
#include "vector.h"

namespace dpc {

struct CrossEntropy {
  Map logits;              // [n, h, w, classes]
  const void* labels;      // [n, height, width]: uint8, or int64
  int64_t height, width;
  int32_t bytes;           // of a label: 1 or 8
  int64_t ignored;         // the label that counts for nothing
  const float* weights;    // of the classes, or null
  const uint8_t* chosen;   // [n, height, width]: the pixels that count, or null for all
  int32_t align_corners;
  float* losses;           // [n, height, width], or null
  float* gradient;         // [n, h, w, classes]: of the sum, or null
  double* sums;            // the sum of the losses, how many labels are not ignored, and how many of these are no class
};

// What the pixels of an axis read, and where the pixels begin that read from one logit on.
struct Axis {
  std::vector<Sample> samples;
  std::vector<float> weights;  // of the samples
  std::vector<int64_t> begin;
  Axis(int64_t in, int64_t out, bool align_corners) : samples(out), weights(out), begin(in + 1, out) {
    for (int64_t i = out - 1; i >= 0; i--) {
      samples[i] = sample(i, in, out, align_corners);
      weights[i] = samples[i].weight;
      begin[samples[i].low] = i;
    }
    for (int64_t i = in - 1; i >= 0; i--) begin[i] = std::min(begin[i], begin[i + 1]);
  }
};

// One row of cells of one image.
template <class T>
class Cells {
 public:
  Cells(const CrossEntropy& all, const Axis& rows, const Axis& columns)
      : all_(all),
        rows_(rows),
        columns_(columns),
        classes_(all.logits.c),
        values_(classes_),
        sums_(4 * classes_),
        corner_(4 * classes_),
        side_(2 * classes_) {}

  // `upper` and `lower`, [w, classes], are added the gradients of the two rows of logits.
  void run(int64_t n, int64_t low, float* upper, float* lower, double* sums) {
    const int64_t first = rows_.begin[low], last = rows_.begin[low + 1];
    if (first == last) return;
    const int64_t high = rows_.samples[first].high;
    upper_ = upper, lower_ = lower;
    for (int64_t j = 0; j < all_.logits.w; j++) {
      const int64_t left = columns_.begin[j], right = columns_.begin[j + 1];
      if (left == right) continue;
      read(n, low, high, j, columns_.samples[left].high);
      std::fill(sums_.begin(), sums_.end(), Lanes{});
      for (int64_t y = first; y < last; y++) {
        lean(rows_.samples[y].weight);
        for (int64_t x = left; x < right; x += kLanes) pixels(n, y, x, std::min<int64_t>(kLanes, right - x), sums);
      }
      if (all_.gradient) leave(j, columns_.samples[left].high);
    }
  }

 private:
  void read(int64_t n, int64_t low, int64_t high, int64_t left, int64_t right) {
    const Map& map = all_.logits;
    const T* from = static_cast<const T*>(map.data);
    const int64_t at[] = {offset(map, n, low, left), offset(map, n, low, right), offset(map, n, high, left),
                          offset(map, n, high, right)};
    for (int i = 0; i < 4; i++)
      for (int64_t k = 0; k < classes_; k++) corner_[i * classes_ + k] = widen(from[at[i] + k * map.stride_c]);
  }

  // A row's logits at both ends: its left ones, and how far the right ones are from them.
  void lean(float down) {
    down_ = down;
    for (int64_t k = 0; k < classes_; k++) {
      const float left = corner_[k] * (1 - down) + corner_[2 * classes_ + k] * down;
      const float right = corner_[classes_ + k] * (1 - down) + corner_[3 * classes_ + k] * down;
      side_[k] = left, side_[classes_ + k] = right - left;
    }
  }

  // The classes of `count` pixels, -1 where one does not count. Returns whether any does.
  bool read_labels(int64_t at, int64_t count, int32_t* to, double* sums) const {
    int64_t given[kLanes];
    for (int64_t i = 0; i < count; i++)
      given[i] = all_.bytes == 1 ? static_cast<const uint8_t*>(all_.labels)[at + i]
                                 : static_cast<const int64_t*>(all_.labels)[at + i];
    int32_t meant = 0, strange = 0, counting = 0;  // a sum in memory would be waited for at every pixel
    for (int64_t i = 0; i < count; i++) {
      const bool is_meant = given[i] != all_.ignored, is_class = uint64_t(given[i]) < uint64_t(classes_);
      const bool counts = is_meant && is_class && (!all_.chosen || all_.chosen[at + i]);
      meant += is_meant, strange += is_meant && !is_class, counting += counts;
      to[i] = counts ? int32_t(given[i]) : -1;
    }
    std::fill(to + count, to + kLanes, -1);
    sums[1] += meant, sums[2] += strange;
    return counting != 0;
  }

  // Up to kLanes pixels of a row.
  void pixels(int64_t n, int64_t y, int64_t x, int64_t count, double* sums) {
    const int64_t at = (n * all_.height + y) * all_.width + x;
    int32_t label_lanes[kLanes];
    if (!read_labels(at, count, label_lanes, sums)) {
      if (all_.losses) std::fill_n(all_.losses + at, count, 0.0f);
      return;
    }
    float weight_lanes[kLanes] = {};
    for (int64_t i = 0; i < kLanes; i++)
      if (label_lanes[i] >= 0) weight_lanes[i] = all_.weights ? all_.weights[label_lanes[i]] : 1.0f;
    const Vector along = load(columns_.weights.data() + x, count), weight = load(weight_lanes);
    const Signs labels = *reinterpret_cast<const Signs*>(label_lanes);
    Vector most = splat(-std::numeric_limits<float>::infinity()), picked = {};
    for (int64_t k = 0; k < classes_; k++) {
      const Vector value = values_[k].of = splat(side_[k]) + splat(side_[classes_ + k]) * along;
      most = larger(most, value);
      picked = labels == int32_t(k) ? value : picked;
    }
    Vector sum = {};
    for (int64_t k = 0; k < classes_; k++) sum += values_[k].of = exponential(values_[k].of - most);
    float loss[kLanes];
    store(labels >= 0 ? (logarithm(sum) + most - picked) * weight : Vector{}, loss);
    double total = 0;
    for (int64_t i = 0; i < count; i++) total += loss[i];
    sums[0] += total;
    if (all_.losses) std::copy_n(loss, count, all_.losses + at);
    if (!all_.gradient) return;
    const Vector factor = weight / sum, below = splat(down_), above = splat(1 - down_);
    Lanes* to = sums_.data();
    for (int64_t k = 0; k < classes_; k++, to += 4) {
      const Vector whole = values_[k].of * factor - (labels == int32_t(k) ? weight : Vector{});
      const Vector on_right = whole * along, on_left = whole - on_right;
      to[0].of += on_left * above, to[1].of += on_right * above;
      to[2].of += on_left * below, to[3].of += on_right * below;
    }
  }

  void leave(int64_t left, int64_t right) {
    for (int64_t k = 0; k < classes_; k++) {
      float corner[4];
      for (int i = 0; i < 4; i++) {
        corner[i] = 0;
        for (int lane = 0; lane < kLanes; lane++) corner[i] += sums_[4 * k + i].of[lane];
      }
      upper_[left * classes_ + k] += corner[0], upper_[right * classes_ + k] += corner[1];
      lower_[left * classes_ + k] += corner[2], lower_[right * classes_ + k] += corner[3];
    }
  }

  const CrossEntropy& all_;
  const Axis &rows_, &columns_;
  const int64_t classes_;
  struct Lanes {
    Vector of;
  };
  std::vector<Lanes> values_, sums_;  // of the classes; of the gradients of the four corners, class by class
  std::vector<float> corner_, side_;
  float down_ = 0;
  float *upper_ = nullptr, *lower_ = nullptr;
};

template <class T>
void cross_entropy(const CrossEntropy& all, int threads) {
  const Map& map = all.logits;
  const Axis rows(map.h, all.height, all.align_corners), columns(map.w, all.width, all.align_corners);
  const int64_t row = map.w * map.c, tasks = map.n * map.h;
  // The gradients that a row of cells has for its upper and its lower row of logits; and its sums.
  std::vector<float> both(all.gradient ? 2 * tasks * row : 0);
  std::vector<double> sums(3 * tasks);
  std::vector<Cells<T>> workers(std::max(threads, 1), Cells<T>(all, rows, columns));
  in_threads(threads, [&](int thread, int among) {
    const Share mine = share(tasks, thread, among);
    for (int64_t task = mine.first; task < mine.last; task++) {
      float* upper = all.gradient ? both.data() + 2 * task * row : nullptr;
      workers[thread].run(task / map.h, task % map.h, upper, all.gradient ? upper + row : nullptr, sums.data() + 3 * task);
    }
  });
  std::fill_n(all.sums, 3, 0.0);
  for (int64_t task = 0; task < tasks; task++)
    for (int i = 0; i < 3; i++) all.sums[i] += sums[3 * task + i];
  if (!all.gradient) return;
  for (int64_t task = 0; task < tasks; task++) {
    const int64_t y = task % map.h;
    float* to = all.gradient + task * row;
    for (int64_t i = 0; i < row; i++) to[i] = both[2 * task * row + i];
    if (y > 0)
      for (int64_t i = 0; i < row; i++) to[i] += both[(2 * (task - 1) + 1) * row + i];
    if (y == map.h - 1)  // whose cells have no lower row but their own
      for (int64_t i = 0; i < row; i++) to[i] += both[(2 * task + 1) * row + i];
  }
}

}  // namespace dpc
