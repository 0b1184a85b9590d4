// Dropout: whether a value is kept is a hash of a seed and of its place in memory, so that any thread knows it, and the
// gradient's pass knows it again without a mask that would have to be stored.
#pragma once
#include "parallel.h"
#include "vector.h"

namespace dpc {

// A word of 32 bits for each place (the finalizer of MurmurHash3, twice, each time with half of the seed).
inline Words mixed(Words h) {
  h ^= h >> 16;
  h *= 0x85ebca6bu;
  h ^= h >> 13;
  h *= 0xc2b2ae35u;
  return h ^ (h >> 16);
}

// y = x / keep where 16 bits of the hash are below `kept`, of 65536, and else 0. Of 32 values in a row the i-th of the
// first 16 has the lower bits of word i, and the i-th of the others the upper ones, whatever the width of a vector is.
template <class T>
void dropout(const T* x, T* y, int64_t count, uint32_t kept, uint64_t seed, int threads) {
  constexpr int64_t kWords = 16, kGroup = 2 * kWords;
  const Vector scale = splat(65536.0f / float(kept));
  const uint32_t first = uint32_t(seed), second = uint32_t(seed >> 32);
  Words lanes;
  for (int i = 0; i < kLanes; i++) lanes[i] = uint32_t(i);
  in_threads(threads, [&](int thread, int all) {
    const Share mine = share((count + kGroup - 1) / kGroup, thread, all);
    for (int64_t group = mine.first; group < mine.last; group++)
      for (int64_t k = 0; k < kWords; k += kLanes) {
        const int64_t word = group * kWords + k;
        const Words places = lanes + uint32_t(word);
        const Words bits = mixed(mixed(places ^ first) + (second + uint32_t(word >> 32)));
        const auto pass = [&](int64_t at, Words draw) {
          const Signs keep = draw < kept;
          const int64_t left = count - at;
          if (left >= kLanes) {
            store(keep ? load(x + at) * scale : Vector{}, y + at);
          } else if (left > 0) {
            store(keep ? load(x + at, left) * scale : Vector{}, y + at, left);
          }
        };
        pass(group * kGroup + k, bits & 0xffffu);
        pass(group * kGroup + kWords + k, bits >> 16);
      }
  });
}

}  // namespace dpc
