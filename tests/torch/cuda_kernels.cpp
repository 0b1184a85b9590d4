// The CUDA kernels as a library of the CPU, and their launches.
#include "cuda_on_cpu.h"

#include "depthwise.cu"

extern "C" {

typedef void Depthwise(Map, Map, const TapList, const float*, const float*, float, int);
void launch_depthwise(Depthwise* kernel, const unsigned* grid, const unsigned* block, const Map* x, const Map* y,
                      const TapList* taps, const float* weight, const float* bias, float floor, int add) {
  launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]},
         [=] { kernel(*x, *y, *taps, weight, bias, floor, add); });
}

typedef void DepthwiseWeight(Map, Map, const TapList, int, float*);
void launch_depthwise_weight(DepthwiseWeight* kernel, const unsigned* grid, const unsigned* block, const Map* g,
                             const Map* x, const TapList* taps, int share, float* partial) {
  launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, [=] { kernel(*g, *x, *taps, share, partial); });
}

void launch_total(const unsigned* grid, const unsigned* block, const float* partial, int shares, int64_t values,
                  float* total) {
  launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]},
         [=] { dpc_depthwise_weight_total(partial, shares, values, total); });
}

}  // extern "C"
