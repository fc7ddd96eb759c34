// A stand-in for the CUDA driver on a machine without a GPU: kernels are compiled by the real NVRTC but not loaded, device
// memory has addresses but no contents, and every call is counted. All results are zeros. It shows whether every kernel
// compiles and how many launches, copies, synchronizations and bytes a step takes, but not whether results are right or
// how fast a step is.
//
//   gcc -O1 -shared -fPIC -w -o libcuda.so driver.c -lpthread
//
// Its name must be libcuda.so: NVRTC itself opens libcuda.so.1, and crashes if that is a stand-in.
//
// CUDA_STUB_STATS=FILE  a line of JSON is appended to FILE at the end, at SIGUSR1, and with CUDA_STUB_TERM=1 at SIGTERM
// CUDA_STUB_MIB=N       the device's memory in MiB, 81,920 by default
// CUDA_STUB_VERSION=N   the driver's version, 13050 (CUDA 13.5) by default
// CUDA_STUB_DEVICES=N   the number of devices, 1 by default
// CUDA_STUB_ONES=1      copies to the host give ones instead of zeros
// CUDA_STUB_MEMORY=1    device memory has contents, which copies read and write; kernels still do nothing
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
typedef int R;
typedef int Dev;
typedef uint64_t Ptr;
typedef void *H;
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static uint64_t next_addr = 0x700000000000ull, used, peak, total_mem = 84974239744ull;
static uint64_t launches, htod, htod_bytes, dtoh, dtoh_bytes, dtod, dtod_bytes, memsets, syncs, late, allocs, frees,
    modules, events;
#define SLOTS 65536
static struct {
  Ptr p;
  uint64_t n;
} live[SLOTS];
static struct fn {
  char name[200];
  uint64_t n;
  struct fn *next;
} * fns;
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}
static int by_n(const void *a, const void *b) {
  uint64_t x = (*(struct fn **)a)->n, y = (*(struct fn **)b)->n;
  return x < y ? 1 : x > y ? -1 : 0;
}
static void report(const char *why) {
  const char *f = getenv("CUDA_STUB_STATS");
  FILE *o = f ? fopen(f, "a") : stderr;
  if (!o)
    return;
  fprintf(o,
          "{\"at\":\"%s\",\"launches\":%lu,\"kernels_compiled\":%lu,\"htod\":%lu,\"htod_bytes\":%lu,\"dtoh\":%lu,"
          "\"dtoh_bytes\":%lu,\"dtod\":%lu,\"dtod_bytes\":%lu,\"memsets\":%lu,\"syncs\":%lu,\"late\":%lu,\"events\":%lu,"
          "\"allocs\":%lu,\"frees\":%lu,\"used_mib\":%lu,\"peak_mib\":%lu,\"top\":{",
          why, launches, modules, htod, htod_bytes, dtoh, dtoh_bytes, dtod, dtod_bytes, memsets, syncs, late, events,
          allocs, frees, used >> 20, peak >> 20);
  struct fn *all[20000];
  int n = 0;
  for (struct fn *p = fns; p && n < 20000; p = p->next)
    all[n++] = p;
  qsort(all, n, sizeof *all, by_n);
  for (int i = 0; i < n && i < 2000; i++)
    fprintf(o, "%s\"%s\":%lu", i ? "," : "", all[i]->name, all[i]->n);
  fprintf(o, "}}\n");
  if (f)
    fclose(o);
}
#include <signal.h>
__attribute__((destructor)) static void bye(void) { report("exit"); }
static void on_term(int s) {
  report("signal");
  _exit(124);
}
static void on_mark(int s) { report("mark"); }
__attribute__((constructor)) static void hello(void) {
  signal(SIGUSR1, on_mark);
  if (getenv("CUDA_STUB_TERM"))
    signal(SIGTERM, on_term);
}
static int real(void) {
  static int known = -1;
  if (known < 0)
    known = getenv("CUDA_STUB_MEMORY") != NULL;
  return known;
}
static Ptr take(uint64_t n) {
  pthread_mutex_lock(&mu);
  Ptr p = next_addr;
  next_addr += (n + 0x1fffff) & ~0x1fffffull;
  // Pages are only there once they are written.
  if (real() && mmap((void *)p, n, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
    perror("device memory");
  used += n;
  if (used > peak)
    peak = used;
  allocs++;
  for (uint64_t i = (p >> 21) % SLOTS, k = 0; k < SLOTS; k++, i = (i + 1) % SLOTS)
    if (!live[i].p) {
      live[i].p = p;
      live[i].n = n;
      break;
    }
  pthread_mutex_unlock(&mu);
  return p;
}
static void give(Ptr p) {
  pthread_mutex_lock(&mu);
  frees++;
  for (uint64_t i = 0; i < SLOTS; i++)
    if (live[i].p == p) {
      used -= live[i].n;
      if (real())
        munmap((void *)p, live[i].n);
      live[i].p = 0;
      break;
    }
  pthread_mutex_unlock(&mu);
}
static int probing;
static double work_ms;
// Delays probes of the device's speed, which are timed by the host's clock, so that the device seems very slow.
static void waited(void) {
  syncs++;
  if (probing)
    usleep(25000);
  probing = 0;
}
R cuInit(unsigned f) { return 0; }
static int number(const char *name, int otherwise) {
  const char *e = getenv(name);
  return e ? atoi(e) : otherwise;
}
R cuDriverGetVersion(int *v) {
  *v = number("CUDA_STUB_VERSION", 13050);
  return 0;
}
R cuDeviceGet(Dev *d, int i) {
  *d = i;
  return i < number("CUDA_STUB_DEVICES", 1) ? 0 : 101;
}
R cuDeviceGetCount(int *n) {
  *n = number("CUDA_STUB_DEVICES", 1);
  return *n ? 0 : 100;
}
R cuDeviceGetName(char *s, int n, Dev d) {
  snprintf(s, n, "NVIDIA H100 80GB HBM3");
  return 0;
}
R cuDeviceGetUuid(void *u, Dev d) {
  memset(u, 7, 16);
  return 0;
}
R cuDeviceGetUuid_v2(void *u, Dev d) {
  memset(u, 7, 16);
  return 0;
}
R cuDeviceGetLuid(char *l, unsigned *m, Dev d) { return 801; }
R cuDeviceGetPCIBusId(char *s, int n, Dev d) {
  snprintf(s, n, "0000:01:00.0");
  return 0;
}
R cuDeviceTotalMem_v2(size_t *n, Dev d) {
  const char *e = getenv("CUDA_STUB_MIB");
  *n = e ? (size_t)atoll(e) << 20 : total_mem;
  return 0;
}
R cuDeviceGetAttribute(int *v, int a, Dev d) {
  switch (a) {
  case 1:
    *v = 1024;
    break;
  case 2:
  case 3:
    *v = 1024;
    break;
  case 4:
    *v = 64;
    break;
  case 5:
    *v = 2147483647;
    break;
  case 6:
  case 7:
    *v = 65535;
    break;
  case 8:
    *v = 49152;
    break;
  case 9:
    *v = 65536;
    break;
  case 10:
    *v = 32;
    break;
  case 12:
    *v = 65536;
    break;
  case 13:
    *v = 1980000;
    break;
  case 16:
    *v = 132;
    break;
  case 36:
    *v = 2619000;
    break;
  case 37:
    *v = 5120;
    break;
  case 38:
    *v = 52428800;
    break;
  case 39:
    *v = 2048;
    break;
  case 75:
    *v = 9;
    break;
  case 76:
    *v = 0;
    break;
  case 81:
    *v = 233472;
    break;
  case 82:
    *v = 65536;
    break;
  case 97:
    *v = 232448;
    break;
  case 106:
    *v = 32;
    break;
  default:
    *v = 1;
  }
  return 0;
}
R cuDevicePrimaryCtxRetain(H *c, Dev d) {
  *c = (H)0x1000;
  return 0;
}
R cuDevicePrimaryCtxRelease_v2(Dev d) { return 0; }
R cuDevicePrimaryCtxSetFlags_v2(Dev d, unsigned f) { return 0; }
R cuCtxSetCurrent(H c) { return 0; }
R cuCtxGetCurrent(H *c) {
  *c = (H)0x1000;
  return 0;
}
R cuCtxGetDevice(Dev *d) {
  *d = 0;
  return 0;
}
R cuCtxSynchronize(void) {
  waited();
  return 0;
}
R cuCtxGetStreamPriorityRange(int *a, int *b) {
  *a = 0;
  *b = -5;
  return 0;
}
R cuCtxSetLimit(int l, size_t v) { return 0; }
R cuCtxGetLimit(size_t *v, int l) {
  *v = 0;
  return 0;
}
R cuMemGetInfo_v2(size_t *f, size_t *t) {
  cuDeviceTotalMem_v2(t, 0);
  *f = *t > used ? *t - used : 0;
  return 0;
}
static int room(size_t n) {
  size_t t;
  cuDeviceTotalMem_v2(&t, 0);
  return used + n <= t;
}
R cuMemAlloc_v2(Ptr *p, size_t n) {
  if (!room(n))
    return 2;
  *p = take(n);
  return 0;
}
R cuMemAllocAsync(Ptr *p, size_t n, H s) {
  if (!room(n))
    return 2;
  *p = take(n);
  return 0;
}
R cuMemAllocFromPoolAsync(Ptr *p, size_t n, H pool, H s) { return cuMemAllocAsync(p, n, s); }
R cuMemFree_v2(Ptr p) {
  give(p);
  return 0;
}
R cuMemFreeAsync(Ptr p, H s) {
  give(p);
  return 0;
}
R cuMemAllocHost_v2(void **p, size_t n) { return posix_memalign(p, 4096, n ? n : 1) ? 2 : 0; }
R cuMemHostAlloc(void **p, size_t n, unsigned f) { return cuMemAllocHost_v2(p, n); }
R cuMemFreeHost(void *p) {
  free(p);
  return 0;
}
R cuMemHostGetDevicePointer_v2(Ptr *d, void *p, unsigned f) {
  *d = (Ptr)p;
  return 0;
}
R cuMemcpyHtoD_v2(Ptr d, const void *s, size_t n) {
  htod++;
  htod_bytes += n;
  if (real())
    memcpy((void *)d, s, n);
  return 0;
}
R cuMemcpyHtoDAsync_v2(Ptr d, const void *s, size_t n, H q) { return cuMemcpyHtoD_v2(d, s, n); }
static int one(void) {
  const char *e = getenv("CUDA_STUB_ONES");
  return e != NULL;
}
R cuMemcpyDtoH_v2(void *d, Ptr s, size_t n) {
  dtoh++;
  dtoh_bytes += n;
  // Few bytes are what a step reads back, which no kernel has computed.
  if (real() && !(one() && n <= 4096)) {
    memcpy(d, (void *)s, n);
    return 0;
  }
  memset(d, 0, n);
  if (one())
    for (size_t i = 0; i + 4 <= n; i += 4)
      *(float *)((char *)d + i) = 1.0f;
  return 0;
}
R cuMemcpyDtoHAsync_v2(void *d, Ptr s, size_t n, H q) { return cuMemcpyDtoH_v2(d, s, n); }
R cuMemcpyDtoDAsync_v2(Ptr d, Ptr s, size_t n, H q) {
  dtod++;
  dtod_bytes += n;
  if (real())
    memmove((void *)d, (void *)s, n);
  return 0;
}
R cuMemcpyDtoD_v2(Ptr d, Ptr s, size_t n) {
  dtod++;
  dtod_bytes += n;
  if (real())
    memmove((void *)d, (void *)s, n);
  return 0;
}
R cuMemcpyPeerAsync(Ptr d, H a, Ptr s, H b, size_t n, H q) {
  dtod++;
  dtod_bytes += n;
  if (real())
    memmove((void *)d, (void *)s, n);
  return 0;
}
R cuMemcpy2DAsync_v2(const void *c, H q) {
  htod++;
  return 0;
}
R cuMemsetD8Async(Ptr d, unsigned char v, size_t n, H q) {
  memsets++;
  return 0;
}
R cuMemsetD8_v2(Ptr d, unsigned char v, size_t n) {
  memsets++;
  return 0;
}
R cuMemsetD32Async(Ptr d, unsigned v, size_t n, H q) {
  memsets++;
  return 0;
}
R cuStreamCreate(H *s, unsigned f) {
  static uint64_t k = 0x2000;
  *s = (H)(k += 8);
  return 0;
}
R cuStreamCreateWithPriority(H *s, unsigned f, int p) { return cuStreamCreate(s, f); }
R cuStreamDestroy_v2(H s) { return 0; }
R cuStreamSynchronize(H s) {
  waited();
  return 0;
}
R cuStreamQuery(H s) { return 0; }
R cuStreamWaitEvent(H s, H e, unsigned f) { return 0; }
R cuStreamIsCapturing(H s, int *v) {
  *v = 0;
  return 0;
}
R cuStreamGetCtx(H s, H *c) {
  *c = (H)0x1000;
  return 0;
}
R cuLaunchHostFunc(H s, void (*f)(void *), void *u) {
  f(u);
  return 0;
}
// An event's time counts the work before it: 1 us per launch, or 0.1 ms while the speed of launches is probed.
struct event {
  double ms;
  uint64_t launches;
};
R cuEventCreate(H *e, unsigned f) {
  *e = calloc(1, sizeof(struct event));
  return 0;
}
R cuCtxRecordEvent(H ctx, H e) { return 0; }
R cuCtxWaitEvent(H ctx, H e) { return 0; }
R cuEventRecord(H e, H s) {
  events++;
  struct event *event = e;
  event->ms = work_ms;
  event->launches = launches;
  return 0;
}
// Whether the device has this many launches to go on with, when what was waited for is done: then nothing stands still.
// CubeCL frees the host memory of its uploads so: after 64 of them it waits for the event that followed the 64 before
// (`PendingDropQueue` in cubecl-server). Such waits are counted as late ones.
#define AHEAD 1000
R cuEventSynchronize(H e) {
  if (launches >= ((struct event *)e)->launches + AHEAD) {
    late++;
    probing = 0;
  } else
    waited();
  return 0;
}
R cuEventQuery(H e) { return 0; }
// Times mean nothing here. CubeCL's autotune compares kernels with the speed that its probes measured, and takes the first
// that comes near. With slow probes and instant kernels it compiles only one kernel.
R cuEventElapsedTime(float *ms, H a, H b) {
  *ms = ((struct event *)b)->ms - ((struct event *)a)->ms;
  if (*ms <= 0)
    *ms = 1e-3f;
  return 0;
}
R cuEventElapsedTime_v2(float *ms, H a, H b) { return cuEventElapsedTime(ms, a, b); }
R cuEventDestroy_v2(H e) {
  free(e);
  return 0;
}
// Writes each kernel's PTX to a file in the folder that CUDA_STUB_PTX names, for ptxas.
static void kept(const char *image) {
  const char *folder = getenv("CUDA_STUB_PTX"), *entry = strstr(image, ".entry ");
  if (!folder || !entry)
    return;
  char path[4096];
  int length = strcspn(entry + 7, "(\n ");
  snprintf(path, sizeof path, "%s/%.*s.ptx", folder, length, entry + 7);
  FILE *file = fopen(path, "w");
  if (file) {
    fputs(image, file);
    fclose(file);
  }
}
R cuModuleLoadData(H *m, const void *image) {
  modules++;
  kept(image);
  *m = (H)(uintptr_t)(0x10000 + modules * 16);
  return 0;
}
R cuModuleLoadDataEx(H *m, const void *image, unsigned n, void *o, void **v) { return cuModuleLoadData(m, image); }
R cuModuleUnload(H m) { return 0; }
R cuModuleGetFunction(H *f, H m, const char *name) {
  struct fn *p = calloc(1, sizeof *p);
  snprintf(p->name, sizeof p->name, "%s", name);
  pthread_mutex_lock(&mu);
  p->next = fns;
  fns = p;
  pthread_mutex_unlock(&mu);
  *f = p;
  return 0;
}
R cuModuleGetGlobal_v2(Ptr *p, size_t *n, H m, const char *name) {
  *p = 0x500000;
  if (n)
    *n = 4;
  return 0;
}
R cuFuncSetAttribute(H f, int a, int v) { return 0; }
R cuFuncGetAttribute(int *v, int a, H f) {
  *v = 32;
  return 0;
}
R cuFuncSetCacheConfig(H f, int c) { return 0; }
static void launched(struct fn *f) {
  launches++;
  if (!f)
    return;
  f->n++;
  probing = strstr(f->name, "throughput") != NULL;
  work_ms += strstr(f->name, "launch_overhead") ? 0.1 : 1e-3;
}
// Writes a line for each launch to the file that CUDA_STUB_TRACE names: the kernel and its cubes.
static void traced(struct fn *f, unsigned a, unsigned b, unsigned c) {
  static FILE *trace;
  if (!trace && getenv("CUDA_STUB_TRACE"))
    trace = fopen(getenv("CUDA_STUB_TRACE"), "a");
  if (trace && f) {
    fprintf(trace, "%s %u %u %u\n", f->name, a, b, c);
    fflush(trace);
  }
}
R cuLaunchKernel(H f, unsigned a, unsigned b, unsigned c, unsigned x, unsigned y, unsigned z, unsigned sh, H s,
                 void **p, void **e) {
  launched(f);
  traced(f, a, b, c);
  return 0;
}
R cuLaunchKernelEx(const void *cfg, H f, void **p, void **e) {
  launched(f);
  return 0;
}
R cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, H f, int b, size_t s) {
  *n = 1;
  return 0;
}
R cuTensorMapEncodeTiled(void *m, int t, unsigned r, void *a, const void *d, const void *st, const void *b,
                         const void *es, int i, int sw, int l2, int oob) {
  memset(m, 0, 128);
  return 0;
}
R cuTensorMapEncodeIm2col() { return 0; }
R cuTensorMapEncodeIm2colWide() { return 0; }
R cuGetErrorName(R e, const char **s) {
  *s = "STUB";
  return 0;
}
R cuGetErrorString(R e, const char **s) {
  *s = e == 2 ? "out of memory (stub)" : "stub";
  return 0;
}
R cuDeviceCanAccessPeer(int *v, Dev a, Dev b) {
  *v = 0;
  return 0;
}
R cuDeviceGetDefaultMemPool(H *p, Dev d) {
  *p = (H)0x3000;
  return 0;
}
R cuDeviceGetMemPool(H *p, Dev d) {
  *p = (H)0x3000;
  return 0;
}
R cuDeviceSetMemPool(Dev d, H p) { return 0; }
R cuMemPoolSetAttribute(H p, int a, void *v) { return 0; }
R cuMemPoolGetAttribute(H p, int a, void *v) {
  *(uint64_t *)v = 0;
  return 0;
}
R cuMemPoolTrimTo(H p, size_t n) { return 0; }
R cuPointerGetAttribute(void *d, int a, Ptr p) { return 1; }
R cuGetProcAddress_v2(const char *s, void **f, int v, uint64_t fl, void *st) {
  *f = NULL;
  return 500;
}
R cuStreamBeginCapture_v2(H s, int m) { return 0; }
R cuStreamEndCapture(H s, H *g) {
  *g = (H)0x4000;
  return 0;
}
R cuGraphInstantiateWithFlags(H *e, H g, uint64_t f) {
  *e = (H)0x4008;
  return 0;
}
R cuGraphLaunch(H e, H s) { return 0; }
R cuGraphUpload(H e, H s) { return 0; }
R cuGraphDestroy(H g) { return 0; }
R cuGraphExecDestroy(H e) { return 0; }
R cuGraphGetNodes(H g, H *n, size_t *k) {
  *k = 0;
  return 0;
}
