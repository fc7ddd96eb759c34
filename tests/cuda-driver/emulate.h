// Emulates on the CPU the parts of CUDA that a kernel needs: a cube's threads are fibers that take turns, and a warp's
// instructions (shuffles, matrix loads, tensor core products) wait for all its lanes. Copies to shared memory complete at
// once, so a missing wait for one is not noticed here.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
using std::max;
using std::min;

struct Dim { uint32_t x, y, z; };
struct Warp { int arrived; uint64_t turn; uint32_t lanes[2][32][8]; };
struct Fiber { ucontext_t context; Dim thread; uint32_t lane; Warp *warp; bool done; };

static const uint32_t warpSize = 32;
static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static size_t current, waiting;
static uint64_t meeting;
static Dim blockIdx, gridDim;
static char *shared_memory;
static ucontext_t scheduler;
#define threadIdx (fibers[current].thread)

static void yield_() {
  size_t from = current;
  do current = (current + 1) % fibers.size(); while (fibers[current].done && current != from);
  if (current != from) swapcontext(&fibers[from].context, &fibers[current].context);
}
static void __syncthreads() {
  uint64_t mine = meeting;
  if (++waiting == fibers.size()) { waiting = 0; meeting++; return; }
  while (meeting == mine) yield_();
}
// Returns the values that all lanes of the warp passed in.
static uint32_t (*together(const uint32_t *own, int n))[8] {
  Fiber &fiber = fibers[current];
  Warp *warp = fiber.warp;
  uint64_t mine = warp->turn;
  memcpy(warp->lanes[mine % 2][fiber.lane], own, 4 * n);
  if (++warp->arrived == 32) { warp->arrived = 0; warp->turn++; }
  else while (warp->turn == mine) yield_();
  return warp->lanes[mine % 2];
}
static uint32_t __activemask() { return ~0u; }
template <typename T> static T __shfl_xor_sync(uint32_t, T value, uint32_t mask) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  uint32_t other = together(&bits, 1)[fibers[current].lane ^ mask][0];
  memcpy(&value, &other, 4);
  return value;
}

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    bits = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  }
  __nv_bfloat16(int x) : __nv_bfloat16((float)x) {}
  operator float() const {
    uint32_t u = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
  }
};
static float half_of(uint32_t pair, int which) {
  uint32_t u = which ? pair & 0xffff0000u : pair << 16;
  float x;
  memcpy(&x, &u, 4);
  return x;
}

namespace cuda {
enum thread_scope { thread_scope_block };
template <thread_scope> struct barrier { uint64_t unused; void arrive_and_wait() { __syncthreads(); } };
namespace device { template <typename B> static uint64_t *barrier_native_handle(B &b) { return &b.unused; } }
}
template <typename B> static void init(B *, uint32_t) {}
template <typename T> static uint32_t __cvta_generic_to_shared(T *p) { return (uint32_t)((char *)p - shared_memory); }

static void ldmatrix(bool turned, uint32_t *out[4], uint32_t address) {
  uint32_t(*all)[8] = together(&address, 1);
  uint32_t lane = fibers[current].lane;
  for (int m = 0; m < 4; m++) {
    const uint16_t *row = (const uint16_t *)(shared_memory + all[8 * m + lane / 4][0]);
    uint16_t two[2];
    for (int e = 0; e < 2; e++)
      two[e] = turned ? ((const uint16_t *)(shared_memory + all[8 * m + 2 * (lane % 4) + e][0]))[lane / 4]
                      : row[2 * (lane % 4) + e];
    *out[m] = two[0] | (uint32_t)two[1] << 16;
  }
  together(&address, 1); // no lane writes what another still reads
}
static void mma(float *d[4], const uint32_t a[4], const uint32_t b[2], const float c[4]) {
  uint32_t own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  uint32_t(*all)[8] = together(own, 6);
  uint32_t lane = fibers[current].lane;
  for (int i = 0; i < 4; i++) {
    int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    float sum = c[i];
    for (int k = 0; k < 16; k++) {
      int holder = row % 8 * 4 + k % 8 / 2, part = row / 8 + 2 * (k / 8);
      int other = column * 4 + k % 8 / 2;
      sum += half_of(all[holder][part], k % 2) * half_of(all[other][4 + k / 8], k % 2);
    }
    *d[i] = sum;
  }
}
static void copied(uint32_t to, const void *from, uint32_t bytes) {
  memset(shared_memory + to, 0, 16);
  memcpy(shared_memory + to, from, bytes);
}

static void (*kernel_body)();
static void fiber_main() {
  kernel_body();
  fibers[current].done = true;
  for (size_t i = 0; i < fibers.size(); i++)
    if (!fibers[i].done) { current = i; setcontext(&fibers[i].context); }
  setcontext(&scheduler);
}
static void launch(Dim grid, Dim block, size_t shared_bytes, void (*body)()) {
  kernel_body = body;
  gridDim = grid;
  uint32_t count = block.x * block.y * block.z;
  std::vector<std::vector<char>> stacks(count, std::vector<char>(256 << 10));
  shared_memory = (char *)aligned_alloc(128, (shared_bytes + 127) / 128 * 128);
  for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
        memset(shared_memory, 0x7f, shared_bytes); // a NaN in every type
        fibers.assign(count, Fiber());
        warps.assign((count + 31) / 32, Warp());
        waiting = 0;
        for (uint32_t i = 0; i < count; i++) {
          Fiber &fiber = fibers[i];
          fiber.thread = {i % block.x, i / block.x % block.y, i / block.x / block.y};
          fiber.lane = i % 32;
          fiber.warp = &warps[i / 32];
          getcontext(&fiber.context);
          fiber.context.uc_stack.ss_sp = stacks[i].data();
          fiber.context.uc_stack.ss_size = stacks[i].size();
          fiber.context.uc_link = nullptr;
          makecontext(&fiber.context, fiber_main, 0);
        }
        current = 0;
        swapcontext(&scheduler, &fibers[0].context);
      }
  free(shared_memory);
}
// Reads the bytes of one of the test's files.
static char *loaded(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) { perror(path); exit(1); }
  fseek(file, 0, SEEK_END);
  size_t size = ftell(file);
  rewind(file);
  char *bytes = (char *)aligned_alloc(128, (size + 127) / 128 * 128);
  if (fread(bytes, 1, size, file) != size) exit(1);
  fclose(file);
  return bytes;
}
static void stored(const char *path, const char *bytes, size_t size) {
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(bytes, 1, size, file) != size || fclose(file)) { perror(path); exit(1); }
}
