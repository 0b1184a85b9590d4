// Cross-entropy of logits that are resized to their labels' size, bilinearly: the large logits are never stored.
//
// The pixels whose samples lie between the same four logits are a cell, and a block has one: its logits are in shared
// memory, a thread has a pixel, and the cell's gradients for its four logits are a product, [4, pixels] times [pixels,
// classes]. Another kernel adds up what the cells around a logit found for it.
#include "device.cuh"
#include "resize.h"

namespace dpc {

constexpr int kPixels = 256;  // of a block at once: as many as it has threads
constexpr int kClasses = 32;  // whose probabilities are in shared memory at once

struct CrossEntropy {
  Map logits;  // [n, h, w, classes], of any strides
  const void* labels;
  int32_t height, width, bytes, align_corners;
  int64_t ignored;
  const float* weights;
  const uint8_t* chosen;
  float* losses;   // [n, height, width], or null
  float* partial;  // [cells, 4, classes]: gradients of the corners, or null
  double* sums;    // [cells, 3]: of losses, labels that are not ignored, and those of them that are no class
};

// The first pixel of an axis that reads from logit i or a later one.
__device__ inline int first_of(int i, int in, int out, bool align_corners) {
  if (i >= in) return out;
  const float apart = align_corners ? (in > 1 ? float(out - 1) / float(in - 1) : float(out)) : float(out) / float(in);
  const float near = align_corners ? apart * float(i) : apart * (float(i) + 0.5f) - 0.5f;
  int p = near < 0 ? 0 : near > float(out) ? out : int(near);
  while (p > 0 && sample(p - 1, in, out, align_corners).low >= i) p--;
  while (p < out && sample(p, in, out, align_corners).low < i) p++;
  return p;
}

// Of a thread's pixel: its weight in the loss (0 if it has no part in it), its label, and where it is between the logits.
struct Pixel {
  float weight, down, along;
  int label;
};

__device__ inline float interpolate(const float* corner, int classes, int k, const Pixel& pixel) {
  const float above = corner[k] * (1 - pixel.along) + corner[classes + k] * pixel.along;
  const float below = corner[2 * classes + k] * (1 - pixel.along) + corner[3 * classes + k] * pixel.along;
  return above * (1 - pixel.down) + below * pixel.down;
}

// Grid: [cells]. Shared memory: 12 classes + kPixels (kClasses + 1) + 4 kPixels floats, and 3 kPixels doubles.
template <class T>
__device__ inline void find(const CrossEntropy& all) {
  const Map& map = all.logits;
  const int classes = int(map.c), h = int(map.h), w = int(map.w);
  const int column = blockIdx.x % w, row = blockIdx.x / w % h, n = blockIdx.x / w / h;
  double* sums = reinterpret_cast<double*>(shared_memory());
  float* corner = reinterpret_cast<float*>(sums + 3 * kPixels);
  float *found = corner + 4 * classes, *factor = found + 8 * classes, *probability = factor + 4 * kPixels;
  const int top = first_of(row, h, all.height, all.align_corners), bottom = first_of(row + 1, h, all.height, all.align_corners);
  const int left = first_of(column, w, all.width, all.align_corners), right = first_of(column + 1, w, all.width, all.align_corners);
  const int along = right - left, pixels = (bottom - top) * along, thread = threadIdx.x;
  for (int i = thread; i < 4 * classes; i += kPixels) {
    const int y = row + (i >= 2 * classes && row < h - 1), x = column + (i / classes % 2 && column < w - 1);
    corner[i] = widen(static_cast<const T*>(map.data)[offset(map, n, y, x) + i % classes * map.stride_c]);
  }
  for (int i = thread; i < 8 * classes; i += kPixels) found[i] = 0;
  double loss = 0, counted = 0, wrong = 0;
  __syncthreads();
  for (int begin = 0; begin < pixels; begin += kPixels) {
    Pixel pixel = {};
    float most = 0, share = 0;  // the largest logit, and 1 / the sum of what all are exp of above it
    if (begin + thread < pixels) {
      const int y = top + (begin + thread) / along, x = left + (begin + thread) % along;
      const int64_t at = (int64_t(n) * all.height + y) * all.width + x;
      pixel.down = sample(y, h, all.height, all.align_corners).weight;
      pixel.along = sample(x, w, all.width, all.align_corners).weight;
      const int64_t label = all.bytes == 1 ? static_cast<const uint8_t*>(all.labels)[at]
                                           : static_cast<const int64_t*>(all.labels)[at];
      const bool is_counted = label != all.ignored, is_class = label >= 0 && label < classes;
      counted += is_counted;
      wrong += is_counted && !is_class;
      const bool has_part = is_counted && is_class && (!all.chosen || all.chosen[at]);
      float mine = 0;
      if (has_part) {
        pixel.label = int(label);
        pixel.weight = all.weights ? all.weights[label] : 1.0f;
        most = interpolate(corner, classes, 0, pixel);
        for (int k = 1; k < classes; k++) {
          const float value = interpolate(corner, classes, k, pixel);
          most = value > most || value != value ? value : most;
        }
        float sum = 0;
        for (int k = 0; k < classes; k++) sum += expf(interpolate(corner, classes, k, pixel) - most);
        share = 1 / sum;
        mine = pixel.weight * (logf(sum) + most - interpolate(corner, classes, pixel.label, pixel));
      }
      loss += mine;
      if (all.losses) all.losses[at] = mine;
      if (!has_part) pixel.label = -1;
    } else {
      pixel.label = -1;
    }
    if (!all.partial) continue;
    factor[thread] = (1 - pixel.down) * (1 - pixel.along), factor[kPixels + thread] = (1 - pixel.down) * pixel.along;
    factor[2 * kPixels + thread] = pixel.down * (1 - pixel.along), factor[3 * kPixels + thread] = pixel.down * pixel.along;
    for (int first = 0; first < classes; first += kClasses) {
      const int here = classes - first < kClasses ? classes - first : kClasses;
      for (int k = 0; k < here; k++) {
        float slope = 0;
        if (pixel.label >= 0) {
          slope = expf(interpolate(corner, classes, first + k, pixel) - most) * share;
          slope = pixel.weight * (first + k == pixel.label ? slope - 1 : slope);
        }
        probability[thread * (kClasses + 1) + k] = slope;
      }
      __syncthreads();
      const int k = thread % kClasses, which = thread / kClasses % 4, half = thread / kClasses / 4;
      if (k < here) {
        float total = 0;
        for (int p = half * kPixels / 2; p < (half + 1) * kPixels / 2; p++)
          total += probability[p * (kClasses + 1) + k] * factor[which * kPixels + p];
        found[(half * 4 + which) * classes + first + k] += total;
      }
      __syncthreads();
    }
  }
  sums[thread] = loss, sums[kPixels + thread] = counted, sums[2 * kPixels + thread] = wrong;
  __syncthreads();
  if (all.partial)
    for (int i = thread; i < 4 * classes; i += kPixels)
      all.partial[int64_t(blockIdx.x) * 4 * classes + i] = found[i] + found[4 * classes + i];
  if (thread < 3) {
    double total = 0;
    for (int p = 0; p < kPixels; p++) total += sums[thread * kPixels + p];
    all.sums[int64_t(blockIdx.x) * 3 + thread] = total;
  }
}

}  // namespace dpc

using namespace dpc;

#define DPC_LOSS(Type, name) \
  DPC_KERNEL(kPixels) dpc_cross_entropy_##name(const __grid_constant__ CrossEntropy all) { find<Type>(all); }
DPC_LOSS(float, fp32)
DPC_LOSS(BFloat16, bf16)
DPC_LOSS(Float16, fp16)

// A logit's gradient: those that the cells around it found for it. Cells at the edge have a corner twice. A thread a value
// of [n, h, w, classes]; grid: [values / kPixels].
DPC_KERNEL(kPixels)
dpc_cross_entropy_gradient(const float* partial, int h, int w, int classes, int64_t values, float* gradient) {
  const int64_t i = int64_t(blockIdx.x) * kPixels + threadIdx.x;
  if (i >= values) return;
  const int k = int(i % classes), x = int(i / classes % w), y = int(i / classes / w % h);
  const int64_t image = i / classes / w / h * h;
  float total = 0;
  for (int row = y > 0 ? y - 1 : 0; row <= y; row++)
    for (int column = x > 0 ? x - 1 : 0; column <= x; column++)
      for (int which = 0; which < 4; which++) {
        const int to_y = row + (which >= 2 && row < h - 1), to_x = column + (which % 2 && column < w - 1);
        if (to_y == y && to_x == x) total += partial[(((image + row) * w + column) * 4 + which) * classes + k];
      }
  gradient[i] = total;
}

// The sums of all cells, in one block.
DPC_KERNEL(kPixels)
dpc_cross_entropy_sums(const double* cells, int64_t count, double* sums) {
  __shared__ double all[3][kPixels];
  double mine[3] = {};
  for (int64_t cell = threadIdx.x; cell < count; cell += kPixels)
    for (int i = 0; i < 3; i++) mine[i] += cells[cell * 3 + i];
  for (int i = 0; i < 3; i++) all[i][threadIdx.x] = mine[i];
  __syncthreads();
  if (threadIdx.x >= 3) return;
  double total = 0;
  for (int t = 0; t < kPixels; t++) total += all[threadIdx.x][t];
  sums[threadIdx.x] = total;
}
