/* Preloaded into a program that maps a region: has the kernel keep track of the pages that it writes.
 *
 * Used by change tracking (src/sustain/powerfail/regions/track.py), which sets the environment:
 *     LD_PRELOAD                this library
 *     SUSTAIN_TRACK_REGION      the region, a file or a device
 *     SUSTAIN_TRACK_COUNTERS    a file of 4096 bytes with the words below; shared by all processes and the pre-copier
 *
 * Every shared mapping of the region is registered with userfaultfd for asynchronous write protection as soon as it
 * is made, and in the child after a fork. From then on the program runs as it would without: the first write to a
 * page costs a fault that the kernel handles alone. The pre-copier reads and renews the protection from outside,
 * with PAGEMAP_SCAN. Registration can only be done from within, which is why there is this library at all.
 *
 * Nothing here may change what the program sees: errno is kept, nothing is printed, nothing fails that would not
 * fail without. What could not be registered is counted, and the pre-copier then compares contents.
 *
 * Rejected: ptrace, to make the calls in the program from outside. It stops the program, needs more rights, and
 * keeps debuggers out.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Older headers lack these; an older kernel answers EINVAL, which is counted. */
#define FEATURES ((1ULL << 15) | (1ULL << 13)) /* WP_ASYNC, WP_UNPOPULATED */
#define USER_MODE_ONLY 1
#define PAGE 4096UL
#define HIGH_DESCRIPTOR 700 /* programs that close all they know of begin at 3 and often end at 255 */

/* Little-endian words of the counters' file; it is created and zeroed by the pre-copier's side. */
struct counters {
    _Atomic uint64_t registered; /* mappings registered so far, by all processes */
    _Atomic uint64_t lost;       /* mappings that could not be, or lost their registration */
};

static struct counters *counters;
static dev_t region_device;
static ino_t region_inode;
static atomic_int tracker = -1; /* userfaultfd of this process */
static atomic_int maps_region;  /* whether this process ever registered anything */

typedef void *(*mmap_call)(void *, size_t, int, int, int, off_t);
typedef void *(*mremap_call)(void *, size_t, size_t, int, ...);
static mmap_call next_mmap;
static mremap_call next_mremap;

static void *raw_mmap(void *at, size_t length, int protection, int flags, int descriptor, off_t offset) {
    return (void *)syscall(SYS_mmap, at, length, protection, flags, descriptor, offset);
}

static void count(_Atomic uint64_t *word) {
    atomic_fetch_add(word, 1);
}

/* The userfaultfd of this process, made at the first use; -1: the kernel does not give one that can do this. */
static int tracker_of_this_process(void) {
    int known = atomic_load(&tracker);
    if (known >= 0)
        return known;
    int made = (int)syscall(SYS_userfaultfd, O_CLOEXEC | USER_MODE_ONLY);
    if (made < 0)
        return -1;
    struct uffdio_api api = {.api = UFFD_API, .features = FEATURES};
    if (ioctl(made, UFFDIO_API, &api)) {
        close(made);
        return -1;
    }
    int high = fcntl(made, F_DUPFD_CLOEXEC, HIGH_DESCRIPTOR);
    if (high >= 0) {
        close(made);
        made = high;
    }
    int none = -1;
    if (!atomic_compare_exchange_strong(&tracker, &none, made)) {
        close(made); /* another thread was first */
        return none;
    }
    return made;
}

static void register_mapping(uintptr_t start, size_t length) {
    int descriptor = tracker_of_this_process();
    uint64_t whole = (length + PAGE - 1) & ~(PAGE - 1);
    struct uffdio_register reg = {.range = {start, whole}, .mode = UFFDIO_REGISTER_MODE_WP};
    struct uffdio_writeprotect protect = {.range = {start, whole}, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
    int failed = descriptor < 0 || ioctl(descriptor, UFFDIO_REGISTER, &reg) ||
                 ioctl(descriptor, UFFDIO_WRITEPROTECT, &protect);
    atomic_store(&maps_region, 1);
    count(failed ? &counters->lost : &counters->registered);
}

static int is_region(int descriptor) {
    struct stat found;
    return fstat(descriptor, &found) == 0 && found.st_ino == region_inode && found.st_dev == region_device;
}

/* Memory that a device maps by itself (a DAX file, /dev/dax) must not be registered: protecting a page that is not
 * mapped yet leaves a marker, which the kernel's insertion of such pages takes for a page that is there already, so the
 * first access would fault for ever (seen on Linux 6.12; docs/decisions/0011-change-tracking.md). */
static int is_dax(int descriptor) {
    struct statx found;
    if (statx(descriptor, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &found))
        return 1;
    return S_ISCHR(found.stx_mode) || (found.stx_attributes & 0x00200000); /* STATX_ATTR_DAX */
}

static uintptr_t hexadecimal(const char **at) {
    uintptr_t value = 0;
    for (;; ++*at) {
        char c = **at;
        if (c >= '0' && c <= '9')
            value = value << 4 | (uintptr_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            value = value << 4 | (uintptr_t)(c - 'a' + 10);
        else
            return value;
    }
}

/* "start-end rwxs offset device inode path": register it when it is a shared mapping of the region. The inode is
 * enough here: a false match registers memory that nobody asks about. */
static void register_line(const char *line) {
    uintptr_t start = hexadecimal(&line);
    if (*line++ != '-')
        return;
    uintptr_t end = hexadecimal(&line);
    int shared = 0, spaces = 0;
    ino_t inode = 0;
    for (; *line && spaces < 5; ++line) {
        if (*line == ' ')
            ++spaces;
        else if (spaces == 1)
            shared = *line == 's';
        else if (spaces == 4)
            inode = inode * 10 + (ino_t)(*line - '0');
    }
    if (shared && inode == region_inode)
        register_mapping(start, end - start);
}

/* All mappings of the region that this process has, by the kernel's list. After a fork only calls that are safe in a
 * signal handler may be used, so lines are read byte-wise into memory of our own. */
static void register_all(void) {
    char data[1024], line[160];
    size_t length = 0;
    int list = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (list < 0) {
        count(&counters->lost);
        return;
    }
    for (;;) {
        ssize_t got = read(list, data, sizeof data);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        for (ssize_t i = 0; i < got; ++i) {
            if (data[i] == '\n') {
                line[length] = 0;
                register_line(line);
                length = 0;
            } else if (length < sizeof line - 1) {
                line[length++] = data[i];
            }
        }
    }
    close(list);
}

/* The child has the parent's mappings, but not their registration; nothing of its own has run yet. */
static void in_child(void) {
    int kept = errno;
    int parents = atomic_exchange(&tracker, -1);
    if (parents >= 0)
        close(parents);
    if (atomic_load(&maps_region))
        register_all();
    errno = kept;
}

__attribute__((constructor)) static void begin(void) {
    int kept = errno;
    next_mmap = (mmap_call)(uintptr_t)dlsym(RTLD_NEXT, "mmap");
    next_mremap = (mremap_call)(uintptr_t)dlsym(RTLD_NEXT, "mremap");
    const char *region = getenv("SUSTAIN_TRACK_REGION"), *shared = getenv("SUSTAIN_TRACK_COUNTERS");
    struct stat found;
    int descriptor = -1;
    if (region && shared && stat(region, &found) == 0)
        descriptor = open(shared, O_RDWR | O_CLOEXEC);
    if (descriptor >= 0) {
        void *page = raw_mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        struct stat size;
        if (page != MAP_FAILED && fstat(descriptor, &size) == 0 && size.st_size >= (off_t)PAGE) {
            region_device = found.st_dev;
            region_inode = found.st_ino;
            pthread_atfork(NULL, NULL, in_child);
            counters = page;
        }
        close(descriptor);
    }
    errno = kept;
}

__attribute__((visibility("default"))) void *mmap(void *at, size_t length, int protection, int flags,
                                                  int descriptor, off_t offset) {
    void *made = (next_mmap ? next_mmap : raw_mmap)(at, length, protection, flags, descriptor, offset);
    if (counters && made != MAP_FAILED && descriptor >= 0 && (flags & MAP_SHARED) && !(flags & MAP_ANONYMOUS)) {
        int kept = errno; /* MAP_SHARED_VALIDATE has the bit of MAP_SHARED, MAP_PRIVATE has not */
        if (is_region(descriptor)) {
            if (is_dax(descriptor))
                count(&counters->lost);
            else
                register_mapping((uintptr_t)made, length);
        }
        errno = kept;
    }
    return made;
}

/* off_t has 64 bits wherever this is built, so both names are one call. */
_Static_assert(sizeof(off_t) == 8, "a 64-bit system");
__attribute__((visibility("default"))) void *mmap64(void *at, size_t length, int protection, int flags,
                                                    int descriptor, off_t offset) {
    return mmap(at, length, protection, flags, descriptor, offset);
}

/* A mapping that moves or grows loses its registration, and with it what was known of its pages. */
__attribute__((visibility("default"))) void *mremap(void *at, size_t old_length, size_t length, int flags, ...) {
    va_list more;
    va_start(more, flags);
    void *wanted = flags & MREMAP_FIXED ? va_arg(more, void *) : NULL;
    va_end(more);
    void *made = next_mremap ? next_mremap(at, old_length, length, flags, wanted)
                             : (void *)syscall(SYS_mremap, at, old_length, length, flags, wanted);
    if (counters && made != MAP_FAILED && atomic_load(&maps_region)) {
        int kept = errno;
        count(&counters->lost);
        register_all();
        errno = kept;
    }
    return made;
}
