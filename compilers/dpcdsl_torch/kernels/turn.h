// A matrix turned: what lies by rows comes to lie by columns.
#pragma once
#include <type_traits>

#include "vector.h"

namespace dpc {

template <class T, class S>
inline void put(T from, S* to) {
  if constexpr (std::is_same_v<T, S>)
    *to = from;
  else
    narrow(widen(from), to);
}

// to[j * to_step + i] = from[i * from_step + j] for `rows` i and `columns` j.
template <class T, class S>
void turn(const T* from, int64_t from_step, int64_t rows, int64_t columns, S* to, int64_t to_step) {
  int64_t i = 0;
  if constexpr (sizeof(T) == 4 && sizeof(S) == 4) {
    typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
    typedef int32_t Order __attribute__((vector_size(16)));
    constexpr Order low{0, 4, 1, 5}, high{2, 6, 3, 7}, first{0, 1, 4, 5}, second{2, 3, 6, 7};
    for (; i + 4 <= rows; i += 4) {
      int64_t j = 0;
      for (; j + 4 <= columns; j += 4) {
        const T* at = from + i * from_step + j;
        S* out = to + j * to_step + i;
        const Four a = *reinterpret_cast<const Four*>(at), b = *reinterpret_cast<const Four*>(at + from_step);
        const Four c = *reinterpret_cast<const Four*>(at + 2 * from_step);
        const Four d = *reinterpret_cast<const Four*>(at + 3 * from_step);
        const Four ab = __builtin_shuffle(a, b, low), cd = __builtin_shuffle(c, d, low);
        const Four more_ab = __builtin_shuffle(a, b, high), more_cd = __builtin_shuffle(c, d, high);
        *reinterpret_cast<Four*>(out) = __builtin_shuffle(ab, cd, first);
        *reinterpret_cast<Four*>(out + to_step) = __builtin_shuffle(ab, cd, second);
        *reinterpret_cast<Four*>(out + 2 * to_step) = __builtin_shuffle(more_ab, more_cd, first);
        *reinterpret_cast<Four*>(out + 3 * to_step) = __builtin_shuffle(more_ab, more_cd, second);
      }
      for (; j < columns; j++)
        for (int64_t k = i; k < i + 4; k++) put(from[k * from_step + j], to + j * to_step + k);
    }
  }
  for (; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) put(from[i * from_step + j], to + j * to_step + i);
}

}  // namespace dpc
