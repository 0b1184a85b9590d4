// Where a bilinear resize reads, one axis at a time, by torch's formulas; and the cells of an adaptive pooling.
#pragma once
#include <cstdint>

#include "taps.h"

namespace dpc {

// Output i reads `low` and `high` with weights 1 - weight and weight.
struct Sample {
  int64_t low, high;
  float weight;
};

DPC_SHARED Sample sample(int64_t i, int64_t in, int64_t out, bool align_corners) {
  float source;
  if (align_corners) {
    float scale = out > 1 ? float(in - 1) / float(out - 1) : 0.0f;
    source = scale * float(i);
  } else {
    float scale = float(in) / float(out);
    source = scale * (float(i) + 0.5f) - 0.5f;
    if (source < 0) source = 0;
  }
  int64_t low = int64_t(source);
  if (low > in - 1) low = in - 1;
  float weight = source - float(low);
  if (weight < 0) weight = 0;
  if (weight > 1) weight = 1;
  return Sample{low, low + (low < in - 1 ? 1 : 0), weight};
}

// Cell i of `grid` covers [begin, end) of `size` positions; neighbours may overlap by one.
template <class Whole>
DPC_SHARED Whole cell_begin(Whole i, Whole grid, Whole size) {
  return i * size / grid;
}
template <class Whole>
DPC_SHARED Whole cell_end(Whole i, Whole grid, Whole size) {
  return ((i + 1) * size + grid - 1) / grid;
}

}  // namespace dpc
