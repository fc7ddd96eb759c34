// A CUPTI injection library that sums up the GPU time of any CUDA program by kernel.
//
// Use: CUDA_INJECTION64_PATH=/path/kernel_times.so program
//   BASIC_PROFILE=FILE          The summary is appended to this file; without it, it goes to stderr.
//   BASIC_PROFILE_LAST=SECONDS  The table covers only kernels that started within so many seconds before the last
//                               kernel's end, with a line of totals of its own beside that of the whole run.
//   BASIC_CUPTI=FILE            This libcupti is tried first.
//
// Build, with the headers of nvidia-cuda-cupti, nvidia-cuda-runtime and nvidia-cuda-crt 13.0 in INCLUDE:
//   gcc -O2 -shared -fPIC -Wall -isystem INCLUDE kernel_times.c -o kernel_times.so -pthread -ldl
//
// The summary is written when the program returns from main or calls exit. _exit, abort and fatal signals run no
// handler of a library, so that nothing is written after them.
#define _GNU_SOURCE
#include <cupti.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUFFER_BYTES ((size_t)8 << 20)
#define ROWS 300

enum { KERNEL, HTOD, DTOH, DTOD, OTHER_COPY, MEMSET, KINDS };

// Times are CUPTI's, in nanoseconds. The value is the name's index for a kernel and the bytes for a copy or memset.
typedef struct { uint64_t start, end, kind : 4, value : 60; } Record;
typedef struct { uint64_t ns[KINDS], count[KINDS], bytes[KINDS], first, last, busy; } Totals;
typedef struct { uint64_t ns, launches; const char *name; } Row;

// CUPTI's functions, which are found at run time: p_ and the function's name.
#define FUNCTIONS(F) \
    F(cuptiActivityRegisterCallbacks) F(cuptiActivityEnable) F(cuptiActivityGetNextRecord) \
    F(cuptiActivityGetNumDroppedRecords) F(cuptiActivityFlushAll) F(cuptiGetVersion)
#define DECLARE(name) static typeof(&name) p_##name;
FUNCTIONS(DECLARE)

static atomic_int started, finished;
static pid_t owner;

// The lock guards everything below it: CUPTI hands over full buffers from a thread of its own.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Record *records;
static size_t record_count, record_room, name_count, slot_count;
static char **names;    // It has room for half as many names as there are slots.
static uint32_t *slots; // An open-addressed hash table of indexes into names, each plus one; zero is empty.
static uint64_t dropped, incomplete, out_of_memory;

// The slot that holds this name, or the empty one where it belongs.
static size_t find_slot(const char *name) {
    uint64_t hash = 14695981039346656037u;
    for (const char *c = name; *c; c++) hash = (hash ^ (unsigned char)*c) * 1099511628211u;
    size_t slot = (hash ^ hash >> 32) & (slot_count - 1);
    while (slots[slot] && strcmp(names[slots[slot] - 1], name)) slot = (slot + 1) & (slot_count - 1);
    return slot;
}

// The index of this name, of which a copy is kept: CUPTI's own is valid only during the callback. -1: no memory.
static int64_t intern(const char *name) {
    if (name_count * 2 == slot_count) {
        size_t wanted = slot_count ? slot_count * 2 : 1024;
        char **more = realloc(names, wanted / 2 * sizeof *more);
        if (more) names = more;
        uint32_t *grown = more ? calloc(wanted, sizeof *grown) : NULL;
        if (!grown) return -1;
        free(slots);
        slots = grown;
        slot_count = wanted;
        for (size_t i = 0; i < name_count; i++) slots[find_slot(names[i])] = i + 1;
    }
    size_t slot = find_slot(name);
    if (!slots[slot] && !(names[name_count] = strdup(name))) return -1;
    if (!slots[slot]) slots[slot] = ++name_count;
    return slots[slot] - 1;
}

static void add(int kind, uint64_t start, uint64_t end, int64_t value) {
    // CUPTI leaves the times at zero where it could not take them or the operation had not ended.
    int whole = start && end >= start;
    if (whole && record_count == record_room) {
        size_t wanted = record_room ? record_room * 2 : 65536;
        Record *grown = realloc(records, wanted * sizeof *grown);
        if (grown) records = grown, record_room = wanted;
    }
    if (!whole) incomplete++;
    else if (value < 0 || record_count == record_room) out_of_memory++;
    else records[record_count++] = (Record){start, end, kind, value};
}

// Takes in one record of CUPTI's; the caller holds the lock.
static void handle(const CUpti_Activity *activity) {
    const CUpti_ActivityKernel10 *k = (const void *)activity;
    const CUpti_ActivityMemcpy6 *c = (const void *)activity;
    const CUpti_ActivityMemset4 *m = (const void *)activity;
    if (activity->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL || activity->kind == CUPTI_ACTIVITY_KIND_KERNEL) {
        add(KERNEL, k->start, k->end, intern(k->name ? k->name : "(no name)"));
    } else if (activity->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
        int way = c->copyKind, kind = OTHER_COPY;
        if (way == CUPTI_ACTIVITY_MEMCPY_KIND_HTOD) kind = HTOD;
        if (way == CUPTI_ACTIVITY_MEMCPY_KIND_DTOH) kind = DTOH;
        if (way == CUPTI_ACTIVITY_MEMCPY_KIND_DTOD) kind = DTOD;
        add(kind, c->start, c->end, c->bytes);
    } else if (activity->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
        add(MEMSET, m->start, m->end, m->bytes);
    }
}

static void CUPTIAPI buffer_requested(uint8_t **buffer, size_t *size, size_t *max_records) {
    *buffer = aligned_alloc(8, BUFFER_BYTES);
    *size = *buffer ? BUFFER_BYTES : 0;
    *max_records = 0;
}

static void CUPTIAPI buffer_completed(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
    CUpti_Activity *activity = NULL;
    size_t lost = 0;
    pthread_mutex_lock(&lock);
    CUptiResult result;
    while (!(result = p_cuptiActivityGetNextRecord(buffer, valid, &activity))) handle(activity);
    // A forced flush may hand over a buffer whose records are incomplete from some point on.
    incomplete += valid && result != CUPTI_ERROR_MAX_LIMIT_REACHED;
    if (p_cuptiActivityGetNumDroppedRecords(context, stream, &lost) == CUPTI_SUCCESS) dropped += lost;
    pthread_mutex_unlock(&lock);
    free(buffer);
}

static int by_start(const void *a, const void *b) {
    uint64_t x = ((const Record *)a)->start, y = ((const Record *)b)->start;
    return (x > y) - (x < y);
}
static int by_time(const void *a, const void *b) {
    uint64_t x = ((const Row *)a)->ns, y = ((const Row *)b)->ns;
    return (x < y) - (x > y);
}

// Sums up the records, sorted by start, that started at `since` or later; where rows are given, by kernel too. The
// busy time is that in which at least one kernel ran, however many ran at once.
static Totals sum(uint64_t since, Row *rows) {
    Totals t = {0};
    for (size_t i = 0; i < record_count; i++) {
        const Record *r = &records[i];
        if (r->start < since) continue;
        t.ns[r->kind] += r->end - r->start;
        t.count[r->kind]++;
        t.bytes[r->kind] += r->value; // This means nothing for kernels, and is not printed for them.
        if (r->kind != KERNEL) continue;
        if (rows) rows[r->value].launches++, rows[r->value].ns += r->end - r->start;
        if (!t.first) t.first = t.last = r->start;
        if (r->end <= t.last) continue;
        t.busy += r->end - (r->start > t.last ? r->start : t.last);
        t.last = r->end;
    }
    return t;
}

static void print_totals(FILE *out, const char *part, const Totals *t) {
    static const char *labels[KINDS] = {"", "memcpy HtoD", "DtoH", "DtoD", "other copies", "memset"};
    uint64_t wall = t->last - t->first;
    fprintf(out, "%s: kernels %.6f s, %lu launches, wall %.6f s, busy %.1f%%", part, t->ns[KERNEL] / 1e9,
            t->count[KERNEL], wall / 1e9, wall ? 100.0 * t->busy / wall : 0);
    for (int k = HTOD; k < KINDS; k++)
        if (k != OTHER_COPY || t->count[k])
            fprintf(out, "; %s %lu, %lu bytes, %.6f s", labels[k], t->count[k], t->bytes[k], t->ns[k] / 1e9);
    fputc('\n', out);
}

// Writes the summary; the caller holds the lock.
static void report(FILE *out) {
    const char *setting = getenv("BASIC_PROFILE_LAST");
    double last = setting ? strtod(setting, NULL) : 0;
    uint32_t version = 0;
    char part[64];
    if (p_cuptiGetVersion) p_cuptiGetVersion(&version);
    fprintf(out, "GPU profile of %s, process %d, CUPTI %u (headers %d)", program_invocation_short_name, (int)getpid(),
            version, CUPTI_API_VERSION);
    if (dropped || incomplete || out_of_memory)
        fprintf(out, "; not counted: %lu dropped by CUPTI, %lu incomplete, %lu for want of memory", dropped, incomplete,
                out_of_memory);
    fputc('\n', out);
    Row *rows = calloc(name_count + 1, sizeof *rows);
    for (size_t i = 0; rows && i < name_count; i++) rows[i].name = names[i];
    if (record_count) qsort(records, record_count, sizeof *records, by_start);
    Totals t = sum(0, last > 0 ? NULL : rows);
    print_totals(out, "whole run", &t);
    if (last > 0) {
        snprintf(part, sizeof part, "last %g s", last);
        t = sum(last * 1e9 < t.last ? t.last - (uint64_t)(last * 1e9) : 0, rows);
        print_totals(out, part, &t);
    }
    size_t used = 0;
    for (size_t i = 0; rows && i < name_count; i++)
        if (rows[i].launches) rows[used++] = rows[i];
    if (used) qsort(rows, used, sizeof *rows, by_time);
    fprintf(out, "%12s %6s %10s %12s  %s\n", "seconds", "share", "launches", "mean us", "kernel");
    for (size_t i = 0; i < used && i < ROWS; i++)
        fprintf(out, "%12.6f %5.1f%% %10lu %12.2f  %.160s\n", rows[i].ns / 1e9,
                t.ns[KERNEL] ? 100.0 * rows[i].ns / t.ns[KERNEL] : 0, rows[i].launches,
                rows[i].ns / 1e3 / rows[i].launches, rows[i].name);
    if (used > ROWS) fprintf(out, "(%zu more kernels)\n", used - ROWS);
    free(rows);
}

// Runs at exit or, where that did not happen, as the library is unloaded: once, and not in a forked child.
__attribute__((destructor)) static void finish(void) {
    if (!atomic_load(&started) || owner != getpid() || atomic_exchange(&finished, 1)) return;
    p_cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    const char *path = getenv("BASIC_PROFILE");
    FILE *out = path && *path ? fopen(path, "ae") : NULL;
    if (path && *path && !out) fprintf(stderr, "profile: %s: %s\n", path, strerror(errno));
    // One large buffer, so that programs that end together do not mix their lines in one file.
    if (out) setvbuf(out, NULL, _IOFBF, 1 << 16);
    pthread_mutex_lock(&lock);
    report(out ? out : stderr);
    pthread_mutex_unlock(&lock);
    if (out) fclose(out);
}

// CUDA calls this once, within cuInit. The program runs on whatever it returns; 1 says that all is well.
int InitializeInjection(void) {
    const char *paths[] = {getenv("BASIC_CUPTI"), "libcupti.so.13", "libcupti.so",
                           "/usr/local/cuda/extras/CUPTI/lib64/libcupti.so", "/usr/local/cuda/lib64/libcupti.so"};
    void *library = NULL;
    if (atomic_load(&started)) return 1;
    for (size_t i = 0; i < sizeof paths / sizeof *paths && !library; i++)
        if (paths[i] && *paths[i]) library = dlopen(paths[i], RTLD_NOW);
    if (!library) return fprintf(stderr, "profile: no libcupti loads; the program runs without a profile\n"), 1;
#define FIND(name) complete &= (p_##name = (typeof(&name))dlsym(library, #name)) != NULL;
    int complete = 1;
    FUNCTIONS(FIND)
    CUptiResult result = complete ? p_cuptiActivityRegisterCallbacks(buffer_requested, buffer_completed)
                                  : CUPTI_ERROR_NOT_SUPPORTED;
    const CUpti_ActivityKind kinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                        CUPTI_ACTIVITY_KIND_MEMSET};
    for (size_t i = 0; i < 3 && result == CUPTI_SUCCESS; i++) result = p_cuptiActivityEnable(kinds[i]);
    if (result) return fprintf(stderr, "profile: CUPTI error %d; the program runs without a profile\n", (int)result), 1;
    owner = getpid();
    atomic_store(&started, 1);
    atexit(finish);
    return 1;
}
