// Average pooling over a grid and bilinear resize of a small map, and both backwards.
//
// A pooling, and the gradient of a resize, are sums over the positions that a cell has to do with: several blocks share a
// cell, and dpc_total adds up what they found. The two others are read, position by position, from the few cells that the
// position has to do with.
#include "device.cuh"
#include "resize.h"

namespace dpc {

// What joins the cells of a small map with the positions of a large one.
enum Relation : int32_t { kPooling = 0, kAlignedCorners = 1, kAlignedEdges = 2 };

// Along an axis, launches have less than 2^31 times as many cells as positions: 64 bits would be divided by a call.
struct Span {
  unsigned begin, end;
};

// Along one axis: at least the positions that cell i of `cells` has to do with, of `size`.
__device__ inline Span span(Relation relation, unsigned i, unsigned cells, unsigned size) {
  if (relation == kPooling) return {cell_begin(i, cells, size), cell_end(i, cells, size)};
  // Samples within a cell of i. One position more on either side makes up for rounding.
  const bool corners = relation == kAlignedCorners;
  const float apart = corners ? (cells > 1 ? float(size - 1) / float(cells - 1) : 0.0f) : float(size) / float(cells);
  const float middle = corners ? apart * float(i) : apart * (float(i) + 0.5f) - 0.5f;
  const float begin = middle - apart - 2, end = middle + apart + 3;
  return {i == 0 || begin < 0 ? 0 : unsigned(begin), i == cells - 1 || end > float(size) ? size : unsigned(end)};
}

// How much of position p is cell i's, along one axis.
__device__ inline float weight(Relation relation, int64_t i, int64_t cells, int64_t p, int64_t size) {
  if (relation == kPooling) return 1;
  const Sample at = sample(p, cells, size, relation == kAlignedCorners);
  return (at.low == i ? 1 - at.weight : 0.0f) + (at.high == i ? at.weight : 0.0f);
}

// A block's part of a cell's sum, of one map or of two, to partial[blockIdx.z]: [n, h, w, c] of the cells. Of a pooling, the
// mean. Grid: [cells of all images, channels / (kLanesX Count), blocks that share a cell's positions].
template <class T, int Count>
__device__ inline void gather(const Map& one, const Map& two, unsigned height, unsigned width, Relation relation,
                              unsigned share, float* partial) {
  const int64_t c = first_channel<Count>();
  const bool has_channels = c < one.c;
  const unsigned gx = blockIdx.x % width, gy = blockIdx.x / width % height, n = blockIdx.x / width / height;
  const Span rows = span(relation, gy, height, one.h), columns = span(relation, gx, width, one.w);
  const unsigned along = columns.end - columns.begin, area = (rows.end - rows.begin) * along;
  const unsigned begin = blockIdx.z * share, end = begin + share < area ? begin + share : area;
  float sum[Count] = {};
  for (unsigned q = begin + threadIdx.y; has_channels && q < end; q += kSumLanesY) {
    const Place at = {int(n), int(rows.begin + q / along), int(columns.begin + q % along)};
    const float of = weight(relation, gy, height, at.y, one.h) * weight(relation, gx, width, at.x, one.w);
    if (of == 0) continue;
    float value[Count], other[Count] = {};
    load_at<T, Count>(one, at, c, value);
    if (two.data) load_at<T, Count>(two, at, c, other);
#pragma unroll
    for (int i = 0; i < Count; i++) sum[i] += of * (value[i] + other[i]);
  }
  sum_lanes<Count>(sum);
  if (threadIdx.y > 0 || !has_channels) return;
  float* to = partial + (int64_t(blockIdx.z) * gridDim.x + blockIdx.x) * one.c + c;
  const float whole = relation == kPooling ? float(area) : 1.0f;
#pragma unroll
  for (int i = 0; i < Count; i++) to[i] = sum[i] / whole;
}

// y (+)= the bilinear resize of the cells, or the gradient of what was pooled to them. Cells: fp32.
template <class T, int Count, bool is_pooling>
__device__ inline void spread(const Map& cells, bool align_corners, const Map& y, bool add) {
  const int64_t c = first_channel<Count>();
  if (c >= y.c) return;
  const float* data = static_cast<const float*>(cells.data) + c;
  each_position<1>(y, [&](const Place& at) {
    float value[Count] = {};
    if (add) load_at<T, Count>(y, at, c, value);
    const auto take = [&](int64_t gy, int64_t gx, float of) {
      const float* cell = data + offset(cells, at.n, gy, gx);
#pragma unroll
      for (int i = 0; i < Count; i++) value[i] += of * cell[i];
    };
    if constexpr (is_pooling) {
      const unsigned h = unsigned(y.h), w = unsigned(y.w), gh = unsigned(cells.h), gw = unsigned(cells.w);
#pragma unroll 1
      for (unsigned gy = at.y * gh / h; gy < gh; gy++) {
        const Span rows = span(kPooling, gy, gh, h);
        if (rows.begin > unsigned(at.y)) break;
        if (rows.end <= unsigned(at.y)) continue;
#pragma unroll 1
        for (unsigned gx = at.x * gw / w; gx < gw; gx++) {
          const Span columns = span(kPooling, gx, gw, w);
          if (columns.begin > unsigned(at.x)) break;
          if (columns.end > unsigned(at.x))
            take(gy, gx, 1.0f / float((rows.end - rows.begin) * (columns.end - columns.begin)));
        }
      }
    } else {
      const Sample rows = sample(at.y, cells.h, y.h, align_corners);
      const Sample columns = sample(at.x, cells.w, y.w, align_corners);
      take(rows.low, columns.low, (1 - rows.weight) * (1 - columns.weight));
      take(rows.low, columns.high, (1 - rows.weight) * columns.weight);
      take(rows.high, columns.low, rows.weight * (1 - columns.weight));
      take(rows.high, columns.high, rows.weight * columns.weight);
    }
    store_at<T, Count>(value, y, at, c);
  });
}

}  // namespace dpc

using namespace dpc;

#define DPC_GRIDS(Type, name, Count)                                                                                  \
  DPC_KERNEL(kLanesX* kSumLanesY)                                                                                     \
  dpc_gather_##name##_##Count(Map one, Map two, int height, int width, int relation, int share, float* partial) {     \
    gather<Type, Count>(one, two, height, width, Relation(relation), share, partial);                                 \
  }                                                                                                                   \
  DPC_KERNEL(kLanesX* kLanesY) dpc_resize_##name##_##Count(Map cells, Map y, int align_corners) {                     \
    spread<Type, Count, false>(cells, align_corners != 0, y, false);                                                  \
  }                                                                                                                   \
  DPC_KERNEL(kLanesX* kLanesY) dpc_pool_backward_##name##_##Count(Map cells, Map y, int add) {                        \
    spread<Type, Count, true>(cells, false, y, add != 0);                                                             \
  }

DPC_EVERY_TYPE(DPC_GRIDS)
