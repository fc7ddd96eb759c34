// Prints the stack of every thread: preloaded into a program, it answers SIGUSR2 with each thread's stack on standard
// error, as addresses within their files. A machine with a GPU may have no debugger, and a run that hangs there must show
// what it waits for. `addr2line -fe` with the binary before `strip` gives the names of the functions.
//
//   gcc -O1 -shared -fPIC -o stacks.so stacks.c
#define _GNU_SOURCE
#include <dirent.h>
#include <execinfo.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int each;

static void one(int signal) {
  (void)signal;
  void *frames[64];
  int n = backtrace(frames, 64);
  char line[64];
  snprintf(line, sizeof line, "-- thread %ld\n", (long)syscall(SYS_gettid));
  if (write(2, line, strlen(line)) < 0) return;
  backtrace_symbols_fd(frames, n, 2);
}

static void all(int signal) {
  (void)signal;
  DIR *threads = opendir("/proc/self/task");
  if (!threads) return;
  for (struct dirent *entry; (entry = readdir(threads));) {
    int thread = atoi(entry->d_name);
    if (thread <= 0) continue;
    syscall(SYS_tgkill, getpid(), thread, each);
    // One after the other, so that their lines don't mix.
    nanosleep(&(struct timespec){0, 20000000}, NULL);
  }
  closedir(threads);
}

__attribute__((constructor)) static void install(void) {
  void *frames[4];
  backtrace(frames, 4); // loads the unwinder now: it allocates at its first use
  each = SIGRTMIN + 3;
  struct sigaction action = {.sa_handler = one, .sa_flags = SA_RESTART | SA_ONSTACK};
  sigaction(each, &action, NULL);
  action.sa_handler = all;
  sigaction(SIGUSR2, &action, NULL);
}
