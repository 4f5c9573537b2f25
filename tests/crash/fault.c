/* Makes the calls fail by which a store reaches its medium: preloaded into a Python that opens stores.
 *
 * Armed from inside the process through `fault_arm`: from the `at`-th call on a file whose name contains `part`, one
 * call (`sticky` = 0) or all of them fail with `error`; `error` = 0 makes that call write half of what was asked, as
 * the kernel may. Nothing is counted or failed before it is armed. The store's calls go through the C library, so
 * taking its symbols catches them all; a file system made to fail would show the first error only once.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char part[256];
static _Atomic long calls, at;
static int error_number, sticky, armed;
static char last_call[32];

/* Counts begin at 1; `first` = 0 only counts. */
void fault_arm(const char *name, long first, int error, int all)
{
    snprintf(part, sizeof part, "%s", name);
    calls = 0;
    at = first;
    error_number = error;
    sticky = all;
    last_call[0] = 0;
    armed = 1;
}

long fault_disarm(void)
{
    armed = 0;
    return calls;
}

const char *fault_last(void)
{
    return last_call;
}

static int named(const char *path)
{
    return strstr(path, part) != NULL;
}

/* Whether this call has to fail. */
static int hit(const char *call)
{
    long now = ++calls;
    if (at == 0 || !(sticky ? now >= at : now == at))
        return 0;
    snprintf(last_call, sizeof last_call, "%s", call);
    return 1;
}

static int hit_fd(int fd, const char *call)
{
    char link[64], path[4096];
    if (!armed)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return named(path) && hit(call);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* `half` of the call is written when a short write is asked for. */
#define WRITES(name, call_arguments, half_arguments, parameters, half)  \
    ssize_t name parameters                                             \
    {                                                                   \
        if (hit_fd(fd, #name)) {                                        \
            if (error_number == 0) {                                    \
                half;                                                   \
                return NEXT(name) half_arguments;                       \
            }                                                           \
            errno = error_number;                                       \
            return -1;                                                  \
        }                                                               \
        return NEXT(name) call_arguments;                               \
    }
#define HALF size_t h = (n + 1) / 2
#define HALF_OF_FIRST struct iovec h = {v[0].iov_base, (v[0].iov_len + 1) / 2}

WRITES(write, (fd, p, n), (fd, p, h), (int fd, const void *p, size_t n), HALF)
WRITES(pwrite, (fd, p, n, o), (fd, p, h, o), (int fd, const void *p, size_t n, off_t o), HALF)
WRITES(pwrite64, (fd, p, n, o), (fd, p, h, o), (int fd, const void *p, size_t n, off64_t o), HALF)
WRITES(pwritev, (fd, v, n, o), (fd, &h, 1, o), (int fd, const struct iovec *v, int n, off_t o), HALF_OF_FIRST)
WRITES(pwritev64, (fd, v, n, o), (fd, &h, 1, o), (int fd, const struct iovec *v, int n, off64_t o), HALF_OF_FIRST)
WRITES(pwritev2, (fd, v, n, o, f), (fd, &h, 1, o, f), (int fd, const struct iovec *v, int n, off_t o, int f),
       HALF_OF_FIRST)
WRITES(pwritev64v2, (fd, v, n, o, f), (fd, &h, 1, o, f), (int fd, const struct iovec *v, int n, off64_t o, int f),
       HALF_OF_FIRST)

/* A flush cannot be done by half. */
#define FLUSHES(name, call_arguments, parameters)                  \
    int name parameters                                            \
    {                                                              \
        if (hit_fd(fd, #name) && error_number != 0) {              \
            errno = error_number;                                  \
            return -1;                                             \
        }                                                          \
        return NEXT(name) call_arguments;                          \
    }

FLUSHES(fsync, (fd), (int fd))
FLUSHES(fdatasync, (fd), (int fd))
FLUSHES(fallocate, (fd, m, o, n), (int fd, int m, off_t o, off_t n))
FLUSHES(fallocate64, (fd, m, o, n), (int fd, int m, off64_t o, off64_t n))
FLUSHES(ftruncate, (fd, n), (int fd, off_t n))
FLUSHES(ftruncate64, (fd, n), (int fd, off64_t n))

int msync(void *address, size_t length, int flags)
{
    char line[4600];
    if (armed) {
        /* Which file a mapping is of, only /proc tells. */
        FILE *maps = fopen("/proc/self/maps", "re");
        unsigned long low, high, want = (unsigned long)address;
        int found = 0;
        while (maps && !found && fgets(line, sizeof line, maps))
            found = sscanf(line, "%lx-%lx", &low, &high) == 2 && low <= want && want < high;
        if (maps)
            fclose(maps);
        if (found && named(line) && hit("msync") && error_number != 0) {
            errno = error_number;
            return -1;
        }
    }
    return NEXT(msync)(address, length, flags);
}
