// Matrix products of a block that lies in the cache: C (+)= A B, in fp32, or of bf16 pairs where the processor has them.
//
// A may be read by rows or by columns, so that the gradient of a weight (A transposed) needs no copy. B lies in panels of
// kTile columns, one panel after the other: a tile reads its panel from end to end, where rows of B as they are would be
// so far apart that they push each other out of L1. Columns beyond the matrix are zeros. C is written in whole tiles.
#pragma once
#include "vector.h"

namespace dpc {

// Rows of a tile: as many as the registers hold, two vectors each, beside two of B and one of A.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
constexpr int64_t kTile = 2 * kLanes;  // columns of a tile

// Memory that will be read after a product, brought near while the product computes, a few cache lines a tile: the
// product leaves the memory idle, and what follows would wait for it.
struct Ahead {
  const char* const* parts = nullptr;
  int64_t count = 0, bytes = 0;  // parts, and bytes of each
  char* to = nullptr;            // where the parts are copied to, whole lines, `step` bytes from one to the next; or null:
  int64_t step = 0;              // they are only fetched into the cache
  int64_t lines = 0;             // of a tile
  struct Place {
    int64_t part = 0, byte = 0;
  } asked = {}, copied = {};

  // For a product of so many tiles.
  void share(int64_t tiles) { lines = count * ((bytes + 63) / 64) / (tiles > 0 ? tiles : 1) + 1; }

  // Asks for the next lines, and copies those that the tile before asked for: they have come by now.
  void fetch() {
    copy();
    for (int64_t i = 0; i < lines && asked.part < count; i++) {
      const char* line = parts[asked.part] + asked.byte;
      if (to)
        __builtin_prefetch(line, 0, 3);
      else
        __builtin_prefetch(line, 0, 2);
      advance(asked);
    }
  }

  // Copies what is left.
  void finish() {
    asked = {count, 0};
    copy();
  }

  void advance(Place& place) const {
    place.byte += 64;
    if (place.byte >= bytes) place = {place.part + 1, 0};
  }
  void copy() {
    if (to == nullptr) return;
    for (; copied.part != asked.part || copied.byte != asked.byte; advance(copied))
      std::memcpy(to + copied.part * step + copied.byte, parts[copied.part] + copied.byte, 64);
  }
};

inline int64_t padded(int64_t columns) { return (columns + kTile - 1) / kTile * kTile; }

template <int Rows>
inline __attribute__((always_inline)) void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                                                const float* b, float* c, int64_t c_row, bool add) {
  Vector sum[Rows][2];
  for (int i = 0; i < Rows; i++)
    for (int j = 0; j < 2; j++) sum[i][j] = add ? load(c + i * c_row + j * kLanes) : Vector{};
  for (int64_t k = 0; k < depth; k++) {
    Vector left = load(b + k * kTile), right = load(b + k * kTile + kLanes);
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
void last_tile(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b, float* c,
               int64_t c_row, bool add) {
  if (rows == Rows)
    tile<Rows>(depth, a, a_row, a_column, b, c, c_row, add);
  else if constexpr (Rows > 1)
    last_tile<Rows - 1>(rows, depth, a, a_row, a_column, b, c, c_row, add);
}

// body(i, j) for the first row and column of every whole tile, then rest(i, j) for the rows that are left; on the way the
// panel that comes next, after the last one `then` if that is not null, and `ahead` are brought near.
template <class S, class Body, class Rest>
inline __attribute__((always_inline)) void each_tile(int64_t rows, int64_t columns, const S* b, int64_t panel,
                                                     int64_t panel_bytes, const S* then, Ahead ahead, Body body,
                                                     Rest rest) {
  const int64_t tiles = rows / kRows;
  ahead.share(tiles * (columns / kTile));
  for (int64_t j = 0; j < columns; j += kTile, b += panel) {
    const char* next_panel = reinterpret_cast<const char*>(j + kTile < columns ? b + panel : then);
    Ahead next{&next_panel, next_panel ? 1 : 0, panel_bytes};
    next.share(tiles);
    int64_t i = 0;
    for (; i + kRows <= rows; i += kRows) {
      next.fetch();
      ahead.fetch();
      body(i, j, b);
    }
    if (i < rows) rest(i, j, b);
  }
  ahead.finish();
}

// C [rows, columns] (+)= A [rows, depth] B [depth, columns]; A's element (i, k) is a[i * a_row + k * a_column]. `panel` is
// from one panel of B to the next, which is more than depth * kTile where only some rows of B are meant.
inline void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                     const float* b, int64_t panel, float* c, int64_t c_row, bool add, const float* then = nullptr,
                     Ahead ahead = {}) {
  each_tile(
      rows, columns, b, panel, depth * kTile * 4, then, ahead,
      [&](int64_t i, int64_t j, const float* at) {
        float* to = c + i * c_row + j;
        if (add)  // what is added to need not be near: the next tile's is asked for
          for (int64_t k = kRows; k < 2 * kRows; k++)
            for (int64_t lane = 0; lane < kTile; lane += 16) will_write(to + k * c_row + lane);
        tile<kRows>(depth, a + i * a_row, a_row, a_column, at, to, c_row, add);
      },
      [&](int64_t i, int64_t j, const float* at) {
        last_tile<kRows - 1>(rows - i, depth, a + i * a_row, a_row, a_column, at, c + i * c_row + j, c_row, add);
      });
}

#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;

template <int Rows>
inline __attribute__((always_inline)) void pair_tile(int64_t pairs, const BFloat16* a, int64_t a_row,
                                                     const BFloat16* b, float* c, int64_t c_row, bool add) {
  __m512 sum[Rows][2];
  for (int i = 0; i < Rows; i++)
    for (int j = 0; j < 2; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * c_row + j * 16) : _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; k++) {
    __m512bh left = (__m512bh)_mm512_loadu_si512(b + k * 64), right = (__m512bh)_mm512_loadu_si512(b + k * 64 + 32);
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
void last_pair_tile(int64_t rows, int64_t pairs, const BFloat16* a, int64_t a_row, const BFloat16* b, float* c,
                    int64_t c_row, bool add) {
  if (rows == Rows)
    pair_tile<Rows>(pairs, a, a_row, b, c, c_row, add);
  else if constexpr (Rows > 1)
    last_pair_tile<Rows - 1>(rows, pairs, a, a_row, b, c, c_row, add);
}

// The same of bf16, summed in fp32. A [rows, 2 pairs] is row-major; a row of a panel of B holds rows 2k and 2k + 1 side by
// side, [pairs, kTile, 2].
inline void multiply(int64_t rows, int64_t columns, int64_t pairs, const BFloat16* a, int64_t a_row, const BFloat16* b,
                     int64_t panel, float* c, int64_t c_row, bool add, const BFloat16* then = nullptr, Ahead ahead = {}) {
  each_tile(
      rows, columns, b, panel, pairs * kTile * 4, then, ahead,
      [&](int64_t i, int64_t j, const BFloat16* at) {
        pair_tile<kRows>(pairs, a + i * a_row, a_row, at, c + i * c_row + j, c_row, add);
      },
      [&](int64_t i, int64_t j, const BFloat16* at) {
        last_pair_tile<kRows - 1>(rows - i, pairs, a + i * a_row, a_row, at, c + i * c_row + j, c_row, add);
      });
}
#else
constexpr bool kHasPairs = false;
#endif

}  // namespace dpc
