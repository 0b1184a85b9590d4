// The CUDA kernels as a library of the CPU that stands in for the CUDA driver: a launch takes the same arguments.
#include "cuda_on_cpu.h"

#include <cmath>

#include "depthwise.cu"
#include "grids.cu"
#include "loss.cu"
#include "normalise.cu"
#include "outer.cu"
#include "product.cu"

namespace {

template <class... Parameters, size_t... index>
void call(void (*kernel)(Parameters...), void** given, dim3 grid, dim3 block, size_t shared,
          std::index_sequence<index...>) {
  emulator::launch(grid, block, shared, [=] { kernel(*static_cast<std::remove_reference_t<Parameters>*>(given[index])...); });
}

template <auto kernel, class... Parameters>
void call_with(void (*)(Parameters...), void** given, dim3 grid, dim3 block, size_t shared) {
  call(kernel, given, grid, block, shared, std::index_sequence_for<Parameters...>());
}

template <auto kernel>
void run(void** given, dim3 grid, dim3 block, size_t shared) {
  call_with<kernel>(kernel, given, grid, block, shared);
}

struct Function {
  const char* name;
  void (*run)(void**, dim3, dim3, size_t);
};

#define ONE(name) {#name, run<name>},
#define TYPES(name) ONE(name##_fp32) ONE(name##_bf16) ONE(name##_fp16)
#define VECTORS(name) \
  ONE(name##_fp32_4) ONE(name##_fp32_1) ONE(name##_bf16_8) ONE(name##_bf16_1) ONE(name##_fp16_8) ONE(name##_fp16_1)
#define COLUMNS(name) ONE(name##_128) ONE(name##_256)

const Function kFunctions[] = {
    VECTORS(dpc_depthwise) VECTORS(dpc_depthwise_moments) VECTORS(dpc_depthwise_weight) VECTORS(dpc_gather)
    VECTORS(dpc_resize) VECTORS(dpc_pool_backward) VECTORS(dpc_moments) VECTORS(dpc_affine) VECTORS(dpc_gradient_sums) VECTORS(dpc_norm_gradient)
    VECTORS(dpc_affine_backward) TYPES(dpc_add_up) TYPES(dpc_cross_entropy) ONE(dpc_cross_entropy_gradient)
    ONE(dpc_cross_entropy_sums) ONE(dpc_total) ONE(dpc_moments_total) ONE(dpc_normalisation)
    ONE(dpc_normalisation_gradient) COLUMNS(dpc_product_fp32) COLUMNS(dpc_product_tf32) COLUMNS(dpc_product_bf16)
    COLUMNS(dpc_product_fp16)
    TYPES(dpc_outer) ONE(dpc_outer_tf32)};

}  // namespace

extern "C" {

const char* kernel_name(unsigned i) { return i < sizeof kFunctions / sizeof *kFunctions ? kFunctions[i].name : nullptr; }

int cuCtxGetCurrent(void** context) {
  *context = &emulator::turn;
  return 0;
}
int cuCtxSetCurrent(void* context) { return context == &emulator::turn ? 0 : 201; }  // CUDA_ERROR_INVALID_CONTEXT

int cuFuncLoad(const Function* function) { return function ? 0 : 1; }

int cuModuleLoadData(void** module, const void* image) {
  *module = const_cast<void*>(image);
  return 0;
}

int cuModuleGetFunction(const Function** function, void*, const char* name) {
  for (const Function& one : kFunctions)
    if (std::strcmp(one.name, name) == 0) {
      *function = &one;
      return 0;
    }
  return 500;  // CUDA_ERROR_NOT_FOUND
}

int cuFuncSetAttribute(const Function*, int attribute, int bytes) {
  return attribute == 8 && size_t(bytes) <= emulator::kShared ? 0 : 1;
}

int cuLaunchKernel(const Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void*, void** given, void**) {
  if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > 65535 || grid_z > 65535) return 1;
  if (shared > emulator::kShared) return 1;
  function->run(given, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared);
  return 0;
}

int cuGetErrorString(int error, const char** text) {
  *text = error == 500 ? "named symbol not found" : "invalid argument";
  return 0;
}

}  // extern "C"
