// Vectors of floats, and loads and stores that convert. GCC's vector extensions: one source for every instruction set.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace dpc {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Signs __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

struct BFloat16 {
  uint16_t bits;
};

inline Vector splat(float value) { return Vector{} + value; }

inline float widen(float value) { return value; }
inline float widen(BFloat16 value) {
  uint32_t word = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &word, 4);
  return result;
}

inline void narrow(float value, float* to) { *to = value; }
inline void narrow(float value, BFloat16* to) {  // to the nearest, ties to even, as torch rounds
  uint32_t word;
  std::memcpy(&word, &value, 4);
  to->bits = value != value ? uint16_t((word >> 16) | 0x40) : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline Vector load(const BFloat16* from) {
  Words words = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16;
  return reinterpret_cast<Vector&>(words);
}

inline void store(Vector value, float* to) { *reinterpret_cast<Vector*>(to) = value; }
inline void store(Vector value, BFloat16* to) {
  Words words = reinterpret_cast<Words&>(value);
  Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  Words quiet = (words >> 16) | 0x40;
  Signs is_nan = value != value;
  Words chosen = is_nan ? quiet : rounded;
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(chosen, Halves);
}

// The first `count` lanes only; the others read as 0.
template <class T>
inline Vector load(const T* from, int64_t count) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, from, count * sizeof(T));
  return load(lanes);
}
template <class T>
inline void store(Vector value, T* to, int64_t count) {
  T lanes[kLanes];
  store(value, lanes);
  std::memcpy(to, lanes, count * sizeof(T));
}

// Rows of a map are too far apart for the processor to see what comes next: it is told, some rows ahead. A wrong
// address is harmless.
constexpr int64_t kAhead = 6;
inline void will_read(const void* address) { __builtin_prefetch(address, 0, 3); }
inline void will_write(const void* address) { __builtin_prefetch(address, 1, 3); }

// Past the cache, for what is too large to stay there; `to` is aligned to a vector. Threads that pass on what they stored
// so call `settle` before.
inline void store_past(Vector value, float* to) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)value);
#elif defined(__AVX__)
  _mm256_stream_ps(to, (__m256)value);
#else
  store(value, to);
#endif
}
inline void settle() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}

// a where it is larger, else b: one instruction, which a compiler does not see in a comparison of vectors.
inline Vector larger(Vector a, Vector b) {
#if defined(__AVX512F__)
  return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (Vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// max(value, floor) that keeps NaN. A floor of minus infinity is no ReLU.
inline Vector clamp(Vector value, Vector floor) { return larger(floor, value); }
inline float clamp(float value, float floor) { return value < floor ? floor : value; }

// The gradient where the ReLU let its value through, as torch has it: value > 0, or NaN.
inline Vector passed(Vector gradient, Vector value, Vector floor) { return value <= floor ? Vector{} : gradient; }

// How much of a vector is meant: all of it, known when the loop is compiled, or its first lanes.
struct Whole {
  template <class T>
  Vector load(const T* from) const { return dpc::load(from); }
  template <class T>
  void store(Vector value, T* to) const { dpc::store(value, to); }
};
struct Part {
  int64_t count;
  template <class T>
  Vector load(const T* from) const { return dpc::load(from, count); }
  template <class T>
  void store(Vector value, T* to) const { dpc::store(value, to, count); }
};

// body(c, lanes) for every vector of `count` channels.
template <class Body>
inline __attribute__((always_inline)) void each_vector(int64_t count, Body body) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) body(c, Whole{});
  if (c < count) body(c, Part{count - c});
}

}  // namespace dpc
