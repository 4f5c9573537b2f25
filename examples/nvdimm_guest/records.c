/*
 * The program inside the guest of examples/nvdimm_guest: numbered, checksummed records on persistent memory.
 *
 *     records DIR verify            print "verified N records, highest H", or "wrong: ..." and exit 1
 *     records DIR write PACE_US     go on behind the highest, printing "flushed H" when record H is durable
 *     records DEVICE blank          exit 0 when the device is all zeros, else 1
 *
 * It stands for any program that was written for persistent memory and knows nothing of Sustain. Records lie in a ring
 * of segment files; even segments are written in place through a MAP_SYNC mapping and flushed by cache line, odd ones by
 * pwrite and fdatasync. A head, mapped too, is written and flushed after the record that it counts. So whatever moment
 * the memory is from, every record up to the head must be whole, and the head may not be behind a number that was
 * printed. A memory image that mixes two moments breaks this.
 *
 * x86-64 only, for the cache line instructions; `gcc -O2 -static`.
 */
#define _GNU_SOURCE
#include <emmintrin.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif

enum { RECORD = 1024, PER_SEGMENT = 256, SEGMENTS = 192, PAYLOAD = RECORD / 8 - 4 };

static const uint64_t RECORD_MAGIC = 0x3164726365727673; /* "svrecrd1" */
static const uint64_t HEAD_MAGIC = 0x3164616568727673;   /* "svrhead1" */

struct record {
    uint64_t magic, number;
    uint64_t previous; /* the sum of the record before: a chain */
    uint64_t payload[PAYLOAD];
    uint64_t sum;
};

struct head {
    uint64_t magic, number, last, sum; /* `last` is the sum of record `number` */
};

static const char *folder;

static void stop(const char *what, ...)
{
    va_list more;
    va_start(more, what);
    printf("wrong: ");
    vprintf(what, more);
    printf("\n");
    exit(1);
}

static uint64_t mix(uint64_t x) /* splitmix64 */
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

static uint64_t sum_of(const uint64_t *words, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum = mix(sum ^ words[i]);
    return sum;
}

static void make(struct record *record, uint64_t number, uint64_t previous)
{
    record->magic = RECORD_MAGIC;
    record->number = number;
    record->previous = previous;
    for (size_t i = 0; i < PAYLOAD; i++)
        record->payload[i] = mix(number * PAYLOAD + i);
    record->sum = sum_of((const uint64_t *)record, RECORD / 8 - 1);
}

static void flush(const void *start, size_t bytes)
{
    for (const char *line = start; line < (const char *)start + bytes; line += 64)
        _mm_clflush(line);
    _mm_sfence();
}

static int open_file(const char *name, size_t bytes)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int file = open(path, O_RDWR | O_CREAT, 0644);
    if (file < 0 || ftruncate(file, bytes) < 0)
        stop("%s: %s", path, strerror(errno));
    return file;
}

static void *map_sync(const char *name, size_t bytes)
{
    int file = open_file(name, bytes);
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, file, 0);
    if (at == MAP_FAILED)
        stop("%s cannot be mapped with MAP_SYNC: %s", name, strerror(errno));
    close(file);
    return at;
}

/* One segment at a time is open, in one of two ways. */
static struct {
    long index;
    struct record *mapped;
    int file;
} open_segment = {-1, NULL, -1};

static void use_segment(long index)
{
    char name[32];
    if (open_segment.index == index)
        return;
    if (open_segment.mapped)
        munmap(open_segment.mapped, (size_t)RECORD * PER_SEGMENT);
    if (open_segment.file >= 0)
        close(open_segment.file);
    open_segment.mapped = NULL;
    open_segment.file = -1;
    open_segment.index = index;
    snprintf(name, sizeof name, "segment-%03ld", index);
    if (index % 2 == 0)
        open_segment.mapped = map_sync(name, (size_t)RECORD * PER_SEGMENT);
    else
        open_segment.file = open_file(name, (size_t)RECORD * PER_SEGMENT);
}

static void put(const struct record *record)
{
    uint64_t slot = record->number % PER_SEGMENT;
    use_segment(record->number / PER_SEGMENT % SEGMENTS);
    if (open_segment.mapped) {
        memcpy(&open_segment.mapped[slot], record, RECORD);
        flush(&open_segment.mapped[slot], RECORD);
    } else if (pwrite(open_segment.file, record, RECORD, slot * RECORD) != RECORD ||
               fdatasync(open_segment.file) < 0) {
        stop("record %lu cannot be written: %s", record->number, strerror(errno));
    }
}

static void get(struct record *record, uint64_t number)
{
    uint64_t slot = number % PER_SEGMENT;
    use_segment(number / PER_SEGMENT % SEGMENTS);
    if (open_segment.mapped)
        memcpy(record, &open_segment.mapped[slot], RECORD);
    else if (pread(open_segment.file, record, RECORD, slot * RECORD) != RECORD)
        stop("record %lu cannot be read: %s", number, strerror(errno));
}

/* Every record that the ring still holds, up to the head. */
static void verify(const struct head *head)
{
    static const struct head nothing;
    if (memcmp(head, &nothing, sizeof nothing) == 0) {
        printf("verified 0 records, highest 0\n");
        return;
    }
    if (head->magic != HEAD_MAGIC || head->sum != sum_of((const uint64_t *)head, 3))
        stop("the head is damaged");
    uint64_t kept = (uint64_t)(SEGMENTS - 1) * PER_SEGMENT;
    uint64_t first = head->number > kept ? head->number - kept + 1 : 1;
    uint64_t previous = 0;
    struct record found, expected;
    for (uint64_t number = first; number <= head->number; number++) {
        get(&found, number);
        if (number == first)
            previous = number == 1 ? 0 : found.previous;
        make(&expected, number, previous);
        if (memcmp(&found, &expected, RECORD) != 0)
            stop("record %lu of %lu is not what was flushed", number, head->number);
        previous = found.sum;
    }
    if (head->last != previous)
        stop("the head does not belong to record %lu", head->number);
    printf("verified %lu records, highest %lu\n", head->number - first + 1, head->number);
}

static void write_on(struct head *head, long pace_us)
{
    struct record record;
    for (;;) {
        make(&record, head->number + 1, head->last);
        put(&record);
        struct head next = {HEAD_MAGIC, record.number, record.sum, 0};
        next.sum = sum_of((const uint64_t *)&next, 3);
        *head = next; /* one cache line: it is aligned to 64 bytes, and a line is never torn */
        flush(head, sizeof *head);
        printf("flushed %lu\n", record.number);
        usleep(pace_us);
    }
}

static int blank(const char *device)
{
    static uint64_t words[1 << 17];
    int file = open(device, O_RDONLY);
    ssize_t got;
    while ((got = read(file, words, sizeof words)) > 0)
        for (ssize_t i = 0; i < got / 8; i++)
            if (words[i])
                return 1;
    return got < 0;
}

int main(int count, char **words)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count < 3)
        return 2;
    if (strcmp(words[2], "blank") == 0)
        return blank(words[1]);
    folder = words[1];
    struct head *head = map_sync("head", 4096);
    if (strcmp(words[2], "verify") == 0)
        verify(head);
    else
        write_on(head, count > 3 ? atol(words[3]) : 0);
    return 0;
}
