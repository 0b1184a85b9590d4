// Products of a block of 256 threads, out of shared memory: [64, depth] times [depth, columns], added to fp32 sums.
//
// 16-bit numbers and TF32 go through the tensor cores (mma.sync, which every architecture from sm_80 has), fp32 through
// fused multiply-adds. A warp has all 64 rows and 8 kTiles columns; sum[i][j] is its tile of 16 x 8, of which a thread has,
// as mma.sync lays them out, rows g and g + 8 of columns 2 t and 2 t + 1: g = lane / 4, t = lane % 4.
#pragma once
#include "device.cuh"

namespace dpc {

#if defined(__CUDACC__)
__device__ inline uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

// 16 bytes from global to shared memory, which are there after wait_for_copies of what was committed; zeros if they do not
// exist.
__device__ inline void copy_async(void* to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(exists ? 16 : 0)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// Four matrices of 8 rows of 16 bytes; lane 8 j + i brings the address of row i of matrix j, and has of each matrix the word
// lane % 4 of row lane / 4. Turned: of 16-bit numbers, rows 2 (lane % 4) and the next of column lane / 4.
__device__ inline void load_matrices(const void* row, uint32_t (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices_turned(const void* row, uint32_t (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

#define DPC_MULTIPLY(Type, shape, type)                                                                               \
  template <>                                                                                                         \
  __device__ inline void multiply_fragments<Type>(float(&c)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) {    \
    asm("mma.sync.aligned." shape ".row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
        "{%0, %1, %2, %3};"                                                                                           \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                              \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                              \
  }
template <class T>
__device__ inline void multiply_fragments(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
DPC_MULTIPLY(BFloat16, "m16n8k16", "bf16")
DPC_MULTIPLY(Float16, "m16n8k16", "f16")
DPC_MULTIPLY(float, "m16n8k8", "tf32")

__device__ inline uint32_t to_tf32(uint32_t word) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(word)));
  return rounded;
}
#endif

// How numbers are multiplied.
enum Arithmetic { kFull, kTf32 };

constexpr int kThreads = 256;
constexpr int kRows = 64;
constexpr int kWarps = kThreads / 32;
constexpr int kStep = 32;        // bytes of depth that one mma.sync takes: 16 numbers of 16 bits, 8 of 32
constexpr int kChunkBytes = 64;  // of depth that a block takes at once
template <class T>
constexpr int kChunk = kChunkBytes / int(sizeof(T));

template <int number>
struct Whole {
  static constexpr int value = number;
};

template <int kTiles>
using Sums = float[kRows / 16][kTiles][4];

__device__ inline unsigned lane() { return threadIdx.x % 32; }
__device__ inline unsigned warp() { return threadIdx.x / 32; }

template <int Count>
__device__ inline void round_to_tf32(uint32_t (&words)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; i++) words[i] = to_tf32(words[i]);
}

// Of both, depth is contiguous: a[row], b[column] at strides of `stride` bytes. One step of kStep bytes.
template <class T, Arithmetic how, int kTiles>
__device__ inline void multiply_step(const unsigned char* a, const unsigned char* b, int stride, Sums<kTiles>& sum) {
  if constexpr (sizeof(T) == 4 && how == kFull) {
    const unsigned g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int k = 0; k < kStep; k += 8) {
      float of_a[kRows / 8][2];
#pragma unroll
      for (int i = 0; i < kRows / 8; i++) load<2>(reinterpret_cast<const float*>(a + (8 * i + g) * stride + k), of_a[i]);
#pragma unroll
      for (int j = 0; j < 2 * kTiles; j++) {
        float of_b[2];
        load<2>(reinterpret_cast<const float*>(b + (8 * (j / 2) + 2 * t + j % 2) * stride + k), of_b);
#pragma unroll
        for (int i = 0; i < kRows / 8; i++)
#pragma unroll
          for (int d = 0; d < 2; d++) sum[i / 2][j / 2][2 * (i % 2) + j % 2] += of_a[i][d] * of_b[d];
      }
    }
  } else {
    uint32_t of_b[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      uint32_t four[4];
      load_matrices(b + (8 * j + lane() % 8 + lane() / 16 * 8) * stride + lane() / 8 % 2 * 16, four);
      if constexpr (how == kTf32) round_to_tf32(four);
      of_b[j][0] = four[0], of_b[j][1] = four[1], of_b[j + 1][0] = four[2], of_b[j + 1][1] = four[3];
    }
#pragma unroll
    for (int i = 0; i < kRows / 16; i++) {
      uint32_t of_a[4];
      load_matrices(a + (16 * i + lane() % 16) * stride + lane() / 16 * 16, of_a);
      if constexpr (how == kTf32) round_to_tf32(of_a);
#pragma unroll
      for (int j = 0; j < kTiles; j++) multiply_fragments<T>(sum[i][j], of_a, of_b[j][0], of_b[j][1]);
    }
  }
}

// Of both, depth is not contiguous: a[depth][row], b[depth][column] at strides of `stride_a` and `stride_b` bytes.
template <class T, Arithmetic how, int kTiles>
__device__ inline void multiply_turned_step(const unsigned char* a, int stride_a, const unsigned char* b, int stride_b,
                                            Sums<kTiles>& sum) {
  const unsigned g = lane() / 4, t = lane() % 4;
  if constexpr (sizeof(T) == 4 && how == kFull) {
#pragma unroll
    for (int k = 0; k < kStep / 4; k++) {
      const float *of_a = reinterpret_cast<const float*>(a + k * stride_a) + g,
                  *of_b = reinterpret_cast<const float*>(b + k * stride_b) + 2 * t;
#pragma unroll
      for (int i = 0; i < kRows / 8; i++)
#pragma unroll
        for (int j = 0; j < 2 * kTiles; j++)
          sum[i / 2][j / 2][2 * (i % 2) + j % 2] += of_a[8 * i] * of_b[8 * (j / 2) + j % 2];
    }
  } else if constexpr (sizeof(T) == 4) {
    const auto word = [&](const unsigned char* from, int stride, unsigned k, unsigned at) {
      return *reinterpret_cast<const uint32_t*>(from + k * stride + 4 * at);
    };
    uint32_t of_b[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
      of_b[j][0] = word(b, stride_b, t, 8 * j + g), of_b[j][1] = word(b, stride_b, t + 4, 8 * j + g);
      round_to_tf32(of_b[j]);
    }
#pragma unroll
    for (int i = 0; i < kRows / 16; i++) {
      uint32_t of_a[4] = {word(a, stride_a, t, 16 * i + g), word(a, stride_a, t, 16 * i + 8 + g),
                          word(a, stride_a, t + 4, 16 * i + g), word(a, stride_a, t + 4, 16 * i + 8 + g)};
      round_to_tf32(of_a);
#pragma unroll
      for (int j = 0; j < kTiles; j++) multiply_fragments<T>(sum[i][j], of_a, of_b[j][0], of_b[j][1]);
    }
  } else {
    uint32_t of_b[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      uint32_t four[4];
      load_matrices_turned(b + (lane() % 8 + lane() / 8 % 2 * 8) * stride_b + 16 * j + lane() / 16 * 16, four);
      of_b[j][0] = four[0], of_b[j][1] = four[1], of_b[j + 1][0] = four[2], of_b[j + 1][1] = four[3];
    }
#pragma unroll
    for (int i = 0; i < kRows / 16; i++) {
      uint32_t of_a[4];
      load_matrices_turned(a + (lane() % 8 + lane() / 16 * 8) * stride_a + 32 * i + lane() / 8 % 2 * 16, of_a);
#pragma unroll
      for (int j = 0; j < kTiles; j++) multiply_fragments<T>(sum[i][j], of_a, of_b[j][0], of_b[j][1]);
    }
  }
}

}  // namespace dpc
