// Our matrix product beside oneDNN's brgemm, as torch exposes it, on blocks that lie in the cache.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "gemm.h"

namespace at::native::cpublas {
void brgemm(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, const float*, const float*, float*, bool);
}

using namespace dpc;

namespace {
constexpr int64_t kColumnsOfC = 256;

template <class Body>
double seconds(int threads, int calls, Body body) {
  double began = 0, took = 0;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> a(512 * 512, 1.0f), b(512 * 512, 1.0f), c(512 * 512, 0.0f), t(512 * 512, 0.0f);
    body(a.data(), b.data(), c.data(), t.data());
#pragma omp barrier
#pragma omp single
    began = omp_get_wtime();
    for (int i = 0; i < calls; i++) body(a.data(), b.data(), c.data(), t.data());
#pragma omp barrier
#pragma omp single
    took = omp_get_wtime() - began;
  }
  return took / calls;
}
}  // namespace

extern "C" {

// C [rows, 256] = A [rows, depth] B
double ours(int64_t rows, int64_t depth, int threads, int calls) {
  return seconds(threads, calls, [=](float* a, float* b, float* c, float*) {
    multiply(rows, kColumnsOfC, depth, a, depth, 1, b, depth * kTile, c, kColumnsOfC, false);
  });
}
double brgemm(int64_t rows, int64_t depth, int threads, int calls) {
  return seconds(threads, calls, [=](float* a, float* b, float* c, float*) {
    at::native::cpublas::brgemm(rows, kColumnsOfC, depth, depth, kColumnsOfC, kColumnsOfC, false, a, b, c, false);
  });
}
// C [rows, 256] += A^T B, A [depth, rows]: the gradient of a weight
double ours_transposed(int64_t rows, int64_t depth, int threads, int calls) {
  return seconds(threads, calls, [=](float* a, float* b, float* c, float*) {
    multiply(rows, kColumnsOfC, depth, a, 1, rows, b, depth * kTile, c, kColumnsOfC, true);
  });
}
double brgemm_transposed(int64_t rows, int64_t depth, int threads, int calls) {
  return seconds(threads, calls, [=](float* a, float* b, float* c, float* t) {
    for (int64_t i = 0; i < depth; i += 16)  // brgemm reads A by rows alone, so it is turned first
      for (int64_t j = 0; j < rows; j++)
        for (int64_t k = i; k < std::min(i + 16, depth); k++) t[j * depth + k] = a[k * rows + j];
    at::native::cpublas::brgemm(rows, kColumnsOfC, depth, depth, kColumnsOfC, kColumnsOfC, true, t, b, c, false);
  });
}
}
