/* A program that reads its memory at random, for bench/large_pages_speed.py.
 *
 *     touches BYTES HOTFILE small|large
 *
 * Memory of whole blocks of 2 MiB is written once; with `large` it is advised MADV_HUGEPAGE before. HOTFILE holds the
 * numbers of the hot blocks, 4 bytes each; their number and that of all blocks are powers of two. Of each 1024 reads
 * 922 go to a hot block, the others to any. Each address hangs on what was read before, so reads do not overlap. Prints
 * its pid and where its memory begins; then, for each line "N" on its standard input, the seconds that N reads took.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define BLOCK (2UL << 20)
#define HOT_OF_1024 922

static uint64_t step(uint64_t r) {
    r ^= r << 13;
    r ^= r >> 7;
    return r ^ (r << 17);
}

static double reads(const char *memory, uint64_t blocks, const uint32_t *hot, uint64_t hots, long count) {
    struct timespec begun, ended;
    uint64_t r = 88172645463325252UL;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    for (long n = 0; n < count; n++) {
        r = step(r);
        uint64_t draw = r >> 21;
        uint64_t block = (r & 1023) < HOT_OF_1024 ? hot[draw & (hots - 1)] : (draw & (blocks - 1));
        const volatile uint64_t *place =
            (const volatile uint64_t *)(memory + block * BLOCK + ((r >> 43) * 8 & (BLOCK - 1)));
        r += *place; /* which is 0, as only we know */
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    return (ended.tv_sec - begun.tv_sec) + (ended.tv_nsec - begun.tv_nsec) / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    uint64_t size = strtoull(argv[1], NULL, 10), blocks = size / BLOCK;
    uint32_t *hot = malloc(blocks * sizeof *hot);
    FILE *file = fopen(argv[2], "rb");
    if (!hot || !file)
        return 1;
    uint64_t hots = fread(hot, sizeof *hot, blocks, file);
    char *all = mmap(NULL, size + BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED || !hots || (hots & (hots - 1)) || (blocks & (blocks - 1)))
        return 1;
    char *memory = (char *)(((uintptr_t)all + BLOCK - 1) & ~(BLOCK - 1));
    if (!strcmp(argv[3], "large") && madvise(memory, size, MADV_HUGEPAGE))
        return 1;
    for (uint64_t at = 0; at < size; at += 4096)
        *(volatile uint64_t *)(memory + at) = 0;
    printf("%d %lu\n", getpid(), (unsigned long)(uintptr_t)memory);
    fflush(stdout);
    long count;
    while (scanf("%ld", &count) == 1) {
        printf("%.9f\n", reads(memory, blocks, hot, hots, count));
        fflush(stdout);
    }
    return 0;
}
