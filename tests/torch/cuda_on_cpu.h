// What CUDA sources need to run on a CPU: a launch runs its blocks one after the other, and of a block one thread at a time,
// each on a stack of its own, until it waits for the others. Threads take turns in an order that changes from launch to
// launch, and what is copied asynchronously arrives when it is waited for and not before: where a wait is missing,
// something is read too early. A GPU's memory model is not in it, nor its speed; what a kernel computes is.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10, kShared = 232 << 10;

enum Wait { kStart, kBlock, kWarpOnly, kDone };

struct Copy {
  void* to;
  const void* from;  // null: zeros
};

struct Thread {
  ucontext_t context;
  jmp_buf at;
  std::unique_ptr<char[]> stack;
  Wait wait;
  dim3 index;
  std::vector<std::vector<Copy>> copies;  // groups that were committed, and last the one that was not
};

inline std::vector<Thread> threads;
inline unsigned current, turn;
inline jmp_buf scheduler;
inline void (*body)(void*);
inline void* argument;
// Dynamic shared memory ends where a page begins that nobody may touch.
inline unsigned char* const shared_end = [] {
  constexpr size_t kGuard = 64 << 10;
  void* all = mmap(nullptr, kShared + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  unsigned char* end = static_cast<unsigned char*>(all) + kShared;
  return all == MAP_FAILED || mprotect(end, kGuard, PROT_NONE) ? nullptr : end;
}();
inline size_t shared_bytes;

inline void begin() {
  body(argument);
  threads[current].wait = kDone;
  _longjmp(scheduler, 1);
}

inline void resume(unsigned t) {
  Thread& thread = threads[t];
  current = t, threadIdx = thread.index;
  if (_setjmp(scheduler) == 0) {
    if (thread.wait == kStart)
      setcontext(&thread.context);
    else
      _longjmp(thread.at, 1);
  }
}

inline void wait(Wait kind) {
  Thread& thread = threads[current];
  thread.wait = kind;
  if (_setjmp(thread.at) == 0) _longjmp(scheduler, 1);
}

[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "CUDA kernel: %s\n", why);
  std::abort();
}

// A warp's threads until each waits for the block, or is done: they must all get there.
inline void run_warp(unsigned first, unsigned count) {
  for (;;) {
    for (unsigned i = 0; i < count; i++) resume(first + (turn & 1 ? count - 1 - i : i));
    for (unsigned i = 0; i < count; i++)
      if (threads[first + i].wait != threads[first].wait) fail("the threads of a warp wait for different things");
    if (threads[first].wait != kWarpOnly) return;
  }
}

inline void run_block(unsigned count) {
  std::memset(shared_end - shared_bytes, 0xff, shared_bytes);
  for (Thread& thread : threads) {
    thread.wait = kStart;
    thread.copies.assign(1, {});
    getcontext(&thread.context);
    thread.context.uc_stack = {thread.stack.get(), 0, kStack};
    makecontext(&thread.context, begin, 0);
  }
  const unsigned warps = (count + kWarp - 1) / kWarp;
  do {
    for (unsigned i = 0; i < warps; i++) {
      const unsigned first = (turn & 2 ? warps - 1 - i : i) * kWarp;
      run_warp(first, first + kWarp < count ? kWarp : count - first);
    }
    for (Thread& thread : threads)
      if (thread.wait != threads[0].wait) fail("the threads of a block do not all reach __syncthreads");
  } while (threads[0].wait != kDone);
}

template <class Body>
void launch(dim3 grid, dim3 block, size_t bytes, Body run) {
  gridDim = grid, blockDim = block;
  shared_bytes = (bytes + 127) / 128 * 128;
  const unsigned count = block.x * block.y * block.z;
  threads.resize(count);
  for (unsigned t = 0; t < count; t++) {
    if (!threads[t].stack) threads[t].stack.reset(new char[kStack]);
    threads[t].context.uc_stack = {};
    threads[t].index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
  }
  body = [](void* run) { (*static_cast<Body*>(run))(); };
  argument = &run;
  turn++;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        blockIdx = {x, y, z};
        run_block(count);
      }
}

// What the threads of a warp show each other: each puts something down, and after they have met takes what it likes.
template <class Value>
const Value* exchange(const Value& mine) {
  static std::vector<std::array<Value, kWarp>> all[2];  // in turn, so that none is written while it is read
  static std::vector<unsigned> calls;
  const unsigned warp = current / kWarp;
  for (auto& side : all)
    if (side.size() < threads.size() / kWarp + 1) side.resize(threads.size() / kWarp + 1);
  if (calls.size() < threads.size()) calls.assign(threads.size(), 0);
  auto& here = all[calls[current]++ & 1][warp];
  here[current % kWarp] = mine;
  wait(kWarpOnly);
  return here.data();
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::kBlock); }

namespace dpc {

struct BFloat16 {
  uint16_t bits;
};
typedef _Float16 Float16;
inline float widen(BFloat16 value) {
  uint32_t word = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &word, 4);
  return result;
}
inline float widen(Float16 value) { return float(value); }
inline void narrow(float value, BFloat16* to) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  to->bits = value != value ? uint16_t((word >> 16) | 0x40) : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}
inline void narrow(float value, Float16* to) { *to = Float16(value); }

// The instructions of matrix.cuh, as the PTX ISA (9.7.14, warp-level matrix instructions) lays out their fragments.

inline unsigned char* shared_memory() { return emulator::shared_end - emulator::shared_bytes; }

inline void copy_async(void* to, const void* from, bool exists) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16) emulator::fail("a copy is not aligned");
  emulator::threads[emulator::current].copies.back().push_back({to, exists ? from : nullptr});
}
inline void commit_copies() { emulator::threads[emulator::current].copies.emplace_back(); }
inline void wait_for_copies() {
  auto& groups = emulator::threads[emulator::current].copies;
  for (size_t i = 0; i + 1 < groups.size(); i++)
    for (const emulator::Copy& copy : groups[i])
      if (copy.from)
        std::memcpy(copy.to, copy.from, 16);
      else
        std::memset(copy.to, 0, 16);
  groups.erase(groups.begin(), groups.end() - 1);
}

// Rows of 16 bytes, whose addresses the threads bring: 8 of a matrix each.
inline void load_matrices(const void* row, uint32_t (&to)[4]) {
  const void* const* rows = emulator::exchange(row);
  const unsigned lane = emulator::current % 32;
  for (int j = 0; j < 4; j++) {
    if (reinterpret_cast<uintptr_t>(rows[8 * j + lane / 4]) % 16) emulator::fail("a row of a matrix is not aligned");
    std::memcpy(&to[j], static_cast<const char*>(rows[8 * j + lane / 4]) + 4 * (lane % 4), 4);
  }
}
inline void load_matrices_turned(const void* row, uint32_t (&to)[4]) {
  const void* const* rows = emulator::exchange(row);
  const unsigned lane = emulator::current % 32;
  for (int j = 0; j < 4; j++)
    for (int half = 0; half < 2; half++)
      std::memcpy(reinterpret_cast<char*>(&to[j]) + 2 * half,
                  static_cast<const char*>(rows[8 * j + 2 * (lane % 4) + half]) + 2 * (lane / 4), 2);
}

// By names of its own: for what is declared after this header, an overload would silently take fp32 for fp16.
inline float as_float(BFloat16 value) { return widen(value); }
inline float as_float(Float16 value) { return widen(value); }
inline float as_float(float value) { return value; }

struct Fragments {
  uint32_t a[4], b[2];
};

// c += a b, where a thread has c[2 i + j] = (row lane / 4 + 8 i, column 2 (lane % 4) + j).
// 16-bit: [16, 16] [16, 8], a[i + 2 k] = (row lane / 4 + 8 i, from 8 k + 2 (lane % 4) two), b[k] = (from 8 k + 2 (lane % 4)
// two, column lane / 4). 32-bit: [16, 8] [8, 8], with one number where there are two.
template <class T>
void multiply_fragments(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Fragments* all = emulator::exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const unsigned lane = emulator::current % 32;
  constexpr int kTogether = 4 / int(sizeof(T));
  const auto part = [](uint32_t word, int which) {
    T value;
    std::memcpy(&value, reinterpret_cast<const char*>(&word) + sizeof(T) * which, sizeof(T));
    return as_float(value);
  };
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++) {
      const unsigned row = lane / 4, column = 2 * (lane % 4) + j;
      float sum = 0;
      for (int k = 0; k < 2; k++)
        for (int t = 0; t < 4; t++)
          for (int which = 0; which < kTogether; which++)
            sum += part(all[4 * row + t].a[i + 2 * k], which) * part(all[4 * column + t].b[k], which);
      c[2 * i + j] += sum;
    }
}

inline uint32_t to_tf32(uint32_t word) { return (word & 0x7f800000) == 0x7f800000 ? word : (word + 0x1000) & ~0x1fffu; }

}  // namespace dpc
