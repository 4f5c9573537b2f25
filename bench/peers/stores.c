/* A memory-bound program for region_tracking_cost: maps a file and stores to random cache lines of it, for ever.
 *
 * Its first page is its own: the first word counts the stores, so whoever maps the file sees how fast it is. Every store
 * waits for the one before (the next place depends on what was read), as programs do whose memory is their bottleneck. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

int main(int argc, char **argv) {
    struct stat size;
    int file = argc == 2 ? open(argv[1], O_RDWR) : -1;
    if (file < 0 || fstat(file, &size))
        return 2;
    uint64_t words = (uint64_t)size.st_size / 8;
    volatile uint64_t *memory = mmap(NULL, (size_t)size.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED)
        return 2;
    for (uint64_t at = 512; at < words; at += 512)
        memory[at] = 1; /* every page is there before it is measured */
    memory[0] = 0;
    puts("ready");
    fflush(stdout);
    uint64_t state = 88172645463325252ULL, count = 0;
    for (;;) {
        for (int i = 0; i < 64; ++i) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            uint64_t at = 512 + (state % ((words - 512) / 8)) * 8;
            uint64_t found = memory[at];
            memory[at] = found + 1;
            state += found & 1; /* so the next place is not known before */
        }
        memory[0] = count += 64;
    }
}
