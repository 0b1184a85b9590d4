// Index and tap logic of depthwise convolutions, without vectors or threads: what every device shares.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define DPC_SHARED __host__ __device__ inline
#else
#define DPC_SHARED inline
#endif

namespace dpc {

// A map [n, h, w, c] with its strides in elements. Channels have a stride too: kernels that need it to be 1 say so.
struct Map {
  void* data;
  int64_t n, h, w, c;
  int64_t stride_n, stride_h, stride_w, stride_c;
  int32_t type;  // Type below
};

enum Type : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

DPC_SHARED int64_t positions(const Map& map) { return map.n * map.h * map.w; }

DPC_SHARED int64_t offset(const Map& map, int64_t n, int64_t y, int64_t x) {
  return n * map.stride_n + y * map.stride_h + x * map.stride_w;
}

// Whether position p is at p * stride_w, so that a range of positions is one matrix.
DPC_SHARED bool is_matrix(const Map& map) {
  return (map.h == 1 || map.stride_h == map.w * map.stride_w) && (map.n == 1 || map.stride_n == map.h * map.stride_h);
}

// Where a kernel's taps lie: tap t reads (y + dy[t], x + dx[t]), and zero outside the map.
struct Taps {
  int64_t count;
  const int64_t* dy;
  const int64_t* dx;
};

DPC_SHARED bool in_row(int64_t tap_dy, int64_t y, int64_t h) { return y + tap_dy >= 0 && y + tap_dy < h; }

// For a tap whose row is inside: whether it is inside at column x, and up to which column that stays so.
DPC_SHARED bool in_column(int64_t tap_dx, int64_t x, int64_t w, int64_t* until) {
  int64_t at = x + tap_dx;
  if (at < 0) {
    if (-tap_dx < *until) *until = -tap_dx;
    return false;
  }
  if (at >= w) return false;
  if (w - tap_dx < *until) *until = w - tap_dx;
  return true;
}

}  // namespace dpc
