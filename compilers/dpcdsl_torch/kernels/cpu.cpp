// The C interface of the CPU kernels. Every function returns 0, or 1 if there was no memory.
//
// Maps have channels that lie side by side (stride_c 1), unless it says otherwise. Nothing is checked here: the one
// caller, native.py, has checked shapes, types and strides.
#include "dropout.h"
#include "loss.h"
#include "pooling.h"
#include "training.h"

using namespace dpc;

namespace {

template <class Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// body(T{}) with T what the map holds.
template <class Body>
int typed(const Map& map, Body body) {
  return guarded([&] {
    if (map.type == kFloat32)
      body(float{});
    else
      body(BFloat16{});
  });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int dpc_has_pairs() { return kHasPairs; }

// Columns of a panel that a weight lies in.
int dpc_panel() { return kTile; }

// pairs: the weights are bf16 pairs, and the products are computed so.
int dpc_evaluate(const Map* x, int64_t branches, const Branch* branch, const Projection* projection, int pairs,
                 int threads) {
  return typed(*x, [&](auto element) {
    using T = decltype(element);
    if constexpr (kHasPairs && sizeof(T) == 2) {
      if (pairs) return evaluate<T, BFloat16>(*x, branches, branch, projection, threads);
    }
    evaluate<T, float>(*x, branches, branch, projection, threads);
  });
}

int dpc_depthwise(const Map* x, const Depthwise* conv, const Map* y, float* mean, float* variance, int threads) {
  return typed(*x, [&](auto element) {
    depthwise_forward<decltype(element)>(*x, *conv, *y, mean, variance, threads);
  });
}

int dpc_depthwise_backward(const Map* g, const Map* x, const Depthwise* conv, const Map* dx, int add, float* dw,
                           int threads) {
  return typed(*g, [&](auto element) {
    depthwise_backward<decltype(element)>(*g, *x, *conv, dx, add != 0, dw, threads);
  });
}

int dpc_pointwise(const Map* x, const Affine* before, const float* weight, const Map* p, float* mean, float* variance,
                  int threads) {
  return typed(*x, [&](auto element) {
    pointwise_forward<decltype(element)>(*x, *before, weight, *p, mean, variance, threads);
  });
}

int dpc_pointwise_backward(const Map* one, const Map* two, const Map* p, const NormGradient* norm, const Map* x,
                           const Affine* before, const float* weight, const Map* dx, int add, float* dw,
                           const float* mean, const float* inverse, float* plain, float* with, int threads) {
  return typed(*p, [&](auto element) {
    pointwise_backward<decltype(element)>(*one, two, *p, *norm, *x, *before, weight, dx, add != 0, dw, mean,
                                          inverse, plain, with, threads);
  });
}

int dpc_normalisation(int64_t channels, const float* mean, const float* variance, const float* weight,
                      const float* bias, float epsilon, int single, float* inverse, float* scale, float* shift, int) {
  normalisation(channels, mean, variance, weight, bias, epsilon, single != 0, inverse, scale, shift);
  return 0;
}

int dpc_normalisation_gradient(int64_t channels, const float* scale, const float* inverse, const float* plain,
                               const float* with, int64_t count, float* b, float* c, int) {
  normalisation_gradient(channels, scale, inverse, plain, with, count, b, c);
  return 0;
}

int dpc_affine(const Map* x, const Affine* affine, const Map* y, int threads) {
  return typed(*x, [&](auto element) { affine_forward<decltype(element)>(*x, *affine, *y, threads); });
}

int dpc_affine_backward(const Map* g, const Map* x, const float* a, const float* b, const float* mean, const float* c,
                        int threads) {
  return typed(*g, [&](auto element) { affine_backward<decltype(element)>(*g, *x, a, b, mean, c, threads); });
}

int dpc_gradient_sums(const Map* one, const Map* two, const Map* x, const Affine* affine, const float* mean,
                      const float* inverse, float* plain, float* with, int threads) {
  return typed(*x, [&](auto element) {
    gradient_sums<decltype(element)>(*one, two, *x, *affine, mean, inverse, plain, with, threads);
  });
}

int dpc_pool(const Map* x, const Map* to, int threads) {
  return typed(*x, [&](auto element) { pool<decltype(element)>(*x, *to, threads); });
}

int dpc_pool_backward(const Map* g, const Map* dx, int add, int threads) {
  return typed(*dx, [&](auto element) { pool_backward<decltype(element)>(*g, *dx, add != 0, threads); });
}

int dpc_resize(const Map* from, const Map* to, int align_corners, int threads) {
  return typed(*to, [&](auto element) { resize<decltype(element)>(*from, *to, align_corners != 0, threads); });
}

int dpc_resize_backward(const Map* one, const Map* two, const Map* to, int align_corners, int threads) {
  return typed(*one, [&](auto element) {
    resize_backward<decltype(element)>(*one, two, *to, align_corners != 0, threads);
  });
}

int dpc_cross_entropy(const CrossEntropy* all, int threads) {
  return typed(all->logits, [&](auto element) { cross_entropy<decltype(element)>(*all, threads); });
}

// x and y: `count` values side by side, of x's type; kept: of 65536.
int dpc_dropout(const void* x, void* y, int64_t count, int is_float32, int64_t kept, int64_t seed, int threads) {
  const auto run = [&](auto element) {
    using T = decltype(element);
    dropout(static_cast<const T*>(x), static_cast<T*>(y), count, uint32_t(kept), uint64_t(seed), threads);
  };
  return guarded([&] { is_float32 ? run(float{}) : run(BFloat16{}); });
}

int dpc_copy(const Map* from, const Map* to, int threads) {
  return typed(*from, [&](auto element) { copy_map<decltype(element)>(*from, *to, threads); });
}
}
#pragma GCC visibility pop
