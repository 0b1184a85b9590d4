// The 1x1 convolutions: the product of a map and a weight, what is computed on the way in (a depthwise convolution, or a
// normalisation, and a ReLU) and on the way out (bias, ReLU; what is added; moments; a gradient's ReLU and sums).
//
// A block has 64 positions and kColumns filters. Depth is taken in chunks of 64 bytes: while the chunk before is
// multiplied, the input's chunk is computed into shared memory, and the weight's is copied there. Several products of
// positions alike run in one launch, and one product may have several inputs, each with its own part of the weight: the
// concatenation that the parts belong to need not exist. Of few positions and much depth, several blocks share the depth
// of a product, and another kernel adds up what they found.
#include "matrix.cuh"
#include "resize.h"

namespace dpc {

constexpr int kMostParts = 8;   // inputs, products, or grids, in one launch
constexpr int kStride = 80;     // bytes between rows of shared memory: those of 8 rows are in different banks
constexpr int kBand = 16;       // rows that leave a block together
constexpr int kGroup = 4;       // filters of a thread then: registers are few while the sums are in them

// An input x of a product, and its part of the weight, [filters, depth] with 0 after the input's channels.
struct Source {
  Map x;
  const void* weight;
  int64_t depth;
  const float *scale, *shift;            // what is multiplied is max(scale x + shift, floor), if there is a scale,
  int32_t is_depthwise, first_tap, taps; // or that of a depthwise convolution
  const float *depthwise, *bias;
  float floor;
  int32_t aligned;  // to 16 bytes: all its channels, and the vectors
};

// A product, and what becomes of it: if its mask's scale x + shift is not positive, 0; then max(value + bias + more +
// grids, floor).
struct Target {
  Map y;  // fp32, or the type of the maps
  int32_t first_source, sources, first_grid, grids;
  const float* bias;
  Map more;  // if it has data: fp32, or the type of the maps
  Map mask;
  const float *mask_scale, *mask_shift;
  float floor;
  double *mean, *deviations;  // of what was stored, by block: [blocks, filters], if they are not null
  float* sums;                // of it, and of it times (mask - center) inverse: [blocks, 2, filters]
  const float *center, *inverse;
  int32_t aligned;  // to 16 bytes: y, more, mask and the vectors
};

struct Products {
  int32_t tiles;         // of filters in a product
  int32_t parts;         // tiles of all products
  int32_t share;         // chunks of a block
  int32_t align_corners;
  float* partial;        // [blocks that share, positions, filters], if several share the depth of the one product
  Source source[kMostParts];
  Target target[kMostParts];
  Map grid[kMostParts];
  int32_t dy[kMostTaps], dx[kMostTaps];
};

// What goes into the product: channels c .. c + Count of one position, 0 past the last.
template <class T, int Count>
__device__ inline void produce(const Products& all, const Source& source, const Place& at, int64_t c, float* value) {
  const Map& x = source.x;
  const int64_t left = x.c - c;
  const bool aligned = source.aligned;
  const T* from = static_cast<const T*>(x.data) + c;
  if (!source.is_depthwise) {
    load_some<Count>(from + offset(x, at.n, at.y, at.x), left, aligned, value);
    if (!source.scale) return;
    float scale[Count], shift[Count];
    load_some_floats<Count>(source.scale + c, left, aligned, scale);
    load_some_floats<Count>(source.shift + c, left, aligned, shift);
#pragma unroll
    for (int i = 0; i < Count; i++) value[i] = clamp(scale[i] * value[i] + shift[i], source.floor);
  } else {
    if (source.bias) load_some_floats<Count>(source.bias + c, left, aligned, value);
    for (int t = 0; t < source.taps; t++) {
      const int row = at.y + all.dy[source.first_tap + t], column = at.x + all.dx[source.first_tap + t];
      if (!is_inside(x, row, column)) continue;
      float weight[Count], tap[Count];
      load_some_floats<Count>(source.depthwise + t * x.c + c, left, aligned, weight);
      load_some<Count>(from + offset(x, at.n, row, column), left, aligned, tap);
#pragma unroll
      for (int i = 0; i < Count; i++) value[i] += weight[i] * tap[i];
    }
#pragma unroll
    for (int i = 0; i < Count; i++) value[i] = clamp(value[i], source.floor);
  }
}

// Where a block is in the depth of its product.
struct Cursor {
  int source, k;
};

template <class T>
__device__ inline int chunks(const Source& source) {
  return (int(source.x.c) + kChunk<T> - 1) / kChunk<T>;
}

// A column's running sums. Moments are taken from the first value (the pivot), so that nothing cancels.
struct Column {
  float pivot, one, two;
};

// A few filters of a position, on their way out: from their sums to what is stored, which `value` is then.
template <class T>
__device__ inline void finish(const Products& all, const Target& target, const Place& at, int64_t f, float (&value)[kGroup]) {
  const int64_t left = target.y.c - f;
  const bool aligned = target.aligned;
  float other[kGroup];
  if (target.mask_scale) {
    float scale[kGroup], shift[kGroup];
    load_some<kGroup>(static_cast<const T*>(target.mask.data) + offset(target.mask, at.n, at.y, at.x) + f, left, aligned, other);
    load_some_floats<kGroup>(target.mask_scale + f, left, aligned, scale);
    load_some_floats<kGroup>(target.mask_shift + f, left, aligned, shift);
#pragma unroll
    for (int i = 0; i < kGroup; i++)
      if (scale[i] * other[i] + shift[i] <= 0) value[i] = 0;
  }
  if (target.bias) {
    load_some_floats<kGroup>(target.bias + f, left, aligned, other);
#pragma unroll
    for (int i = 0; i < kGroup; i++) value[i] += other[i];
  }
  if (target.more.data) {
    const int64_t from = offset(target.more, at.n, at.y, at.x) + f;
    if (target.more.type == kFloat32)
      load_some<kGroup>(static_cast<const float*>(target.more.data) + from, left, aligned, other);
    else
      load_some<kGroup>(static_cast<const T*>(target.more.data) + from, left, aligned, other);
#pragma unroll
    for (int i = 0; i < kGroup; i++) value[i] += other[i];
  }
  for (int g = target.first_grid; g < target.first_grid + target.grids; g++) {
    const Map& grid = all.grid[g];
    const Sample rows = sample(at.y, grid.h, target.y.h, all.align_corners);
    const Sample columns = sample(at.x, grid.w, target.y.w, all.align_corners);
    const float* data = static_cast<const float*>(grid.data) + f;
    const float *a = data + offset(grid, at.n, rows.low, columns.low), *b = data + offset(grid, at.n, rows.low, columns.high);
    const float *c = data + offset(grid, at.n, rows.high, columns.low), *d = data + offset(grid, at.n, rows.high, columns.high);
#pragma unroll
    for (int i = 0; i < kGroup; i++) {
      if (i >= left) continue;
      const float above = a[i] * (1 - columns.weight) + b[i] * columns.weight;
      const float below = c[i] * (1 - columns.weight) + d[i] * columns.weight;
      value[i] += above * (1 - rows.weight) + below * rows.weight;
    }
  }
#pragma unroll
  for (int i = 0; i < kGroup; i++) value[i] = clamp(value[i], target.floor);
  const int64_t to = offset(target.y, at.n, at.y, at.x) + f;
  if (target.y.type == kFloat32) {
    store_some<kGroup>(value, static_cast<float*>(target.y.data) + to, left, aligned);
  } else {
    store_some<kGroup>(value, static_cast<T*>(target.y.data) + to, left, aligned);
#pragma unroll
    for (int i = 0; i < kGroup; i++) value[i] = rounded<T>(value[i]);
  }
}

// A block's tile on its way out, a band of rows after the other: put(band, tile) writes a band's sums to tile[row][column]
// (kColumns + 4 apart), by all threads.
template <class T, int kColumns, class Put>
__device__ inline void leave(const Products& all, const Target& target, unsigned first, int first_filter, float* tile,
                             Put put) {
  constexpr int kApart = kColumns + 4, kGroupsOfRow = kColumns / kGroup;
  const unsigned count = unsigned(positions(target.y));
  const int64_t column = first_filter + threadIdx.x;
  const bool sums_up = (target.mean || target.sums) && threadIdx.x < kColumns && column < target.y.c;
  Column sum = {};
  for (int band = 0; band < kRows / kBand; band++) {
    __syncthreads();
    put(band, tile);
    __syncthreads();
#pragma unroll 1
    for (int item = threadIdx.x; item < kBand * kGroupsOfRow; item += kThreads) {
      const int row = item / kGroupsOfRow, at = item % kGroupsOfRow * kGroup;
      const unsigned p = first + band * kBand + row;
      const int64_t f = first_filter + at;
      if (p >= count || f >= target.y.c) continue;
      float value[kGroup];
      load<kGroup>(tile + row * kApart + at, value);
      finish<T>(all, target, place(target.y, p), f, value);
      if (target.mean || target.sums) store<kGroup>(value, tile + row * kApart + at);
    }
    if (!target.mean && !target.sums) continue;
    __syncthreads();
    if (!sums_up) continue;
#pragma unroll 4
    for (int row = 0; row < kBand && first + band * kBand + row < count; row++) {
      const float value = tile[row * kApart + threadIdx.x];
      if (target.mean) {
        if (band == 0 && row == 0) sum.pivot = value;
        const float away = value - sum.pivot;
        sum.one += away, sum.two += away * away;
      } else {
        const Place at = place(target.y, first + band * kBand + row);
        const float x = widen(static_cast<const T*>(target.mask.data)[offset(target.mask, at.n, at.y, at.x) + column]);
        sum.one += value, sum.two += value * (x - target.center[column]);
      }
    }
  }
  if (!sums_up) return;
  const int64_t block = first / kRows, to = block * target.y.c + column;
  if (target.mean) {
    write_moments<1>(&sum.pivot, &sum.one, &sum.two, count - first < kRows ? count - first : kRows, to, target.mean,
                     target.deviations);
  } else {
    target.sums[to + block * target.y.c] = sum.one;
    target.sums[to + (block + 1) * target.y.c] = sum.two * target.inverse[column];
  }
}

// Grid: [positions / 64 * parts, 1, blocks that share a product's depth]. Parts side by side read the same positions.
template <class T, Arithmetic how, int kColumns>
__device__ inline void multiply(const Products& all) {
  constexpr int kTiles = kColumns / 8 / kWarps, kPieces = kChunkBytes / 16, kCount = kAccess<T>;
  constexpr int kStage = (kRows + kColumns) * kStride;
  const unsigned part = blockIdx.x % all.parts, block = blockIdx.x / all.parts;
  const Target& target = all.target[part / all.tiles];
  const int first_filter = part % all.tiles * kColumns;
  if (first_filter >= target.y.c) return;
  unsigned char* stages = shared_memory();

  const unsigned first = block * kRows, count = unsigned(positions(target.y));
  const int row = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
  const bool exists = first + row < count;
  const Place at = place(target.y, exists ? first + row : first);

  const auto fill = [&](unsigned char* stage, const Cursor& cursor) {
    const Source& source = all.source[cursor.source];
    const int k = cursor.k + piece * kCount, depth = int(source.depth);
    const T* weight = static_cast<const T*>(source.weight) + int64_t(first_filter + row) * depth + k;
#pragma unroll 1
    for (int f = row; f < kColumns; f += kThreads / kPieces, weight += kThreads / kPieces * depth) {
      const bool is_there = first_filter + f < target.y.c && k < depth;
      copy_async(stage + (kRows + f) * kStride + piece * 16, is_there ? weight : source.weight, is_there);
    }
    commit_copies();
    float value[kCount] = {};
    if (exists && k < source.x.c) produce<T, kCount>(all, source, at, k, value);
    Pack<T, kCount> pack;
#pragma unroll
    for (int i = 0; i < kCount; i++) narrow(value[i], &pack.value[i]);
    return pack;
  };
  const auto put_down = [&](const Pack<T, kCount>& pack, unsigned char* stage) {
    *reinterpret_cast<Pack<T, kCount>*>(stage + row * kStride + piece * 16) = pack;
  };
  const auto advance = [&](Cursor& cursor) {
    cursor.k += kChunk<T>;
    if (cursor.k >= all.source[cursor.source].x.c) cursor.source++, cursor.k = 0;
  };

  const int last_source = target.first_source + target.sources;
  Cursor cursor = {target.first_source, 0};
  int skip = blockIdx.z * all.share, mine = 0;
  for (int s = target.first_source; s < last_source; s++) mine += chunks<T>(all.source[s]);
  mine = mine - skip < all.share ? mine - skip : all.share;
  while (cursor.source < last_source && skip >= chunks<T>(all.source[cursor.source]))
    skip -= chunks<T>(all.source[cursor.source++]);
  cursor.k = skip * kChunk<T>;

  Sums<kTiles> sum = {};
  if (mine > 0) put_down(fill(stages, cursor), stages);
  for (int chunk = 0; chunk < mine; chunk++) {
    const unsigned char* stage = stages + chunk % 2 * kStage;
    wait_for_copies();
    __syncthreads();  // this chunk is there, and nobody reads the one before any more
    unsigned char* next = stages + (chunk + 1) % 2 * kStage;
    Pack<T, kCount> pack;
    if (chunk + 1 < mine) {
      advance(cursor);
      pack = fill(next, cursor);
    }
#pragma unroll
    for (int step = 0; step < kChunkBytes; step += kStep)
      multiply_step<T, how, kTiles>(stage + step, stage + (kRows + warp() * kTiles * 8) * kStride + step, kStride, sum);
    if (chunk + 1 < mine) put_down(pack, next);  // only now: what is loaded arrives while the tensor cores work
  }

  constexpr int kApart = kColumns + 4;
  float* tile = reinterpret_cast<float*>(stages);
  const auto put = [&](int band, float* tile) {
    const unsigned g = lane() / 4, column = warp() * kTiles * 8 + 2 * (lane() % 4);
#pragma unroll
    for (int i = 0; i < kRows / 16; i++) {
      if (i != band) continue;  // so that the sums stay in registers
#pragma unroll
      for (int j = 0; j < kTiles; j++)
#pragma unroll
        for (int d = 0; d < 4; d++) tile[(g + d / 2 * 8) * kApart + column + 8 * j + d % 2] = sum[i][j][d];
    }
  };
  if (!all.partial) {
    leave<T, kColumns>(all, target, first, first_filter, tile, put);
    return;
  }
  float* partial = all.partial + int64_t(blockIdx.z) * count * target.y.c;
  for (int band = 0; band < kRows / kBand; band++) {
    __syncthreads();
    put(band, tile);
    __syncthreads();
    for (int item = threadIdx.x; item < kBand * kColumns; item += kThreads) {
      const unsigned p = first + band * kBand + item / kColumns;
      const int64_t f = first_filter + item % kColumns;
      if (p < count && f < target.y.c) partial[p * target.y.c + f] = tile[item / kColumns * kApart + item % kColumns];
    }
  }
}

// What several blocks found for the one product, added up in their order. Grid: [positions / 64, tiles].
template <class T>
__device__ inline void add_up(const Products& all, int blocks) {
  constexpr int kColumns = 128;
  const Target& target = all.target[0];
  const unsigned first = blockIdx.x * kRows, count = unsigned(positions(target.y));
  const int first_filter = blockIdx.y * kColumns;
  leave<T, kColumns>(all, target, first, first_filter, reinterpret_cast<float*>(shared_memory()),
                     [&](int band, float* tile) {
                       for (int item = threadIdx.x; item < kBand * kColumns; item += kThreads) {
                         const unsigned p = first + band * kBand + item / kColumns;
                         const int64_t f = first_filter + item % kColumns;
                         float sum = 0;
                         if (p < count && f < target.y.c)
                           for (int b = 0; b < blocks; b++) sum += all.partial[(int64_t(b) * count + p) * target.y.c + f];
                         tile[item / kColumns * (kColumns + 4) + item % kColumns] = sum;
                       }
                     });
}

}  // namespace dpc

using namespace dpc;

#define DPC_PRODUCT(Type, how, name, kColumns)                                                      \
  extern "C" __global__ void __launch_bounds__(kThreads, 2)                                         \
      dpc_product_##name##_##kColumns(const __grid_constant__ Products all) {                       \
    multiply<Type, how, kColumns>(all);                                                             \
  }
#define DPC_PRODUCTS(Type, how, name) DPC_PRODUCT(Type, how, name, 256) DPC_PRODUCT(Type, how, name, 128)
DPC_PRODUCTS(float, kFull, fp32)
DPC_PRODUCTS(float, kTf32, tf32)
DPC_PRODUCTS(BFloat16, kFull, bf16)
DPC_PRODUCTS(Float16, kFull, fp16)

#define DPC_ADD_UP(Type, name)                                                                      \
  DPC_KERNEL(kThreads) dpc_add_up_##name(const __grid_constant__ Products all, int blocks) { add_up<Type>(all, blocks); }
DPC_ADD_UP(float, fp32)
DPC_ADD_UP(BFloat16, bf16)
DPC_ADD_UP(Float16, fp16)
