// Matrix products of a block that lies in the cache: C (+)= A B, in fp32, or of bf16 pairs where the processor has them.
//
// A may be read by rows or by columns, so that the gradient of a weight (A transposed) needs no copy. B is row-major with
// a row length that is a multiple of kColumns; the columns beyond the matrix are zeros. C is written in whole tiles.
#pragma once
#include "vector.h"

namespace dpc {

constexpr int64_t kColumns = 32;  // what rows of B and C are padded to

// Rows of a tile: as many as the registers hold, two vectors each, beside two of B and one of A.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
constexpr int kTile = 2 * kLanes;  // columns of a tile

// Memory that will be read after a product, brought near while the product computes, a few cache lines a tile: the
// product leaves the memory idle, and what follows would wait for it.
struct Ahead {
  const char* at = nullptr;
  int64_t row_bytes = 0, step = 0, rows = 0;  // bytes of a row, and from row to row
  int64_t lines = 0;                          // of a tile
  int64_t row = 0, done = 0;

  // For a product of so many tiles.
  void share(int64_t tiles) { lines = rows * ((row_bytes + 63) / 64) / (tiles > 0 ? tiles : 1) + 1; }

  void fetch() {
    for (int64_t i = 0; i < lines && row < rows; i++) {
      __builtin_prefetch(at + row * step + done, 0, 2);
      done += 64;
      if (done >= row_bytes) {
        done = 0;
        row++;
      }
    }
  }
};

inline int64_t padded(int64_t columns) { return (columns + kColumns - 1) / kColumns * kColumns; }

template <int Rows>
inline __attribute__((always_inline)) void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                                                const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  Vector sum[Rows][2];
  for (int i = 0; i < Rows; i++)
    for (int j = 0; j < 2; j++) sum[i][j] = add ? load(c + i * c_row + j * kLanes) : Vector{};
  for (int64_t k = 0; k < depth; k++) {
    Vector left = load(b + k * b_row), right = load(b + k * b_row + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; i++) {
      float factor = a[i * a_row + k * a_column];
      sum[i][0] += factor * left;
      sum[i][1] += factor * right;
    }
  }
  for (int i = 0; i < Rows; i++)
    for (int j = 0; j < 2; j++) store(sum[i][j], c + i * c_row + j * kLanes);
}

template <int Rows>
void last_tile(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b,
               int64_t b_row, float* c, int64_t c_row, bool add) {
  if (rows == Rows)
    tile<Rows>(depth, a, a_row, a_column, b, b_row, c, c_row, add);
  else if constexpr (Rows > 1)
    last_tile<Rows - 1>(rows, depth, a, a_row, a_column, b, b_row, c, c_row, add);
}

// C [rows, columns] (+)= A [rows, depth] B [depth, columns]; A's element (i, k) is a[i * a_row + k * a_column].
inline void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                     const float* b, int64_t b_row, float* c, int64_t c_row, bool add, Ahead ahead = {}) {
  ahead.share(rows / kRows * (columns / kTile));
  for (int64_t j = 0; j < columns; j += kTile) {
    int64_t i = 0;
    for (; i + kRows <= rows; i += kRows) {
      tile<kRows>(depth, a + i * a_row, a_row, a_column, b + j, b_row, c + i * c_row + j, c_row, add);
      ahead.fetch();
    }
    if (i < rows)
      last_tile<kRows - 1>(rows - i, depth, a + i * a_row, a_row, a_column, b + j, b_row, c + i * c_row + j, c_row, add);
  }
}

#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;

template <int Rows>
inline __attribute__((always_inline)) void pair_tile(int64_t pairs, const BFloat16* a, int64_t a_row,
                                                     const BFloat16* b, int64_t b_row, float* c, int64_t c_row,
                                                     bool add) {
  __m512 sum[Rows][2];
  for (int i = 0; i < Rows; i++)
    for (int j = 0; j < 2; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * c_row + j * 16) : _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; k++) {
    __m512bh left = (__m512bh)_mm512_loadu_si512(b + k * b_row), right = (__m512bh)_mm512_loadu_si512(b + k * b_row + 32);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; i++) {
      int32_t pair;
      std::memcpy(&pair, a + i * a_row + 2 * k, 4);
      __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], factor, left);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], factor, right);
    }
  }
  for (int i = 0; i < Rows; i++)
    for (int j = 0; j < 2; j++) _mm512_storeu_ps(c + i * c_row + j * 16, sum[i][j]);
}

template <int Rows>
void last_pair_tile(int64_t rows, int64_t pairs, const BFloat16* a, int64_t a_row, const BFloat16* b, int64_t b_row,
                    float* c, int64_t c_row, bool add) {
  if (rows == Rows)
    pair_tile<Rows>(pairs, a, a_row, b, b_row, c, c_row, add);
  else if constexpr (Rows > 1)
    last_pair_tile<Rows - 1>(rows, pairs, a, a_row, b, b_row, c, c_row, add);
}

// The same of bf16, summed in fp32. A [rows, 2 pairs] is row-major; B holds rows 2k and 2k + 1 side by side,
// [pairs, columns, 2], and b_row is the length of such a double row.
inline void multiply(int64_t rows, int64_t columns, int64_t pairs, const BFloat16* a, int64_t a_row, const BFloat16* b,
                     int64_t b_row, float* c, int64_t c_row, bool add, Ahead ahead = {}) {
  ahead.share(rows / kRows * (columns / 32));
  for (int64_t j = 0; j < columns; j += 32) {
    int64_t i = 0;
    for (; i + kRows <= rows; i += kRows) {
      pair_tile<kRows>(pairs, a + i * a_row, a_row, b + 2 * j, b_row, c + i * c_row + j, c_row, add);
      ahead.fetch();
    }
    if (i < rows)
      last_pair_tile<kRows - 1>(rows - i, pairs, a + i * a_row, a_row, b + 2 * j, b_row, c + i * c_row + j, c_row, add);
  }
}
#else
constexpr bool kHasPairs = false;
#endif

}  // namespace dpc
