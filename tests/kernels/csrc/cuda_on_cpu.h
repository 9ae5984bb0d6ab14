// CUDA's words for a C++ compiler: the threads of a block are threads of the machine, and its barriers are real ones,
// so that a sanitizer sees what a GPU would not say.
#pragma once

#include <pthread.h>

#include <thread>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __global__
#define __shared__ static
#define __launch_bounds__(...)

constexpr unsigned kWarp = 32;

struct Index {
  unsigned x, y;
};

static thread_local Index threadIdx, blockIdx;
static Index gridDim;
static pthread_barrier_t block_barrier;
static std::vector<pthread_barrier_t> warp_barriers;

template <class T>
T __ldg(const T* from) {
  return *from;
}

inline void __syncthreads() { pthread_barrier_wait(&block_barrier); }
inline void __syncwarp() { pthread_barrier_wait(&warp_barriers[threadIdx.x / kWarp]); }

// Runs `kernel()` on every block of a grid, one block after another; `threads` are whole warps.
template <class Kernel>
void run_grid(Index grid, unsigned threads, const Kernel& kernel) {
  gridDim = grid;
  pthread_barrier_init(&block_barrier, nullptr, threads);
  warp_barriers.resize(threads / kWarp);
  for (pthread_barrier_t& barrier : warp_barriers) pthread_barrier_init(&barrier, nullptr, kWarp);
  std::vector<std::thread> block;
  for (unsigned i = 0; i < threads; ++i)
    block.emplace_back([&, i] {
      threadIdx = {i, 0};
      for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
          kernel();
          __syncthreads();
        }
    });
  for (std::thread& thread : block) thread.join();
  pthread_barrier_destroy(&block_barrier);
  for (pthread_barrier_t& barrier : warp_barriers) pthread_barrier_destroy(&barrier);
}
