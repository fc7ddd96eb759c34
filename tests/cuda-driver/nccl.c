// A stand-in for NCCL whose ranks are threads or processes of one machine. It moves real bytes between memory that the
// driver that counts has made with CUDA_STUB_MEMORY=1, when an operation is launched instead of later on the stream, so
// that what basic_core asks for is seen to be right: addresses, lengths, types, order. It cannot show that work on the
// device is in order.
//
//   gcc -O1 -shared -fPIC -Wall -o libnccl.so.2 nccl.c -lpthread
//
// CUDA_STUB_NCCL=1  says at the end how many operations there were
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct { char internal[128]; } Id;
enum { RANKS = 16, CHUNK = 1 << 20 };
typedef struct {
  pthread_barrier_t barrier;
  volatile int ready, wrong;
  struct { int operation; size_t count; int type, root; } calls[RANKS];
  char data[RANKS][CHUNK];
} Shared;
typedef struct { Shared *shared; int rank, world; } *Comm;

static long operations[5];
static void told(void) {
  fprintf(stderr, "nccl: %ld sums, %ld reduce-scatters, %ld all-gathers, %ld broadcasts\n", operations[1], operations[2],
          operations[3], operations[4]);
}

int ncclGetUniqueId(Id *id) {
  static int count;
  memset(id, 0, sizeof *id);
  snprintf(id->internal, sizeof id->internal, "/basic-nccl-%d-%d", getpid(), __sync_fetch_and_add(&count, 1));
  return 0;
}
int ncclCommInitRank(Comm *comm, int world, Id id, int rank) {
  if (world < 1 || world > RANKS || rank < 0 || rank >= world) return 4;
  int file = shm_open(id.internal, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, sizeof(Shared))) return 2;
  Shared *shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (shared == MAP_FAILED) return 2;
  if (rank == 0) {
    pthread_barrierattr_t attributes;
    pthread_barrierattr_init(&attributes);
    pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&shared->barrier, &attributes, world);
    __sync_synchronize();
    shared->ready = 1;
  }
  while (!shared->ready) usleep(1000);
  pthread_barrier_wait(&shared->barrier);
  // All have it open, so that its name is not needed any more.
  if (rank == 0) shm_unlink(id.internal);
  *comm = malloc(sizeof **comm);
  (*comm)->shared = shared, (*comm)->rank = rank, (*comm)->world = world;
  static int once;
  if (getenv("CUDA_STUB_NCCL") && !__sync_fetch_and_add(&once, 1)) atexit(told);
  return 0;
}
int ncclCommDestroy(Comm comm) { free(comm); return 0; }
int ncclCommGetAsyncError(Comm comm, int *error) { *error = comm->shared->wrong; return 0; }
const char *ncclGetErrorString(int error) { return error == 5 ? "the ranks' calls differ (stand-in)" : "an error (stand-in)"; }

// All ranks bring `own` bytes. `take` gets every rank's bytes, piece by piece.
static int run(Comm comm, int operation, const char *from, size_t bytes, size_t count, int type, int root,
               void (*take)(Comm, size_t at, size_t n, char *to), char *to) {
  Shared *s = comm->shared;
  __sync_fetch_and_add(&operations[operation], 1);
  s->calls[comm->rank].operation = operation, s->calls[comm->rank].count = count;
  s->calls[comm->rank].type = type, s->calls[comm->rank].root = root;
  pthread_barrier_wait(&s->barrier);
  for (int r = 0; r < comm->world; r++)
    if (memcmp(&s->calls[r], &s->calls[0], sizeof s->calls[0])) s->wrong = 5;
  pthread_barrier_wait(&s->barrier);
  if (s->wrong) return s->wrong;
  for (size_t at = 0; at < bytes; at += CHUNK) {
    size_t n = bytes - at < CHUNK ? bytes - at : CHUNK;
    memcpy(s->data[comm->rank], from + at, n);
    pthread_barrier_wait(&s->barrier);
    take(comm, at, n, to);
    pthread_barrier_wait(&s->barrier);
  }
  return 0;
}
static float sum(Comm comm, size_t i) {
  float sum = 0;
  for (int r = 0; r < comm->world; r++) sum += ((float *)comm->shared->data[r])[i];
  return sum;
}
static void sums(Comm comm, size_t at, size_t n, char *to) {
  for (size_t i = 0; i < n / 4; i++) ((float *)(to + at))[i] = sum(comm, i);
}
typedef struct { char *to; size_t length; } Part;
static void part_of_sums(Comm comm, size_t at, size_t n, char *to) {
  Part *part = (Part *)to;
  size_t start = part->length * comm->rank;
  for (size_t i = 0; i < n; i += 4)
    if (at + i >= start && at + i < start + part->length) *(float *)(part->to + (at + i - start)) = sum(comm, i / 4);
}
static void joined(Comm comm, size_t at, size_t n, char *to) {
  Part *part = (Part *)to;
  for (int r = 0; r < comm->world; r++) memcpy(part->to + r * part->length + at, comm->shared->data[r], n);
}
static void of_root(Comm comm, size_t at, size_t n, char *to) {
  memcpy(to + at, comm->shared->data[comm->shared->calls[0].root], n);
}
int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, Comm comm, void *stream) {
  return type != 7 || op ? 4 : run(comm, 1, from, 4 * count, count, type, 0, sums, to);
}
int ncclReduceScatter(const void *from, void *to, size_t count, int type, int op, Comm comm, void *stream) {
  Part part = {to, 4 * count};
  return type != 7 || op ? 4 : run(comm, 2, from, 4 * count * comm->world, count, type, 0, part_of_sums, (char *)&part);
}
int ncclAllGather(const void *from, void *to, size_t count, int type, Comm comm, void *stream) {
  Part part = {to, count};
  return type != 1 ? 4 : run(comm, 3, from, count, count, type, 0, joined, (char *)&part);
}
int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, Comm comm, void *stream) {
  return type != 1 ? 4 : run(comm, 4, from, count, count, type, root, of_root, to);
}
