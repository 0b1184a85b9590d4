// Branches in evaluation mode, fused: depthwise -> bias, ReLU -> pointwise -> bias, ReLU (-> projection), a block of
// positions at a time. What a branch computes on the way stays in the cache; only its result is written.
#pragma once
#include <algorithm>
#include <atomic>
#include <utility>

#include "depthwise.h"
#include "gemm.h"
#include "resize.h"
#include "turn.h"

namespace dpc {

struct Branch {
  Depthwise depthwise;      // taps.count is 0 where there is none
  const void* weight;       // in panels [depth, kTile], fp32; or [depth / 2, kTile, 2], bf16
  int64_t filters;
  const float* bias;        // [filters]
  float floor;
  Map y;                    // where the result goes; data is null if only the projection needs it
  const void* projection;   // as weight, from these filters to the projection's; null without
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
      each_vector(filters, [&](int64_t c, auto lanes) {
        Vector value = clamp(lanes.load(from + c) + (bias ? lanes.load(bias + c) : Vector{}), lowest);
        if (to) {
          will_write(to + (i + kAhead) * y->stride_w + c);
          lanes.store(value, to + i * y->stride_w + c);
        }
        if (keep) lanes.store(value, keep + c);
      });
    }
  });
}

// Rows of `sum` through the ReLU to a map whose channels lie apart.
template <class T>
void finish_apart(float* sum, int64_t row, float floor, const Map& y, int64_t first, int64_t count, int64_t filters) {
  const Vector lowest = splat(floor);
  for (int64_t i = 0; i < count * row; i += kLanes) store(clamp(load(sum + i), lowest), sum + i);
  each_run(y.h, y.w, Taps{0, nullptr, nullptr}, first, count, [&](const Run& run) {
    const float* from = sum + run.index * row;
    T* to = static_cast<T*>(y.data) + offset(y, run.n, run.y, run.x);
    if (y.stride_w == 1)
      turn(from, row, run.length, filters, to, y.stride_c);
    else
      for (int64_t c = 0; c < filters; c++)
        for (int64_t i = 0; i < run.length; i++) narrow(from[i * row + c], to + c * y.stride_c + i * y.stride_w);
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

// One product of a block: of a branch, over a chunk of the map's channels.
struct Stage {
  int64_t block, branch, channel;
};

// What one thread does, block by block. S is what the product is computed in: float, or BFloat16 in pairs.
template <class T, class S>
class Evaluation {
  static constexpr int64_t kMostReads = 1024, kMostCopied = 600;

 public:
  static constexpr int64_t kPair = sizeof(S) == 2 ? 2 : 1;

  Evaluation(const Map& x, int64_t branches, const Branch* branch, const Projection* projection)
      : x_(x), branches_(branches), branch_(branch), projection_(projection), count_(positions(x)),
        blocks_((count_ + kBlock - 1) / kBlock), chunk_(depth_of_chunk(x.c)),
        projected_(projection ? padded(projection->filters) : 0) {
    int64_t widest = 0, most_taps = 0;
    for (int64_t b = 0; b < branches; b++) {
      widest = std::max(widest, padded(branch[b].filters));
      most_taps = std::max(most_taps, branch[b].depthwise.taps.count);
    }
    a_at_ = layout_.floats(kBlock * (chunk_ + kLanes));
    c_at_ = layout_.floats(kBlock * widest);
    kept_at_ = layout_.floats(projection && kPair == 2 ? kBlock * widest : 0);
    sum_at_ = layout_.floats(kBlock * projected_);
    room_at_ = layout_.floats(gathered(most_taps, chunk_));
    near_at_ = layout_.floats(chunk_ < x.c ? 2 * kMostCopied * step_of(chunk_) : 0);
  }

  int64_t bytes() const { return layout_.bytes(); }

  // Blocks are taken from `next`, each by one thread, whoever is first: a block's result does not depend on who.
  void run(char* memory, std::atomic<int64_t>& next) {
    a_ = reinterpret_cast<S*>(memory + a_at_);
    c_ = reinterpret_cast<float*>(memory + c_at_);
    kept_ = reinterpret_cast<S*>(memory + kept_at_);
    sum_ = reinterpret_cast<float*>(memory + sum_at_);
    room_ = reinterpret_cast<float*>(memory + room_at_);
    near_ = reinterpret_cast<T*>(memory + near_at_);
    next_near_ = near_ + kMostCopied * step_of(chunk_);
    for (int64_t block = next++, following; block < blocks_; block = following) {
      following = next++;  // taken early, to know what comes after this one
      begin(block);
      for (int64_t b = 0; b < branches_; b++) {
        for (int64_t c = 0; c < x_.c; c += chunk_) {
          Stage then{block, b, c + chunk_};
          if (then.channel >= x_.c) then = {block, b + 1, 0};
          if (then.branch == branches_) then = {following, 0, 0};
          multiply_chunk({block, b, c}, then);
        }
        finish_branch(block, branch_[b]);
      }
      finish(block);
    }
  }

 private:
  int64_t rows_of(int64_t block) const { return std::min(kBlock, count_ - block * kBlock); }
  int64_t depth_of(const Stage& stage) const { return std::min(chunk_, x_.c - stage.channel); }
  static int64_t even(int64_t depth) { return depth + (kPair == 2 ? depth % 2 : 0); }

  // Whether the product reads the map, or its copy, as it lies.
  bool is_direct(const Stage& stage) const {
    return branch_[stage.branch].depthwise.taps.count == 0 && sizeof(T) == sizeof(S) && (copied_ || is_matrix(x_)) &&
           depth_of(stage) % kPair == 0;
  }

  // From one copied position to the next, an odd number of cache lines.
  static int64_t step_of(int64_t depth) { return depth + 64 / int64_t(sizeof(T)); }

  // Whether the reads of a stage are copied while the product before it computes. Where a position has more channels than
  // a chunk, what is read of a map lies in short pieces, often a page apart, which the caches do not keep.
  bool is_copied(const Stage& stage, int64_t reads) const {
    return chunk_ < x_.c && complete_ && 0 < reads && reads <= kMostCopied && depth_of(stage) * sizeof(T) % 64 == 0;
  }

  // The left side of a product that does not.
  void make(const Stage& stage) {
    const Depthwise& depthwise = branch_[stage.branch].depthwise;
    const int64_t first = stage.block * kBlock, rows = rows_of(stage.block), depth = depth_of(stage), row = even(depth);
    if (row != depth)  // half a pair more, which must not be NaN
      for (int64_t i = 0; i < rows; i++) narrow(0.0f, a_ + i * row + depth);
    const Copy<T> copy{near_, step_of(depth), columns_};
    if (depthwise.taps.count > 0)
      convolve<T>(x_, depthwise, stage.channel, depth, first, rows, a_, row, room_, copied_ ? &copy : nullptr);
    else if (copied_)
      copy_rows<T>(Map{near_, 1, 1, rows, depth, 0, 0, copy.step, 1, x_.type}, 0, depth, 0, rows, a_, row);
    else
      copy_rows<T>(x_, stage.channel, depth, first, rows, a_, row);
  }

  // Where the map's positions are that a stage reads: of each of its rows from the leftmost tap to the rightmost. Which of
  // them a row of a copy begins with goes to `columns_`. As many as there is room for.
  int64_t find_reads(const Stage& stage) {
    if (stage.block >= blocks_) return 0;
    const Taps& taps = branch_[stage.branch].depthwise.taps;
    const T* data = static_cast<const T*>(x_.data) + stage.channel;
    int64_t found = 0, rows = 0;
    auto add = [&](const Run& run, int64_t dy, int64_t left, int64_t right) {
      const int64_t begin = std::max<int64_t>(run.x + left, 0), end = std::min(run.x + run.length + right, x_.w);
      if (rows < kMostReads) columns_[rows] = found - begin;
      rows++;
      if (!in_row(dy, run.y, x_.h)) return;
      for (int64_t i = begin; i < end && found < kMostReads; i++)
        reads_[found++] = reinterpret_cast<const char*>(data + offset(x_, run.n, run.y + dy, i));
    };
    each_run(x_.h, x_.w, Taps{0, nullptr, nullptr}, stage.block * kBlock, rows_of(stage.block), [&](const Run& run) {
      if (taps.count == 0) add(run, 0, 0, 0);
      for (int64_t t = 0, last = 0; t < taps.count; t = last) {
        while (last < taps.count && taps.dy[last] == taps.dy[t]) last++;
        add(run, taps.dy[t], taps.dx[t], taps.dx[last - 1]);
      }
    });
    complete_ = found < kMostReads && rows <= kMostReads;
    return found;
  }

  // A chunk's product; meanwhile what the next one reads is brought near.
  void multiply_chunk(const Stage& stage, const Stage& then) {
    const Branch& op = branch_[stage.branch];
    const int64_t first = stage.block * kBlock, rows = rows_of(stage.block), columns = padded(op.filters);
    const int64_t depth = depth_of(stage), panel = even(x_.c) * kTile, panels = columns / kTile;
    const S *left = a_, *right = static_cast<const S*>(op.weight) + stage.channel * kTile, *then_right = nullptr;
    int64_t left_row = even(depth);
    if (!is_direct(stage)) {
      make(stage);
    } else if (copied_) {
      left = reinterpret_cast<const S*>(near_);
      left_row = step_of(depth);
    } else {
      left = static_cast<const S*>(x_.data) + first * x_.stride_w + stage.channel;
      left_row = x_.stride_w;
    }
    if (then.block < blocks_) then_right = static_cast<const S*>(branch_[then.branch].weight) + then.channel * kTile;
    const int64_t reads = find_reads(then), bytes = depth_of(then) * sizeof(T), step = step_of(depth_of(then)) * sizeof(T);
    copied_ = is_copied(then, reads);
    char* copy = copied_ ? reinterpret_cast<char*>(next_near_) : nullptr;
    for (int64_t p = 0; p < panels; p++, right += panel) {
      const int64_t from = reads * p / panels, to = reads * (p + 1) / panels;
      const S* next = p + 1 < panels ? right + panel : then_right;
      const Ahead ahead{reads_ + from, to - from, bytes, copy ? copy + from * step : nullptr, step};
      float* c = c_ + p * kTile;
      if constexpr (kPair == 1)
        multiply(rows, kTile, depth, left, left_row, 1, right, panel, c, columns, stage.channel > 0, next, ahead);
      else if constexpr (kHasPairs)
        multiply(rows, kTile, even(depth) / 2, left, left_row, right, panel, c, columns, stage.channel > 0, next,
                 ahead);
    }
    std::swap(near_, next_near_);
  }

  void begin(int64_t block) {
    if (projection_) begin_projection(*projection_, x_.h, x_.w, block * kBlock, rows_of(block), sum_);
  }

  // A branch's epilogue, and its part of the projection.
  void finish_branch(int64_t block, const Branch& op) {
    const int64_t first = block * kBlock, rows = rows_of(block), columns = padded(op.filters);
    const Map* y = op.y.data ? &op.y : nullptr;
    if (projection_ == nullptr || op.projection == nullptr) {
      finish_rows<T, float>(c_, columns, op.bias, op.floor, y, first, rows, op.filters, nullptr, 0);
    } else if constexpr (kPair == 1) {
      finish_rows<T, float>(c_, columns, op.bias, op.floor, y, first, rows, op.filters, c_, columns);
      multiply(rows, projected_, op.filters, c_, columns, 1, static_cast<const float*>(op.projection),
               op.filters * kTile, sum_, projected_, true);
    } else if constexpr (kHasPairs) {
      const int64_t row = even(op.filters);
      if (row != op.filters)
        for (int64_t i = 0; i < rows; i++) narrow(0.0f, kept_ + i * row + op.filters);
      finish_rows<T, S>(c_, columns, op.bias, op.floor, y, first, rows, op.filters, kept_, row);
      multiply(rows, projected_, row / 2, kept_, row, static_cast<const S*>(op.projection), row * kTile, sum_,
               projected_, true);
    }
  }

  void finish(int64_t block) {
    if (projection_ == nullptr) return;
    const Projection& p = *projection_;
    const int64_t first = block * kBlock, rows = rows_of(block);
    if (p.last && p.out.stride_c != 1)
      finish_apart<T>(sum_, projected_, p.floor, p.out, first, rows, p.filters);
    else if (p.last)
      finish_rows<T, float>(sum_, projected_, nullptr, p.floor, &p.out, first, rows, p.filters, nullptr, 0);
    else
      finish_rows<float, float>(sum_, projected_, nullptr, -__builtin_inff(), &p.sum, first, rows, p.filters, nullptr,
                                0);
  }

  const Map& x_;
  const int64_t branches_;
  const Branch* const branch_;
  const Projection* const projection_;
  const int64_t count_, blocks_, chunk_, projected_;
  Layout layout_;
  int64_t a_at_, c_at_, kept_at_, sum_at_, room_at_, near_at_;
  S *a_ = nullptr, *kept_ = nullptr;
  float *c_ = nullptr, *sum_ = nullptr, *room_ = nullptr;
  T *near_ = nullptr, *next_near_ = nullptr;
  const char* reads_[kMostReads];
  int64_t columns_[kMostReads];
  bool complete_ = false;  // whether all are there
  bool copied_ = false;    // of the stage that is due: whether `near_` has what it reads
};

template <class T, class S>
void evaluate(const Map& x, int64_t branches, const Branch* branch, const Projection* projection, int threads) {
  const Evaluation<T, S> plan(x, branches, branch, projection);
  char* memory = static_cast<char*>(scratch(plan.bytes() * std::max(threads, 1)));
  std::atomic<int64_t> next{0};
  in_threads(threads, [&](int thread, int) {
    Evaluation<T, S> own = plan;
    own.run(memory + thread * plan.bytes(), next);
  });
}

}  // namespace dpc
