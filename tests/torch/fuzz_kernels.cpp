// Every kernel of kernels/cpu.cpp on random arguments, against plain loops in double precision. Without torch, so that
// it can be compiled with sanitizers: test_sanitizers.py does.
//
//   fuzz_kernels SEED SECONDS      prints what it ran; stops at the first mistake with status 1
//
// Numbers are small multiples of powers of two: nearly everything is exact in fp32, no ReLU hangs on rounding, and what
// is compared is compared closely. Memory is of exactly the size that is needed, between red zones where there is a
// sanitizer. What lies between a map's rows and pixels, what is not written yet, and scratch of earlier calls are NaN:
// whoever reads it shows, and whoever writes it too.
#include <malloc.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

// Of OpenMP's threads, a thread sanitizer knows nothing, and takes every barrier for a race. With DPC_STD_THREADS the
// kernels run in the standard library's; and sometimes in fewer than they asked for, as OpenMP may do it too.
#ifdef DPC_STD_THREADS
#define in_threads in_omp_threads
#include "parallel.h"
#undef in_threads
namespace dpc {
int fewer_threads = 0;
template <class Body>
void in_threads(int threads, Body body) {
  const int all = std::max(threads - fewer_threads, 1);
  std::vector<std::thread> others;
  for (int thread = 1; thread < all; thread++) others.emplace_back([&body, thread, all] { body(thread, all); });
  body(0, all);
  for (std::thread& other : others) other.join();
}
}  // namespace dpc
#endif

#include "cpu.cpp"

namespace {

const float kNoFloor = -std::numeric_limits<float>::infinity();

std::mt19937_64 engine;
std::string what;  // the case that runs, to be told if it fails

int64_t number(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
bool chance(int percent) { return number(1, 100) <= percent; }

[[noreturn]] void fail(const std::string& why) {
  std::printf("MISTAKE: %s\n  in %s\n", why.c_str(), what.c_str());
  std::fflush(stdout);
  std::_Exit(1);
}

std::string text(std::initializer_list<int64_t> numbers) {
  std::string result;
  for (int64_t one : numbers) result += (result.empty() ? "" : " ") + std::to_string(one);
  return result;
}

void note(const char* name, int64_t value) { what += std::string(" ") + name + "=" + std::to_string(value); }

// Arrays of exactly their size, beginning where only their type demands it.

template <class T>
struct Array {
  std::unique_ptr<T[]> memory;
  int64_t size = 0;

  Array() = default;
  explicit Array(int64_t count) : memory(new T[count]), size(count) {
    std::memset(static_cast<void*>(memory.get()), 0xff, count * sizeof(T));  // NaN, of every type
  }
  T* data() const { return memory.get(); }
  T& operator[](int64_t i) const { return memory[i]; }
};

void put(double value, float* to) { *to = float(value); }
void put(double value, BFloat16* to) { narrow(float(value), to); }
double rounded(double value, bool bf16) {
  if (!bf16) return value;
  BFloat16 narrowed;
  narrow(float(value), &narrowed);
  return widen(narrowed);
}

// A vector of multiples of 1 / scale, up to `most` of them.
Array<float> vector(int64_t size, int64_t most, double scale, int64_t least) {
  Array<float> result(size);
  for (int64_t i = 0; i < size; i++) result[i] = float(number(least, most) / scale);
  return result;
}
Array<float> vector(int64_t size, int64_t most = 16, double scale = 8) { return vector(size, most, scale, -most); }

// A map as a kernel has it, and beside it its values as the reference has them: [n, h, w, c], dense.
struct Tensor {
  Map map{};
  Array<char> memory;
  Array<char> kept;  // the memory before a call
  std::vector<double> values;

  int64_t at(int64_t n, int64_t y, int64_t x, int64_t c) const { return ((n * map.h + y) * map.w + x) * map.c + c; }
  double get(int64_t n, int64_t y, int64_t x, int64_t c) const {
    const int64_t i = offset(map, n, y, x) + c * map.stride_c;
    return map.type == kFloat32 ? widen(static_cast<float*>(map.data)[i]) : widen(static_cast<BFloat16*>(map.data)[i]);
  }
  void set(int64_t n, int64_t y, int64_t x, int64_t c, double value) {
    const int64_t i = offset(map, n, y, x) + c * map.stride_c;
    if (map.type == kFloat32)
      put(value, static_cast<float*>(map.data) + i);
    else
      put(value, static_cast<BFloat16*>(map.data) + i);
  }
  template <class Body>
  void each(Body body) const {
    for (int64_t n = 0; n < map.n; n++)
      for (int64_t y = 0; y < map.h; y++)
        for (int64_t x = 0; x < map.w; x++)
          for (int64_t c = 0; c < map.c; c++) body(n, y, x, c);
  }
  // Whether a byte of memory belongs to the map.
  std::vector<bool> owned() const {
    std::vector<bool> own(memory.size, false);
    const int64_t size = map.type == kFloat32 ? 4 : 2, base = static_cast<char*>(map.data) - memory.data();
    each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
      const int64_t i = base + (offset(map, n, y, x) + c * map.stride_c) * size;
      for (int64_t b = 0; b < size; b++) own[i + b] = true;
    });
    return own;
  }
  void keep() {
    kept = Array<char>(memory.size);
    std::memcpy(kept.data(), memory.data(), memory.size);
  }
};

enum class Strides { any, side_by_side, matrix, dense };

// Without values: NaN, as the memory around it.
Tensor empty(int64_t n, int64_t h, int64_t w, int64_t c, int32_t type, Strides strides) {
  Tensor t;
  const int64_t sizes[4] = {n, h, w, c};
  int order[4] = {3, 2, 1, 0};  // from the innermost
  if (strides == Strides::any) std::shuffle(order, order + 4, engine);
  int64_t step[4], reach = 1;
  for (int i = 0; i < 4; i++) {
    const int axis = order[i];
    step[axis] = reach;
    int64_t gap = strides == Strides::dense || chance(60) ? 0 : number(1, 7);
    if (axis == 3 && i == 0 && strides != Strides::any && gap == 0 && strides != Strides::dense && chance(30)) gap = 16;
    if (strides == Strides::matrix && axis != 3) gap = 0;
    reach = reach * std::max<int64_t>(sizes[axis], 1) + (i < 3 ? gap : 0);
  }
  // As native.py does it: a dimension of size 1 has the stride that fits the others.
  if (w == 1) step[2] = h > 1 ? step[1] : n > 1 ? step[0] : c;
  if (h == 1) step[1] = w * step[2];
  if (n == 1) step[0] = h * step[1];
  if (c == 1) step[3] = 1;
  const int64_t before = strides == Strides::dense ? 0 : number(0, 3), size = type == kFloat32 ? 4 : 2;
  int64_t last = before;
  for (int axis = 0; axis < 4; axis++) last += (sizes[axis] - 1) * step[axis];
  t.memory = Array<char>(n == 0 ? 0 : (last + 1) * size);
  t.map = Map{t.memory.data() + (n == 0 ? 0 : before * size), n, h, w, c, step[0], step[1], step[2], step[3], type};
  t.values.assign(n * h * w * c, 0);
  t.keep();
  return t;
}

void fill(Tensor& t, int64_t most = 16, double scale = 8) {
  t.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    const double value = number(-most, most) / scale;
    t.values[t.at(n, y, x, c)] = value;
    t.set(n, y, x, c, value);
  });
  t.keep();
}

Tensor filled(int64_t n, int64_t h, int64_t w, int64_t c, int32_t type, Strides strides) {
  Tensor t = empty(n, h, w, c, type, strides);
  fill(t);
  return t;
}

// What was expected, and the sum of the absolute terms that it consists of: what an error is measured by.
struct Expected {
  std::vector<double> value, magnitude;
  explicit Expected(int64_t size) : value(size, 0.0), magnitude(size, 0.0) {}
  void add(int64_t i, double term) {
    value[i] += term;
    magnitude[i] += std::fabs(term);
  }
};

constexpr double kClose = 3e-6;   // of sums of fp32
constexpr double kSampled = 2e-5; // where bilinear weights come in

void compare(const char* name, int64_t i, double found, double expected, double error) {
  if (std::fabs(found - expected) <= error) return;
  fail(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(found) + ", expected " +
       std::to_string(expected) + " to " + std::to_string(error));
}

// The map holds what was expected, and what does not belong to it is as before. roundings: how often a bf16 value has
// been rounded.
void check(const char* name, const Tensor& t, const Expected& expected, double close = kClose, double roundings = 1) {
  const double rounding = t.map.type == kBFloat16 ? roundings / 256 : 0;
  t.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    const int64_t i = t.at(n, y, x, c);
    const double size = roundings > 1 ? expected.magnitude[i] : std::fabs(expected.value[i]);
    compare(name, i, t.get(n, y, x, c), expected.value[i], close * expected.magnitude[i] + rounding * size + 1e-30);
  });
  const std::vector<bool> own = t.owned();
  for (int64_t b = 0; b < t.memory.size; b++)
    if (!own[b] && t.memory[b] != t.kept[b]) fail(std::string(name) + ": written beside the map");
}

void unchanged(const char* name, const Tensor& t) {
  if (t.memory.size && std::memcmp(t.memory.data(), t.kept.data(), t.memory.size)) fail(std::string(name) + ": written");
}

template <class T>
void check(const char* name, const Array<T>& found, const Expected& expected, double close = kClose) {
  for (int64_t i = 0; i < found.size; i++)
    compare(name, i, double(found[i]), expected.value[i], close * expected.magnitude[i] + 1e-30);
}

// What earlier calls left in the scratch memory must not matter.
void spoil_scratch() {
  void* memory = scratch(1);
  std::memset(memory, 0xff, malloc_usable_size(memory));
}

void succeeded(int status) {
  if (status) fail("no memory");
}

// Arguments

struct Sizes {
  int64_t n, h, w, c, filters;
  int threads;
  int32_t type;
  bool bf16() const { return type == kBFloat16; }
};

int64_t channels() {
  const int64_t usual[] = {1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 80};
  return chance(50) ? usual[number(0, 15)] : number(1, 80);
}

Sizes sizes(const char* kernel, bool product) {
  Sizes s{number(0, 3), number(1, 25), number(1, 25), channels(), channels(), int(number(1, 3)), int32_t(number(0, 1))};
  if (chance(8)) s.c = chance(50) ? number(300, 700) : 16 * number(21, 44);
  if (product && chance(5)) s.filters = number(200, 400);
  const int64_t most = product ? 1500000 : 60000;  // the reference is slow
  while (s.n * s.h * s.w * s.c * (product ? s.filters : 1) > most) {
    if (s.n > 1)
      s.n--;
    else if (s.h >= s.w)
      s.h = (s.h + 1) / 2;
    else
      s.w = (s.w + 1) / 2;
    if (s.h == 1 && s.w == 1) break;
  }
  what = kernel;
  note("n", s.n), note("h", s.h), note("w", s.w), note("c", s.c), note("filters", s.filters);
  note("threads", s.threads), note("type", s.type);
  return s;
}

// Taps as SAME padding has them, sometimes not all, sometimes one that is outside every map.
struct Kernel {
  Array<int64_t> dy, dx;
  Taps taps() const { return Taps{dy.size, dy.data(), dx.data()}; }
};

Kernel kernel() {
  const int64_t kh = number(1, 5), kw = number(1, 5);
  const int64_t down = chance(50) ? number(1, 3) : number(1, 30), along = chance(50) ? number(1, 3) : number(1, 30);
  note("kh", kh), note("kw", kw), note("down", down), note("along", along);
  std::vector<int64_t> dy, dx;
  const bool some = chance(20);
  for (int64_t i = 0; i < kh; i++)
    for (int64_t j = 0; j < kw; j++) {
      if (some && !dy.empty() && chance(30)) continue;
      dy.push_back(i * down - (kh - 1) * down / 2);
      dx.push_back(j * along - (kw - 1) * along / 2);
    }
  if (chance(3)) dy = {int64_t(1) << 40}, dx = {0};
  Kernel k{Array<int64_t>(int64_t(dy.size())), Array<int64_t>(int64_t(dx.size()))};
  std::copy(dy.begin(), dy.end(), k.dy.data());
  std::copy(dx.begin(), dx.end(), k.dx.data());
  return k;
}

float floor_or_none(bool relu) { return relu ? 0.0f : kNoFloor; }
double clamped(double value, float floor) { return value < floor ? floor : value; }

bool inside(int64_t at, int64_t size) { return at >= 0 && at < size; }

// A weight of a product in panels, zeros beyond `filters`; fp32 or bf16 in pairs of rows. Values dense [depth, filters].
struct Product {
  Array<float> wide;
  Array<BFloat16> pairs;
  std::vector<double> values;
  const void* data() const { return wide.size ? static_cast<const void*>(wide.data()) : pairs.data(); }
};

Product product_weight(int64_t depth, int64_t filters, bool in_pairs) {
  Product p;
  const int64_t columns = padded(filters), rows = in_pairs ? depth + depth % 2 : depth;
  p.values.resize(depth * filters);
  for (double& value : p.values) value = double(number(-4, 4)) / 4;
  if (in_pairs) {
    p.pairs = Array<BFloat16>(rows * columns);
    std::memset(static_cast<void*>(p.pairs.data()), 0, p.pairs.size * 2);
  } else {
    p.wide = Array<float>(rows * columns);
    std::fill(p.wide.data(), p.wide.data() + p.wide.size, 0.0f);
  }
  for (int64_t k = 0; k < depth; k++)
    for (int64_t f = 0; f < filters; f++) {
      const int64_t panel = f / kTile * kTile * rows, column = f % kTile;
      if (in_pairs)
        put(p.values[k * filters + f], &p.pairs[panel + (k / 2 * kTile + column) * 2 + k % 2]);
      else
        p.wide[panel + k * kTile + column] = float(p.values[k * filters + f]);
    }
  return p;
}

// The values [rows, columns] of a product as training has them, or those turned.
Array<float> plain_weight(const Product& product, int64_t rows, int64_t columns, bool turned) {
  Array<float> plain(rows * columns);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++)
      plain[turned ? j * rows + i : i * columns + j] = float(product.values[i * columns + j]);
  return plain;
}

// The reference's convolution, with bias.
Expected convolved(const Tensor& x, const Kernel& k, const float* weight, const float* bias) {
  const Map& m = x.map;
  Expected e(m.n * m.h * m.w * m.c);
  x.each([&](int64_t n, int64_t y, int64_t xx, int64_t c) {
    const int64_t i = x.at(n, y, xx, c);
    if (bias) e.add(i, bias[c]);
    for (int64_t t = 0; t < k.dy.size; t++) {
      const int64_t sy = y + k.dy[t], sx = xx + k.dx[t];
      if (inside(sy, m.h) && inside(sx, m.w)) e.add(i, double(weight[t * m.c + c]) * x.values[x.at(n, sy, sx, c)]);
    }
  });
  return e;
}

struct Weights2 {
  int64_t low, high;
  double weight;
};
Weights2 bilinear(int64_t i, int64_t in, int64_t out, bool align_corners) {
  double source = align_corners ? (out > 1 ? double(in - 1) / double(out - 1) : 0) * double(i)
                                : std::max(0.0, double(in) / double(out) * (double(i) + 0.5) - 0.5);
  int64_t low = std::min(int64_t(source), in - 1);
  return {low, std::min(low + 1, in - 1), std::min(1.0, source - double(low))};
}

// body(y, x, factor) for the four places that a position of a resized map reads.
template <class Body>
void each_sample(int64_t y, int64_t x, int64_t gh, int64_t gw, int64_t h, int64_t w, bool align, Body body) {
  const Weights2 rows = bilinear(y, gh, h, align), columns = bilinear(x, gw, w, align);
  body(rows.low, columns.low, (1 - rows.weight) * (1 - columns.weight));
  body(rows.low, columns.high, (1 - rows.weight) * columns.weight);
  body(rows.high, columns.low, rows.weight * (1 - columns.weight));
  body(rows.high, columns.high, rows.weight * columns.weight);
}

// The kernels, one by one

void fuzz_evaluate() {
  const Sizes s = sizes("evaluate", true);
  const bool pairs = kHasPairs && s.bf16() && chance(70), align = chance(50), projecting = chance(60);
  const int64_t positions = s.n * s.h * s.w, out_filters = channels();
  const int count = projecting ? int(number(0, 3)) : int(number(1, 3));
  note("pairs", pairs), note("branches", count), note("projection", projecting ? out_filters : 0);
  Tensor x = filled(s.n, s.h, s.w, s.c, s.type, Strides::side_by_side);
  const bool first = chance(60), last = chance(60);

  std::vector<Kernel> kernels(count);
  std::vector<Array<float>> keep;
  std::vector<Product> products(count), parts(count);
  std::vector<Tensor> outs(count);
  std::vector<Expected> results;
  Array<Branch> branches(count);
  Expected total(positions * out_filters);
  for (int b = 0; b < count; b++) {
    const int64_t filters = b == 0 ? s.filters : number(1, 40);
    const bool separable = chance(60), projected = projecting && chance(80);
    Branch branch{};
    branch.depthwise.floor = kNoFloor;
    Expected input(positions * s.c);
    if (separable) {
      kernels[b] = kernel();
      keep.push_back(vector(kernels[b].dy.size * s.c, 4, 4));
      const float *weight = keep.back().data(), *bias = nullptr;
      if (chance(80)) keep.push_back(vector(s.c)), bias = keep.back().data();
      branch.depthwise = Depthwise{kernels[b].taps(), weight, bias, floor_or_none(chance(60))};
      input = convolved(x, kernels[b], weight, bias);
      for (double& value : input.value) value = rounded(clamped(value, branch.depthwise.floor), pairs);
    } else {
      input.value = x.values;
    }
    products[b] = product_weight(s.c, filters, pairs);
    branch.weight = products[b].data();
    branch.filters = filters;
    if (chance(80)) keep.push_back(vector(filters)), branch.bias = keep.back().data();
    branch.floor = floor_or_none(chance(60));
    Expected result(positions * filters);
    for (int64_t p = 0; p < positions; p++) {
      for (int64_t k = 0; k < s.c; k++)
        for (int64_t f = 0; f < filters; f++)
          result.add(p * filters + f, input.value[p * s.c + k] * products[b].values[k * filters + f]);
      for (int64_t f = 0; f < filters; f++) {
        if (branch.bias) result.add(p * filters + f, branch.bias[f]);
        result.value[p * filters + f] = clamped(result.value[p * filters + f], branch.floor);
      }
    }
    if (projected) {
      parts[b] = product_weight(filters, out_filters, pairs);
      branch.projection = parts[b].data();
      for (int64_t p = 0; p < positions; p++)
        for (int64_t k = 0; k < filters; k++)
          for (int64_t f = 0; f < out_filters; f++)
            total.add(p * out_filters + f,
                      rounded(result.value[p * filters + k], pairs) * parts[b].values[k * out_filters + f]);
    }
    if (!projected || chance(40)) {
      outs[b] = empty(s.n, s.h, s.w, filters, s.type, Strides::side_by_side);
      branch.y = outs[b].map;
    }
    results.push_back(std::move(result));
    branches[b] = branch;
  }

  Projection projection{};
  Tensor sum, out;
  std::vector<Tensor> grids(projecting ? number(0, 2) : 0);
  Array<Map> grid_maps(int64_t(grids.size()));
  Array<float> bias;
  if (projecting) {
    note("first", first), note("last", last), note("grids", int64_t(grids.size())), note("align", align);
    bias = vector(out_filters);
    out = empty(s.n, s.h, s.w, out_filters, s.type, chance(50) ? Strides::any : Strides::side_by_side);
    for (size_t g = 0; g < grids.size(); g++) {
      grids[g] = filled(s.n, number(1, 6), number(1, 6), out_filters, kFloat32, Strides::dense);
      grid_maps[int64_t(g)] = grids[g].map;
    }
    if (!(first && last)) sum = empty(s.n, s.h, s.w, out_filters, kFloat32, Strides::side_by_side);
    if (!first) fill(sum);
    projection = Projection{out_filters, bias.data(), floor_or_none(chance(70)), first,           last,
                            sum.map,     out.map,     grid_maps.size,            grid_maps.data(), align};
    out.each([&](int64_t n, int64_t y, int64_t xx, int64_t c) {
      const int64_t i = out.at(n, y, xx, c);
      total.add(i, first ? bias[c] : sum.values[i]);
      for (const Tensor& grid : grids)
        each_sample(y, xx, grid.map.h, grid.map.w, s.h, s.w, align, [&](int64_t gy, int64_t gx, double factor) {
          total.add(i, factor * grid.values[grid.at(n, gy, gx, c)]);
        });
      total.magnitude[i] += 2 * double(grids.size());  // a weight of 0 may come out as 1e-6
      if (last) total.value[i] = clamped(total.value[i], projection.floor);
    });
  }
  spoil_scratch();
  succeeded(dpc_evaluate(&x.map, count, branches.data(), projecting ? &projection : nullptr, pairs, s.threads));
  unchanged("x", x);
  for (int b = 0; b < count; b++)
    if (outs[b].map.data) check("y", outs[b], results[b]);
  const double close = grids.empty() ? kClose : kSampled;
  if (projecting && last) {
    check("out", out, total, close);
    if (!first) unchanged("sum", sum);
  } else if (projecting) {
    check("sum", sum, total, close);
    unchanged("out", out);
  }
}

// Mean and variance of what was written.
void check_moments(const Tensor& y, const Array<float>& mean, const Array<float>& variance) {
  const int64_t c = y.map.c, count = positions(y.map);
  for (int64_t k = 0; k < c; k++) {
    double sum = 0, magnitude = 0, squares = 0;
    const auto each = [&](auto body) {
      for (int64_t n = 0; n < y.map.n; n++)
        for (int64_t h = 0; h < y.map.h; h++)
          for (int64_t w = 0; w < y.map.w; w++) body(y.get(n, h, w, k));
    };
    each([&](double value) { sum += value, magnitude += std::fabs(value); });
    const double middle = count ? sum / double(count) : 0;
    each([&](double value) { squares += (value - middle) * (value - middle); });
    compare("mean", k, mean[k], middle, 1e-6 * (count ? magnitude / double(count) : 0) + 1e-30);
    const double size = double(std::max<int64_t>(count, 1));
    compare("variance", k, variance[k], squares / size,
            (1e-5 * squares + 1e-10 * magnitude * magnitude / size) / size + 1e-30);
  }
}

void fuzz_depthwise() {
  const Sizes s = sizes("depthwise", false);
  const Kernel k = kernel();
  const bool with_moments = chance(60);
  Tensor x = filled(s.n, s.h, s.w, s.c, s.type, Strides::side_by_side);
  Tensor y = empty(s.n, s.h, s.w, s.c, s.type, Strides::matrix);
  const Array<float> weight = vector(k.dy.size * s.c, 4, 4), bias = vector(s.c);
  const bool biased = chance(50);
  const Depthwise conv{k.taps(), weight.data(), biased ? bias.data() : nullptr, floor_or_none(chance(30))};
  Array<float> mean(s.c), variance(s.c);
  Expected expected = convolved(x, k, weight.data(), conv.bias);
  for (double& value : expected.value) value = clamped(value, conv.floor);
  spoil_scratch();
  succeeded(dpc_depthwise(&x.map, &conv, &y.map, with_moments ? mean.data() : nullptr,
                          with_moments ? variance.data() : nullptr, s.threads));
  unchanged("x", x);
  check("y", y, expected);
  if (with_moments) check_moments(y, mean, variance);
}

void fuzz_depthwise_backward() {
  const Sizes s = sizes("depthwise_backward", false);
  const Kernel k = kernel();
  const bool add = chance(50), wants_dx = chance(80), wants_dw = !wants_dx || chance(80);
  note("add", add), note("dx", wants_dx), note("dw", wants_dw);
  Tensor g = filled(s.n, s.h, s.w, s.c, s.type, Strides::side_by_side);
  Tensor x = filled(s.n, s.h, s.w, s.c, s.type, Strides::side_by_side);
  Tensor dx = empty(s.n, s.h, s.w, s.c, s.type, Strides::side_by_side);
  if (add) fill(dx);
  const Array<float> weight = vector(k.dy.size * s.c, 4, 4);
  Array<float> dw(k.dy.size * s.c);
  const Depthwise conv{k.taps(), wants_dx ? weight.data() : nullptr, nullptr, kNoFloor};
  Expected expected(int64_t(g.values.size())), expected_dw(dw.size);
  if (add) dx.each([&](int64_t n, int64_t y, int64_t xx, int64_t c) {
    expected.add(dx.at(n, y, xx, c), dx.values[dx.at(n, y, xx, c)]);
  });
  g.each([&](int64_t n, int64_t y, int64_t xx, int64_t c) {
    const double gradient = g.values[g.at(n, y, xx, c)];
    for (int64_t t = 0; t < k.dy.size; t++) {
      const int64_t sy = y + k.dy[t], sx = xx + k.dx[t];
      if (!inside(sy, s.h) || !inside(sx, s.w)) continue;
      expected.add(x.at(n, sy, sx, c), double(weight[t * s.c + c]) * gradient);
      expected_dw.add(t * s.c + c, x.values[x.at(n, sy, sx, c)] * gradient);
    }
  });
  spoil_scratch();
  succeeded(dpc_depthwise_backward(&g.map, &x.map, &conv, wants_dx ? &dx.map : nullptr, add,
                                   wants_dw ? dw.data() : nullptr, s.threads));
  unchanged("g", g);
  unchanged("x", x);
  // Nine taps at a time: with more, a bf16 map is rounded in between.
  if (wants_dx)
    check("dx", dx, expected, kClose, k.dy.size > 9 ? 4 : 1);
  else
    unchanged("dx", dx);
  if (wants_dw) check("dw", dw, expected_dw);
}

struct Norm {
  Array<float> scale, shift;
  Affine affine;
};
Norm norm(int64_t size) {
  Norm result;
  result.scale = vector(size, 24, 16, chance(20) ? -8 : 4);
  result.shift = vector(size, 99, 256);
  for (int64_t i = 0; chance(50) && i < size; i++) result.shift[i] += 1.0f / 512;  // else, some values are 0 exactly
  result.affine = Affine{result.scale.data(), result.shift.data(), floor_or_none(chance(70))};
  return result;
}

double normed(const Affine& affine, double value, int64_t c) {
  return value * double(affine.scale[c]) + double(affine.shift[c]);
}
double activated(const Affine& affine, double value, int64_t c) {
  return affine.scale ? clamped(normed(affine, value, c), affine.floor) : value;
}

Norm maybe_norm(int64_t size) {
  Norm result = norm(size);
  if (chance(30)) result.affine = Affine{nullptr, nullptr, kNoFloor};
  return result;
}

void fuzz_pointwise() {
  const Sizes s = sizes("pointwise", true);
  Tensor x = filled(s.n, s.h, s.w, s.c, s.type, Strides::matrix);
  Tensor p = empty(s.n, s.h, s.w, s.filters, s.type, Strides::matrix);
  const Norm before = maybe_norm(s.c);
  const Product weight = product_weight(s.c, s.filters, false);
  const Array<float> turned = plain_weight(weight, s.c, s.filters, true);
  const bool with_moments = chance(60);
  note("normed", before.affine.scale != nullptr), note("moments", with_moments);
  Array<float> mean(s.filters), variance(s.filters);
  Expected expected(s.n * s.h * s.w * s.filters);
  for (int64_t i = 0; i < s.n * s.h * s.w; i++)
    for (int64_t k = 0; k < s.c; k++) {
      const double value = activated(before.affine, x.values[i * s.c + k], k);
      for (int64_t f = 0; f < s.filters; f++) expected.add(i * s.filters + f, value * weight.values[k * s.filters + f]);
    }
  spoil_scratch();
  succeeded(dpc_pointwise(&x.map, &before.affine, turned.data(), &p.map,
                          with_moments ? mean.data() : nullptr, with_moments ? variance.data() : nullptr, s.threads));
  unchanged("x", x);
  check("p", p, expected);
  if (with_moments) check_moments(p, mean, variance);
}

// The gradient that reaches a map, of one or two.
struct Gradients {
  Tensor one, two;
  const Map* second;
  double at(size_t i) const { return one.values[i] + (second ? two.values[i] : 0.0); }
  void check() const { unchanged("one", one), unchanged("two", two); }
};

Gradients gradients(const Sizes& s, int64_t c, Strides strides, bool both) {
  note("both", both);
  return {filled(s.n, s.h, s.w, c, s.type, strides), filled(s.n, s.h, s.w, c, s.type, strides), nullptr};
}

void fuzz_pointwise_backward() {
  const Sizes s = sizes("pointwise_backward", true);
  const bool both = chance(40), add = chance(40), wants_dx = chance(80), sums = wants_dx && chance(50);
  const bool wants_dw = chance(90);
  note("add", add), note("dx", wants_dx), note("sums", sums), note("dw", wants_dw);
  Gradients incoming = gradients(s, s.filters, Strides::matrix, both);
  incoming.second = both ? &incoming.two.map : nullptr;
  Tensor p = filled(s.n, s.h, s.w, s.filters, s.type, Strides::matrix);
  Tensor x = filled(s.n, s.h, s.w, s.c, s.type, Strides::matrix);
  Tensor dx = empty(s.n, s.h, s.w, s.c, s.type, Strides::matrix);
  if (add) fill(dx);
  const Norm after = norm(s.filters), before = maybe_norm(s.c);
  const Array<float> a = vector(s.filters), b = vector(s.filters), c = vector(s.filters);
  const Array<float> middle = vector(s.filters);
  const NormGradient gradient{after.affine, a.data(), b.data(), middle.data(), c.data()};
  const Product weight = product_weight(s.filters, s.c, false);
  const Array<float> plain_values = plain_weight(weight, s.filters, s.c, false);
  Array<float> dw(s.filters * s.c);
  const Array<float> mean = vector(s.c), inverse = vector(s.c, 24, 16, 4);
  Array<float> plain(s.c), with(s.c);

  const int64_t count = s.n * s.h * s.w;
  Expected expected(count * s.c), expected_dw(dw.size), expected_plain(s.c), expected_with(s.c);
  std::vector<double> dp(s.filters), dp_size(s.filters);
  for (int64_t i = 0; i < count; i++) {
    for (int64_t f = 0; f < s.filters; f++) {
      const size_t at = size_t(i * s.filters + f);
      const double value = p.values[at];
      const double g = normed(after.affine, value, f) <= after.affine.floor ? 0 : incoming.at(at);
      const double away = value - double(middle[f]);
      dp[f] = double(a[f]) * g + double(b[f]) * away + double(c[f]);
      dp_size[f] = std::fabs(double(a[f]) * g) + std::fabs(double(b[f])) * (std::fabs(value) + std::fabs(double(middle[f]))) +
                   std::fabs(double(c[f]));
    }
    for (int64_t k = 0; k < s.c; k++) {
      const int64_t at = i * s.c + k;
      const double value = activated(before.affine, x.values[at], k);
      double sum = 0, size = 0;
      for (int64_t f = 0; f < s.filters; f++) {
        expected_dw.value[f * s.c + k] += dp[f] * value;
        expected_dw.magnitude[f * s.c + k] += dp_size[f] * std::fabs(value);
        sum += dp[f] * weight.values[f * s.c + k];
        size += dp_size[f] * std::fabs(weight.values[f * s.c + k]);
      }
      if (before.affine.scale && value <= before.affine.floor) sum = 0;
      if (add) sum += dx.values[at], size += std::fabs(dx.values[at]);
      const double standard = (x.values[at] - double(mean[k])) * double(inverse[k]);
      expected.value[at] = sum, expected.magnitude[at] = size;
      expected_plain.value[k] += sum, expected_plain.magnitude[k] += size;
      expected_with.value[k] += sum * standard, expected_with.magnitude[k] += size * std::fabs(standard);
    }
  }
  spoil_scratch();
  succeeded(dpc_pointwise_backward(&incoming.one.map, incoming.second, &p.map, &gradient, &x.map, &before.affine,
                                   plain_values.data(), wants_dx ? &dx.map : nullptr, add, wants_dw ? dw.data() : nullptr,
                                   sums ? mean.data() : nullptr, sums ? inverse.data() : nullptr,
                                   sums ? plain.data() : nullptr, sums ? with.data() : nullptr, s.threads));
  incoming.check();
  unchanged("p", p);
  unchanged("x", x);
  if (wants_dx)
    check("dx", dx, expected);
  else
    unchanged("dx", dx);
  if (wants_dw) check("dw", dw, expected_dw, 1e-5);
  if (sums) check("plain", plain, expected_plain, 1e-5), check("with", with, expected_with, 1e-5);
}

void fuzz_affine() {
  const Sizes s = sizes("affine", false);
  const bool in_place = chance(40);
  note("in place", in_place);
  Tensor x = filled(s.n, s.h, s.w, s.c, s.type, Strides::matrix);
  Tensor y = empty(s.n, s.h, s.w, s.c, s.type, Strides::matrix);
  const Norm after = norm(s.c);
  Expected expected(int64_t(x.values.size()));
  for (size_t i = 0; i < x.values.size(); i++) {
    expected.value[i] = activated(after.affine, x.values[i], int64_t(i) % s.c);
    expected.magnitude[i] = std::fabs(x.values[i]) * 2 + 1;
  }
  succeeded(dpc_affine(&x.map, &after.affine, in_place ? &x.map : &y.map, s.threads));
  check("y", in_place ? x : y, expected);
  if (!in_place) unchanged("x", x);
}

void fuzz_normalisation() {
  const int64_t c = channels(), count = number(1, 1000);
  const bool single = chance(20);
  note("channels", c), note("count", count), note("single", single);
  const Array<float> mean = vector(c), weight = vector(c), bias = vector(c), plain = vector(c), with = vector(c);
  Array<float> variance = vector(c), inverse(c), scale(c), shift(c), b(c), third(c);
  for (int64_t k = 0; k < c; k++) variance[k] = std::fabs(variance[k]);
  succeeded(dpc_normalisation(c, mean.data(), variance.data(), weight.data(), bias.data(), 1e-3f, single, inverse.data(),
                              scale.data(), shift.data(), 1));
  succeeded(dpc_normalisation_gradient(c, scale.data(), inverse.data(), plain.data(), with.data(), count, b.data(),
                                       third.data(), 1));
  for (int64_t k = 0; k < c; k++) {
    const double unit = single ? 0 : 1 / std::sqrt(double(variance[k]) + double(1e-3f)), factor = weight[k] * unit;
    const double share = factor / double(count);
    compare("inverse", k, inverse[k], unit, 1e-6 * unit);
    compare("scale", k, scale[k], factor, 1e-6 * std::fabs(factor));
    compare("shift", k, shift[k], bias[k] - mean[k] * factor, 1e-6 * (std::fabs(bias[k]) + std::fabs(mean[k] * factor)));
    compare("b", k, b[k], -share * unit * with[k], 1e-5 * std::fabs(share * unit * with[k]));
    compare("c", k, third[k], -share * plain[k], 1e-5 * std::fabs(share * plain[k]));
  }
}

void fuzz_affine_backward() {
  const Sizes s = sizes("affine_backward", false);
  Tensor g = filled(s.n, s.h, s.w, s.c, s.type, Strides::matrix);
  Tensor x = filled(s.n, s.h, s.w, s.c, s.type, Strides::matrix);
  const Array<float> a = vector(s.c), b = vector(s.c), middle = vector(s.c), c = vector(s.c);
  Expected expected(int64_t(x.values.size()));
  for (int64_t i = 0; i < int64_t(x.values.size()); i++) {
    expected.add(i, double(a[i % s.c]) * g.values[i]);
    expected.add(i, double(b[i % s.c]) * (x.values[i] - double(middle[i % s.c])));
    expected.add(i, c[i % s.c]);
  }
  succeeded(dpc_affine_backward(&g.map, &x.map, a.data(), b.data(), middle.data(), c.data(), s.threads));
  check("g", g, expected);
  unchanged("x", x);
}

void fuzz_gradient_sums() {
  const Sizes s = sizes("gradient_sums", false);
  const bool both = chance(50);
  Gradients incoming = gradients(s, s.c, Strides::matrix, both);
  incoming.second = both ? &incoming.two.map : nullptr;
  Tensor x = filled(s.n, s.h, s.w, s.c, s.type, Strides::matrix);
  const Norm after = norm(s.c);
  const Array<float> mean = vector(s.c), inverse = vector(s.c, 24, 16, 4);
  Array<float> plain(s.c), with(s.c);
  Expected expected_plain(s.c), expected_with(s.c);
  for (size_t i = 0; i < x.values.size(); i++) {
    const int64_t c = int64_t(i) % s.c;
    if (normed(after.affine, x.values[i], c) <= after.affine.floor) continue;
    expected_plain.add(c, incoming.at(i));
    expected_with.add(c, incoming.at(i) * (x.values[i] - double(mean[c])) * double(inverse[c]));
  }
  spoil_scratch();
  succeeded(dpc_gradient_sums(&incoming.one.map, incoming.second, &x.map, &after.affine, mean.data(), inverse.data(),
                              plain.data(), with.data(), s.threads));
  incoming.check();
  unchanged("x", x);
  check("plain", plain, expected_plain);
  check("with", with, expected_with);
}

// Which positions a cell of a grid covers, and how many they are.
struct Cell {
  int64_t first, last;
  int64_t size() const { return last - first; }
};
Cell cell(int64_t i, int64_t grid, int64_t size) {
  return {int64_t(std::floor(double(i * size) / double(grid))), int64_t(std::ceil(double((i + 1) * size) / double(grid)))};
}

void fuzz_pool() {
  const Sizes s = sizes("pool", false);
  const int64_t gh = number(1, chance(80) ? 6 : 30), gw = number(1, chance(80) ? 6 : 30);
  note("gh", gh), note("gw", gw);
  Tensor x = filled(s.n, s.h, s.w, s.c, s.type, Strides::side_by_side);
  Tensor to = empty(s.n, gh, gw, s.c, kFloat32, Strides::dense);
  Expected expected(int64_t(to.values.size()));
  to.each([&](int64_t n, int64_t gy, int64_t gx, int64_t c) {
    const Cell rows = cell(gy, gh, s.h), columns = cell(gx, gw, s.w);
    for (int64_t y = rows.first; y < rows.last; y++)
      for (int64_t xx = columns.first; xx < columns.last; xx++)
        expected.add(to.at(n, gy, gx, c), x.values[x.at(n, y, xx, c)] / double(rows.size() * columns.size()));
  });
  succeeded(dpc_pool(&x.map, &to.map, s.threads));
  unchanged("x", x);
  check("to", to, expected);
}

void fuzz_pool_backward() {
  const Sizes s = sizes("pool_backward", false);
  const int64_t gh = number(1, chance(80) ? 6 : 30), gw = number(1, chance(80) ? 6 : 30);
  const bool add = chance(50);
  note("gh", gh), note("gw", gw), note("add", add);
  Tensor g = filled(s.n, gh, gw, s.c, kFloat32, Strides::side_by_side);
  Tensor dx = empty(s.n, s.h, s.w, s.c, s.type, Strides::side_by_side);
  if (add) fill(dx);
  Expected expected(int64_t(dx.values.size()));
  for (int64_t i = 0; add && i < int64_t(dx.values.size()); i++) expected.add(i, dx.values[i]);
  g.each([&](int64_t n, int64_t gy, int64_t gx, int64_t c) {
    const Cell rows = cell(gy, gh, s.h), columns = cell(gx, gw, s.w);
    for (int64_t y = rows.first; y < rows.last; y++)
      for (int64_t xx = columns.first; xx < columns.last; xx++)
        expected.add(dx.at(n, y, xx, c), g.values[g.at(n, gy, gx, c)] / double(rows.size() * columns.size()));
  });
  succeeded(dpc_pool_backward(&g.map, &dx.map, add, s.threads));
  unchanged("g", g);
  // A bf16 map is rounded after each cell that covers a position.
  const double cells = double((gh / s.h + 2) * (gw / s.w + 2));
  check("dx", dx, expected, kClose, cells);
}

void fuzz_resize() {
  const Sizes s = sizes("resize", false);
  const bool align = chance(50);
  Tensor from = filled(s.n, number(1, chance(80) ? 6 : 30), number(1, chance(80) ? 6 : 30), s.c, kFloat32,
                       Strides::side_by_side);
  Tensor to = empty(s.n, s.h, s.w, s.c, s.type, Strides::side_by_side);
  note("gh", from.map.h), note("gw", from.map.w), note("align", align);
  Expected expected(int64_t(to.values.size()));
  to.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    const int64_t i = to.at(n, y, x, c);
    each_sample(y, x, from.map.h, from.map.w, s.h, s.w, align, [&](int64_t gy, int64_t gx, double factor) {
      expected.add(i, factor * from.values[from.at(n, gy, gx, c)]);
    });
    expected.magnitude[i] += 2;  // a weight of 0 may come out as 1e-6, or an index one lower with weight 1
  });
  succeeded(dpc_resize(&from.map, &to.map, align, s.threads));
  unchanged("from", from);
  check("to", to, expected, kSampled);
}

void fuzz_resize_backward() {
  const Sizes s = sizes("resize_backward", false);
  const bool align = chance(50), both = chance(50);
  Gradients incoming = gradients(s, s.c, Strides::side_by_side, both);
  incoming.second = both ? &incoming.two.map : nullptr;
  Tensor to = empty(s.n, number(1, chance(80) ? 6 : 30), number(1, chance(80) ? 6 : 30), s.c, kFloat32, Strides::dense);
  note("gh", to.map.h), note("gw", to.map.w), note("align", align);
  Expected expected(int64_t(to.values.size()));
  for (double& size : expected.magnitude) size = double(s.h + s.w) / 2 + 2;
  incoming.one.each([&](int64_t n, int64_t y, int64_t x, int64_t c) {
    const double g = incoming.at(size_t(incoming.one.at(n, y, x, c)));
    each_sample(y, x, to.map.h, to.map.w, s.h, s.w, align, [&](int64_t gy, int64_t gx, double factor) {
      expected.add(to.at(n, gy, gx, c), factor * g);
    });
  });
  succeeded(dpc_resize_backward(&incoming.one.map, incoming.second, &to.map, align, s.threads));
  incoming.check();
  check("to", to, expected, kSampled);
}

void fuzz_cross_entropy() {
  const Sizes s = sizes("cross_entropy", false);
  const int64_t height = number(1, 40), width = number(1, 40), ignored = chance(70) ? 255 : number(0, s.c - 1);
  const bool align = chance(50), wants_gradient = chance(70), wants_losses = chance(50), small = chance(50);
  note("height", height), note("width", width), note("ignored", ignored), note("align", align), note("small", small);
  Tensor logits = filled(s.n, s.h, s.w, s.c, s.type, Strides::any);
  const int64_t pixels = s.n * height * width;
  Array<int64_t> wide(pixels);
  Array<uint8_t> narrow_labels(pixels), chosen(pixels);
  const Array<float> weights = vector(s.c, 16, 8, 0);
  const bool weighted = chance(50), chooses = chance(50);
  for (int64_t i = 0; i < pixels; i++) {
    wide[i] = chance(10) ? ignored : chance(5) ? s.c + 1 : number(0, std::min<int64_t>(s.c, 200) - 1);
    narrow_labels[i] = uint8_t(wide[i]);
    if (small) wide[i] = narrow_labels[i];
    chosen[i] = chance(70);
  }
  Array<float> losses(wants_losses ? pixels : 0), gradient(wants_gradient ? int64_t(logits.values.size()) : 0);
  Array<double> sums(3);
  Expected expected(int64_t(logits.values.size())), each(pixels), totals(3);
  for (int64_t i = 0; i < pixels; i++) {
    const int64_t n = i / width / height, y = i / width % height, x = i % width;
    if (wide[i] == ignored) continue;
    totals.add(1, 1);
    if (wide[i] >= s.c) {
      totals.add(2, 1);
      continue;
    }
    if (chooses && !chosen[i]) continue;
    std::vector<double> value(s.c, 0.0);
    for (int64_t k = 0; k < s.c; k++)
      each_sample(y, x, s.h, s.w, height, width, align,
                  [&](int64_t gy, int64_t gx, double factor) { value[k] += factor * logits.values[logits.at(n, gy, gx, k)]; });
    const double most = *std::max_element(value.begin(), value.end()), weight = weighted ? weights[wide[i]] : 1;
    double sum = 0;
    for (double one : value) sum += std::exp(one - most);
    each.add(i, weight * (std::log(sum) + most - value[wide[i]]));
    totals.add(0, each.value[i]);
    for (int64_t k = 0; k < s.c; k++) {
      const double slope = weight * (std::exp(value[k] - most) / sum - (k == wide[i] ? 1 : 0));
      each_sample(y, x, s.h, s.w, height, width, align, [&](int64_t gy, int64_t gx, double factor) {
        expected.add(logits.at(n, gy, gx, k), factor * slope);
      });
    }
  }
  for (double& size : each.magnitude) size += 8;
  for (double& size : expected.magnitude) size += 2;
  CrossEntropy all{logits.map,
                   small ? static_cast<const void*>(narrow_labels.data()) : wide.data(),
                   height,
                   width,
                   small ? 1 : 8,
                   ignored,
                   weighted ? weights.data() : nullptr,
                   chooses ? chosen.data() : nullptr,
                   align,
                   wants_losses ? losses.data() : nullptr,
                   wants_gradient ? gradient.data() : nullptr,
                   sums.data()};
  succeeded(dpc_cross_entropy(&all, s.threads));
  unchanged("logits", logits);
  compare("sum", 0, sums[0], totals.value[0], 2e-5 * (totals.magnitude[0] + 8 * double(pixels)));
  for (int i = 1; i < 3; i++) compare("count", i, sums[i], totals.value[i], 0);
  if (wants_losses) check("losses", losses, each, kSampled);
  if (wants_gradient) check("gradient", gradient, expected, kSampled);
}

void fuzz_copy() {
  const Sizes s = sizes("copy", false);
  Tensor from = filled(s.n, s.h, s.w, s.c, s.type, Strides::any);
  Tensor to = empty(s.n, s.h, s.w, s.c, s.type, Strides::any);
  for (const Tensor* t : {&from, &to})
    what += " strides " + text({t->map.stride_n, t->map.stride_h, t->map.stride_w, t->map.stride_c});
  Expected expected(int64_t(from.values.size()));
  expected.value = from.values;
  succeeded(dpc_copy(&from.map, &to.map, s.threads));
  unchanged("from", from);
  check("to", to, expected, 0, 0);
}

const std::vector<std::pair<const char*, std::function<void()>>> kKernels = {
    {"evaluate", fuzz_evaluate},
    {"depthwise", fuzz_depthwise},
    {"depthwise_backward", fuzz_depthwise_backward},
    {"pointwise", fuzz_pointwise},
    {"pointwise_backward", fuzz_pointwise_backward},
    {"affine", fuzz_affine},
    {"affine_backward", fuzz_affine_backward},
    {"gradient_sums", fuzz_gradient_sums},
    {"normalisation", fuzz_normalisation},
    {"pool", fuzz_pool},
    {"pool_backward", fuzz_pool_backward},
    {"resize", fuzz_resize},
    {"resize_backward", fuzz_resize_backward},
    {"cross_entropy", fuzz_cross_entropy},
    {"copy", fuzz_copy},
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::printf("fuzz_kernels SEED SECONDS\n");
    return 2;
  }
  const uint64_t seed = std::stoull(arguments[1]);
  const double seconds = std::stod(arguments[2]);
  const auto begun = std::chrono::steady_clock::now();
  uint64_t round = 0;
  for (; round < 3 || std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count() < seconds; round++)
    for (size_t k = 0; k < kKernels.size(); k++) {
      engine.seed((seed * 1000003 + round) * 31 + k);  // a case can be found again without those before it
#ifdef DPC_STD_THREADS
      fewer_threads = chance(30) ? int(number(1, 2)) : 0;
#endif
      kKernels[k].second();
    }
  std::printf("%d lanes, pairs %d: %llu rounds of %zu kernels\n", dpc::kLanes, dpc_has_pairs(),
              static_cast<unsigned long long>(round), kKernels.size());
  return 0;
}
