/*
 * libpmemobj's side of `commit_memory`: one transaction per 64-byte update, on a pool in tmpfs.
 *
 * Usage: pmemobj POOL UPDATES SEED; prints the nanoseconds of one update (mean over the run).
 *
 * In the peer's favour: it is C, it has no interpreter to pass, and the entry is found by its index, without
 * hashing or comparing a key. The transaction logs the old value (pmemobj_tx_add_range_direct), as an update in
 * place must.
 */
#include <libpmemobj.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ENTRIES 10000
#define VALUE_SIZE 64

struct entry {
    char key[16];
    char value[VALUE_SIZE];
};

struct root {
    struct entry entries[ENTRIES];
};

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: pmemobj POOL UPDATES SEED\n");
        return 2;
    }
    const char *path = argv[1];
    long updates = atol(argv[2]);
    uint64_t random = strtoull(argv[3], NULL, 10) * 2 + 1;

    PMEMobjpool *pool = access(path, F_OK) == 0 ? pmemobj_open(path, "bench")
                                                : pmemobj_create(path, "bench", 64 << 20, 0600);
    if (pool == NULL) {
        fprintf(stderr, "%s\n", pmemobj_errormsg());
        return 1;
    }
    struct root *root = pmemobj_direct(pmemobj_root(pool, sizeof(struct root)));
    char value[VALUE_SIZE];
    memset(value, 1, sizeof value);

    double begun = now_ns();
    for (long i = 0; i < updates; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        struct entry *entry = &root->entries[random % ENTRIES];
        memcpy(value, &random, sizeof random);
        TX_BEGIN(pool) {
            pmemobj_tx_add_range_direct(entry->value, VALUE_SIZE);
            memcpy(entry->value, value, VALUE_SIZE);
        } TX_ONABORT {
            fprintf(stderr, "aborted: %s\n", pmemobj_errormsg());
            exit(1);
        } TX_END
    }
    printf("%.2f\n", (now_ns() - begun) / (double)updates);
    pmemobj_close(pool);
    return 0;
}
