/* How fast this machine is, in nanoseconds of processor time: the same program is run on a real machine and in an
 * emulated one, so that what emulation costs is known for each kind of work. Prints "NAME NANOSECONDS" lines:
 *   arithmetic   one step of a generator, each of which waits for the one before
 *   access       one byte written in a page of its own, all of which have been there before
 *   call         one system call that reads 8 bytes of /proc/self/pagemap
 *   pagemap      one page, of pieces of 65,536 that are read of it
 *   fault        one page that is given back and written anew
 * Each is the least of three. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 1 << 15, STEPS = 3000000, CALLS = 5000, ROUNDS = 4, FAULTS = 4096 };

static volatile uint64_t kept;
static char *memory;
static uint64_t entries[PAGES];
static int pagemap;

static void arithmetic(void) {
    uint64_t x = kept | 1;
    for (int i = 0; i < STEPS; i++)
        x = x * 6364136223846793005u + 1442695040888963407u;
    kept = x;
}

static void touch(int pages) {
    for (size_t at = 0; at < (size_t)pages * PAGE; at += PAGE)
        ((volatile char *)memory)[at]++;
}

static void access_pages(void) {
    for (int i = 0; i < ROUNDS; i++)
        touch(PAGES);
}

static void read_entries(size_t count) {
    if (pread(pagemap, entries, count * 8, (off_t)((uintptr_t)memory / PAGE * 8)) != (ssize_t)(count * 8))
        exit(1);
}

static void call(void) {
    for (int i = 0; i < CALLS; i++)
        read_entries(1);
}

static void whole(void) {
    for (int i = 0; i < ROUNDS; i++)
        read_entries(PAGES);
}

static void fault(void) {
    if (madvise(memory, (size_t)FAULTS * PAGE, MADV_DONTNEED))
        exit(1);
    touch(FAULTS);
}

static void print(const char *name, void (*work)(void), double count) {
    double least = 1e18;
    for (int i = 0; i < 3; i++) {
        struct timespec begun, ended;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begun);
        work();
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ended);
        double ns = (double)(ended.tv_sec - begun.tv_sec) * 1e9 + (double)(ended.tv_nsec - begun.tv_nsec);
        least = ns < least ? ns : least;
    }
    printf("%s %.3f\n", name, least / count);
}

int main(void) {
    memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pagemap = open("/proc/self/pagemap", O_RDONLY);
    if (memory == MAP_FAILED || pagemap < 0 || madvise(memory, (size_t)PAGES * PAGE, MADV_NOHUGEPAGE))
        return 1;
    touch(PAGES);
    print("arithmetic", arithmetic, STEPS);
    print("access", access_pages, (double)ROUNDS * PAGES);
    print("call", call, CALLS);
    print("pagemap", whole, (double)ROUNDS * PAGES);
    print("fault", fault, FAULTS);
    return 0;
}
