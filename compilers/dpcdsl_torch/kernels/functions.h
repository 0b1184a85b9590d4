// exp and log of vectors, to about the precision of fp32. After Cephes (Moshier): a power of two, times a polynomial.
#pragma once
#include "vector.h"

namespace dpc {

inline Vector as_vector(Words words) { return reinterpret_cast<Vector&>(words); }
inline Words as_words(Vector value) { return reinterpret_cast<Words&>(value); }

// exp of what is at most some 80. Below -87, where it would be no normal number, it is that of -87; NaN stays.
inline Vector exponential(Vector x) {
  x = larger(splat(-87.0f), x);
  const Vector scaled = x * 1.44269504088896341f + 12582912.0f;  // its whole part, in the last bits
  const Vector whole = scaled - 12582912.0f;
  const Vector rest = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Vector sum = splat(1.9875691500e-4f);
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  const Vector power = as_vector((as_words(scaled) + 127) << 23);
  return sum * power;
}

// log of positive normal numbers; infinity and NaN stay.
inline Vector logarithm(Vector x) {
  const Words words = as_words(x);
  Signs exponent = reinterpret_cast<const Signs&>(words);
  exponent = (exponent >> 23) - 126;
  Vector mantissa = as_vector((words & 0x007fffff) | 0x3f000000);  // from 1/2 to 1
  const Signs small = mantissa < 0.707106781186547524f;
  exponent = small ? exponent - 1 : exponent;
  mantissa = (small ? mantissa + mantissa : mantissa) - 1.0f;
  const Vector power = __builtin_convertvector(exponent, Vector), square = mantissa * mantissa;
  Vector sum = splat(7.0376836292e-2f);
  sum = sum * mantissa - 1.1514610310e-1f;
  sum = sum * mantissa + 1.1676998740e-1f;
  sum = sum * mantissa - 1.2420140846e-1f;
  sum = sum * mantissa + 1.4249322787e-1f;
  sum = sum * mantissa - 1.6668057665e-1f;
  sum = sum * mantissa + 2.0000714765e-1f;
  sum = sum * mantissa - 2.4999993993e-1f;
  sum = sum * mantissa + 3.3333331174e-1f;
  sum = sum * mantissa * square + power * -2.12194440e-4f - 0.5f * square;
  const Vector result = mantissa + sum + power * 0.693359375f;
  const Signs unusual = x - x != 0.0f;
  return unusual ? x : result;
}

}  // namespace dpc
