// The CUDA kernels as a library of the CPU: launch_KIND(kernel, grid, block, arguments), maps and taps by address.
#include "cuda_on_cpu.h"

#include "depthwise.cu"
#include "normalise.cu"

namespace {

template <class... Parameters, class... Given>
void run(void (*kernel)(Parameters...), const unsigned* grid, const unsigned* block, const Given&... given) {
  launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, [=] { kernel(given...); });
}

}  // namespace

extern "C" {

typedef const unsigned* Sizes;

void launch_depthwise(decltype(dpc_depthwise_fp32_1)* kernel, Sizes grid, Sizes block, const Map* x, const Map* y,
                      const TapList* taps, const float* weight, const float* bias, float floor, int add) {
  run(kernel, grid, block, *x, *y, *taps, weight, bias, floor, add);
}

void launch_depthwise_weight(decltype(dpc_depthwise_weight_fp32_1)* kernel, Sizes grid, Sizes block, const Map* g,
                             const Map* x, const TapList* taps, int share, float* partial) {
  run(kernel, grid, block, *g, *x, *taps, share, partial);
}

void launch_moments(decltype(dpc_moments_fp32_1)* kernel, Sizes grid, Sizes block, const Map* x, int share, double* mean,
                    double* deviations) {
  run(kernel, grid, block, *x, share, mean, deviations);
}

void launch_affine(decltype(dpc_affine_fp32_1)* kernel, Sizes grid, Sizes block, const Map* x, const float* scale,
                   const float* shift, float floor, const Map* y) {
  run(kernel, grid, block, *x, scale, shift, floor, *y);
}

void launch_gradient_sums(decltype(dpc_gradient_sums_fp32_1)* kernel, Sizes grid, Sizes block, const Map* one,
                          const Map* two, const Map* x, const float* scale, const float* shift, float floor,
                          const float* mean, const float* inverse, int share, float* partial) {
  run(kernel, grid, block, *one, two ? *two : Map{}, *x, scale, shift, floor, mean, inverse, share, partial);
}

void launch_affine_backward(decltype(dpc_affine_backward_fp32_1)* kernel, Sizes grid, Sizes block, const Map* g,
                            const Map* x, const float* a, const float* b, const float* mean, const float* constant) {
  run(kernel, grid, block, *g, *x, a, b, mean, constant);
}

void launch_total(decltype(dpc_total)* kernel, Sizes grid, Sizes block, const float* partial, int blocks, int64_t values,
                  float* total) {
  run(kernel, grid, block, partial, blocks, values, total);
}

void launch_moments_total(decltype(dpc_moments_total)* kernel, Sizes grid, Sizes block, const double* mean,
                          const double* deviations, int share, int64_t count, int64_t channels, float* to_mean,
                          float* to_variance) {
  run(kernel, grid, block, mean, deviations, share, count, channels, to_mean, to_variance);
}

}  // extern "C"
