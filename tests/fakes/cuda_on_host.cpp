// SPDX-License-Identifier: Apache-2.0
// Runs the CUDA sources on the host, so that their arithmetic and indexing are tested without a device: the threads of a
// block are fibers that take turns, and each runs on to the next point where the block waits for all.
#include <ucontext.h>

#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

static dim3 blockIdx, threadIdx, blockDim, gridDim;

struct Fiber {
  ucontext_t context{};
  std::vector<char> stack = std::vector<char>(64 << 10);
  bool done = false;
};

static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static std::vector<unsigned> exchanged;

static void __syncthreads() { swapcontext(&fibers[threadIdx.x].context, &scheduler); }

static unsigned __reduce_max_sync(unsigned, unsigned value) {
  exchanged[threadIdx.x] = value;
  __syncthreads();
  const unsigned first = threadIdx.x / 32 * 32;
  for (unsigned i = first; i < first + 32 && i < blockDim.x; ++i) value = exchanged[i] > value ? exchanged[i] : value;
  __syncthreads();
  return value;
}

static void atomicMax(unsigned* target, unsigned value) { *target = *target > value ? *target : value; }

#include "codec.cu"
#include "gather_scatter.cu"

// Every parameter of every kernel takes 64 bits, and what a kernel has no parameter for is not looked at.
using Kernel = void (*)(long long, long long, long long, long long, long long, long long);
static Kernel kernel;
static const long long* arguments;

static void run_thread() {
  const long long* a = arguments;
  kernel(a[0], a[1], a[2], a[3], a[4], a[5]);
  fibers[threadIdx.x].done = true;
}

static void start(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  fiber.context.uc_link = &scheduler;
  fiber.done = false;
  makecontext(&fiber.context, run_thread, 0);
}

static void run_block() {
  for (Fiber& fiber : fibers) start(fiber);
  for (bool going = true; going;) {
    going = false;
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) {
      Fiber& fiber = fibers[threadIdx.x];
      if (fiber.done) continue;
      swapcontext(&scheduler, &fiber.context);
      going = true;
    }
  }
}

extern "C" void launch(void* name, unsigned x, unsigned y, unsigned threads, const long long* six_arguments) {
  kernel = reinterpret_cast<Kernel>(name);
  arguments = six_arguments;
  gridDim = {x, y, 1};
  blockDim = {threads, 1, 1};
  if (fibers.size() != threads) fibers = std::vector<Fiber>(threads);
  exchanged.assign(threads, 0);
  for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x) run_block();
  }
}
