// Threads and scratch memory. A range is split into one contiguous share a thread, so that sums over shares come out
// the same in every run with the same number of threads.
#pragma once
#include <omp.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace dpc {

// Scratch of the calling thread, shared out to the threads it starts. It is kept between calls, because fresh pages
// cost more than what is computed in them, and given back when the calling thread ends.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  void* get(int64_t bytes) {
    if (bytes > bytes_) {
      std::free(memory_);
      bytes_ = (bytes + 4095) / 4096 * 4096;
      memory_ = std::aligned_alloc(4096, bytes_);
      if (memory_ == nullptr) {
        bytes_ = 0;
        throw std::bad_alloc();
      }
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  int64_t bytes_ = 0;
};

inline void* scratch(int64_t bytes) {
  static thread_local Scratch memory;
  return memory.get(bytes);
}

// Parts of one thread's scratch, each on its own cache lines.
class Layout {
 public:
  int64_t floats(int64_t count) {
    int64_t at = bytes_;
    bytes_ += (count * 4 + 127) / 64 * 64;
    return at;
  }
  int64_t bytes() const { return (bytes_ + 4095) / 4096 * 4096; }

 private:
  int64_t bytes_ = 0;
};

// body(thread, threads) once in each thread.
template <class Body>
void in_threads(int threads, Body body) {
  if (threads <= 1) {
    body(0, 1);
    return;
  }
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num(), omp_get_num_threads());
}

// A thread's share of `count` things: [first, last).
struct Share {
  int64_t first, last;
};
inline Share share(int64_t count, int thread, int threads) {
  return {count * thread / threads, count * (thread + 1) / threads};
}

}  // namespace dpc
