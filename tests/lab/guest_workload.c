/* The first process of a memory guest (tests/lab/guests.py), and the workload that the tests drive in it.
 *
 * Process 1 mounts what is needed, loads the modules of /modules in order, starts /usr/sbin/qemu-ga when it is there,
 * and keeps a worker going. The worker takes commands, a line each, from the virtio port named lab.control and
 * answers each with one line, "ok ..." or "error ...". It is apart from process 1 so that the kernel can kill it when
 * memory runs out: the next worker says so.
 *
 *   anon BYTES     hold that much anonymous memory, written once, then left alone
 *   busy BYTES     write to that much anonymous memory over and over
 *   cache BYTES    read that much of the disk once
 *   hot BYTES      read that much of the disk over and over
 *   seek BYTES     the same by single pages, far from each other
 *   pace PAGES     busy, hot and seek go through no more of them a second, each; 0: as fast as they can. Who falls
 *                  behind catches up on the last second; what is older is work not done
 *   age            let the kernel begin a new generation of pages (MGLRU), as memory pressure would
 *   drop           drop the clean page cache
 *   swapon         use the second disk
 *   work           how many pages busy, hot and seek have gone through
 *   agent SIGNAL   send it to the guest agent
 *   read PATH      "ok N", then N bytes
 *   forge PATH N   put the N bytes that follow in the place of PATH, for all readers
 *   reboot
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, CHUNK = 64 << 10 };

static int port = -1; /* lab.control */
static int disk = -1; /* kept open: with the last close of a disk its page cache goes */

static void say(const char *format, ...) {
    char line[256];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(line, sizeof line - 1, format, values);
    va_end(values);
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    if (write(port, line, length) != length)
        perror("lab.control");
}

/* Blocks until a byte is there. A port that no host has opened reads as at its end: then poll says so and it waits. */
static char next_byte(void) {
    for (;;) {
        char byte;
        if (read(port, &byte, 1) == 1)
            return byte;
        usleep(10000);
    }
}

static void next_line(char *line, size_t size) {
    size_t length = 0;
    for (char byte; (byte = next_byte()) != '\n';)
        if (length < size - 1)
            line[length++] = byte;
    line[length] = 0;
}

static int read_text(const char *path, char *text, size_t size) {
    int file = open(path, O_RDONLY);
    if (file < 0)
        return -1;
    ssize_t length = 0, more;
    while ((more = read(file, text + length, size - 1 - length)) > 0)
        length += more;
    close(file);
    text[length] = 0;
    return length;
}

static int write_text(const char *path, const char *text, size_t length) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0)
        return -1;
    int bad = write(file, text, length) != (ssize_t)length;
    return close(file) || bad ? -1 : 0;
}

/* ---- process 1 */

/* The device of a virtio port: without udev nobody makes /dev/virtio-ports. */
static int port_device(const char *wanted, char *device, size_t size) {
    DIR *ports = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    int found = 0;
    while (ports && !found && (entry = readdir(ports))) {
        char path[300], name[64];
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        if (entry->d_name[0] != '.' && read_text(path, name, sizeof name) > 0 &&
            !strncmp(name, wanted, strlen(wanted))) {
            snprintf(device, size, "/dev/%s", entry->d_name);
            found = 1;
        }
    }
    if (ports)
        closedir(ports);
    return found;
}

static void prepare(int with_balloon) {
    mount("proc", "/proc", "proc", 0, "");
    mount("sys", "/sys", "sysfs", 0, "");
    mount("dev", "/dev", "devtmpfs", 0, "");
    mount("debug", "/sys/kernel/debug", "debugfs", 0, "");
    FILE *modules = fopen("/modules", "r");
    char path[256];
    while (modules && fgets(path, sizeof path, modules)) {
        path[strcspn(path, "\n")] = 0;
        int file = open(path, O_RDONLY), wanted = with_balloon || !strstr(path, "virtio_balloon");
        if (wanted && syscall(SYS_finit_module, file, "", 0))
            perror(path);
        close(file);
        unlink(path); /* its memory is the guest's */
    }
    if (modules)
        fclose(modules);
}

static void start_agent(void) {
    char device[300];
    if (access("/usr/sbin/qemu-ga", X_OK) || !port_device("org.qemu.guest_agent.0", device, sizeof device))
        return;
    pid_t pid = fork();
    if (pid == 0) {
        write_text("/proc/self/oom_score_adj", "-1000", 5);
        execl("/usr/sbin/qemu-ga", "qemu-ga", "-m", "virtio-serial", "-p", device, "-t", "/run", NULL);
        perror("qemu-ga");
        _exit(1);
    }
    char text[16];
    write_text("/run/agent", text, snprintf(text, sizeof text, "%d", pid));
}

/* ---- the worker */

struct load {
    char *memory; /* NULL: a part of the disk */
    size_t bytes;
    int stop;
    pthread_t thread;
    double since_s; /* from when its pace is kept */
    unsigned long long done;
};

static struct load anon, busy, hot, seek;
static _Atomic unsigned long long pages;
static _Atomic unsigned long pace;
static unsigned long long noise = 88172645463325252ull;

/* Xorshift (Marsaglia), some of it in each cache line: the host's zram makes it small, but not nothing. */
static void fill(char *memory, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64) {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        memcpy(memory + at, &noise, sizeof noise);
    }
}

static int hold(struct load *load, size_t bytes) {
    if (load->memory)
        munmap(load->memory, load->bytes);
    load->memory = NULL;
    load->bytes = bytes;
    if (!bytes)
        return 0;
    load->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (load->memory == MAP_FAILED) {
        load->memory = NULL;
        return -1;
    }
    fill(load->memory, bytes);
    return 0;
}

static int stopped(const struct load *load) { return __atomic_load_n(&load->stop, __ATOMIC_RELAXED); }

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

/* Counts pages gone through, and waits when they were enough for now: in bursts, since each wait costs time, too. */
static void went_through(struct load *load, unsigned count) {
    unsigned long most = pace;
    pages += count;
    load->done += count;
    if (!most || load->done % (CHUNK / PAGE))
        return;
    double ahead_s = load->since_s + (double)load->done / most - now_s();
    if (ahead_s > 0.01)
        usleep(ahead_s * 1e6);
    else if (ahead_s < -1)
        load->since_s -= ahead_s + 1;
}

/* `load`: what it is counted for; NULL: nothing. */
static int read_disk(size_t bytes, struct load *load) {
    static __thread char chunk[CHUNK];
    int bad = disk < 0;
    for (size_t at = 0; at < bytes && !bad && !(load && stopped(load)); at += CHUNK) {
        bad = pread(disk, chunk, CHUNK, at) != CHUNK;
        if (load)
            went_through(load, CHUNK / PAGE);
    }
    return bad ? -1 : 0;
}

static void *run_busy(void *unused) {
    (void)unused;
    while (!stopped(&busy))
        for (size_t at = 0; at < busy.bytes && !stopped(&busy); at += PAGE) {
            ++*(volatile char *)(busy.memory + at);
            went_through(&busy, 1);
        }
    return NULL;
}

static void *run_hot(void *unused) {
    (void)unused;
    while (!stopped(&hot))
        if (read_disk(hot.bytes, &hot))
            break;
    return NULL;
}

/* All pages of a part of the disk in steps of a prime, so that no read-ahead helps. */
static void *run_seek(void *unused) {
    (void)unused;
    static char page[PAGE];
    int file = open("/dev/vda", O_RDONLY);
    posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
    size_t count = seek.bytes / PAGE;
    for (size_t at = 0; !stopped(&seek); at = (at + 7919) % count) {
        if (pread(file, page, PAGE, at * PAGE) != PAGE)
            break;
        went_through(&seek, 1);
    }
    close(file);
    return NULL;
}

static int loop(struct load *load, void *(*run)(void *), size_t bytes, int in_memory) {
    if (load->bytes) {
        __atomic_store_n(&load->stop, 1, __ATOMIC_RELAXED);
        pthread_join(load->thread, NULL);
    }
    load->stop = 0;
    if (in_memory && hold(load, bytes))
        return -1;
    load->bytes = bytes;
    load->since_s = now_s();
    load->done = 0;
    return bytes ? pthread_create(&load->thread, NULL, run, NULL) : 0;
}

/* Every generation known becomes one older, as under pressure; what is used since then counts as active again. */
static int age(void) {
    static char text[1 << 16];
    if (read_text("/sys/kernel/debug/lru_gen", text, sizeof text) <= 0)
        return -1;
    unsigned long group = 0, newest = 0;
    unsigned node = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        unsigned long number;
        sscanf(line, " memcg %lu", &number) == 1 ? (group = number) : 0;
        sscanf(line, " node %u", &node);
        if (sscanf(line, " %lu", &number) == 1)
            newest = number;
    }
    char command[64];
    /* generation, swappable, forced: also pages that could not be reclaimed now */
    int length = snprintf(command, sizeof command, "+ %lu %u %lu 1 1", group, node, newest);
    return write_text("/sys/kernel/debug/lru_gen", command, length);
}

static int signal_agent(const char *name) {
    char text[16];
    int number = !strcmp(name, "STOP")   ? SIGSTOP
                 : !strcmp(name, "CONT") ? SIGCONT
                 : !strcmp(name, "KILL") ? SIGKILL
                                         : 0;
    if (!number || read_text("/run/agent", text, sizeof text) <= 0) {
        errno = EINVAL;
        return -1;
    }
    return kill(atoi(text), number);
}

static int forge(const char *path, size_t bytes) {
    static int number;
    char name[32], *text = malloc(bytes + 1);
    for (size_t at = 0; at < bytes; at++)
        text[at] = next_byte();
    snprintf(name, sizeof name, "/run/forged%d", number++);
    int bad = write_text(name, text, bytes) || mount(name, path, NULL, MS_BIND, NULL);
    free(text);
    return bad ? -1 : 0;
}

static void work_off(char *line) {
    char *rest = strchr(line, ' ');
    if (rest)
        *rest++ = 0;
    else
        rest = line + strlen(line);
    size_t bytes = strtoull(rest, NULL, 10);
    int bad = 0;
    if (!strcmp(line, "anon"))
        bad = hold(&anon, bytes);
    else if (!strcmp(line, "busy"))
        bad = loop(&busy, run_busy, bytes, 1);
    else if (!strcmp(line, "hot"))
        bad = loop(&hot, run_hot, bytes, 0);
    else if (!strcmp(line, "seek"))
        bad = loop(&seek, run_seek, bytes, 0);
    else if (!strcmp(line, "pace"))
        pace = bytes;
    else if (!strcmp(line, "cache"))
        bad = read_disk(bytes, NULL);
    else if (!strcmp(line, "age"))
        bad = age();
    else if (!strcmp(line, "drop"))
        bad = write_text("/proc/sys/vm/drop_caches", "3", 1);
    else if (!strcmp(line, "swapon"))
        bad = swapon("/dev/vdb", 0);
    else if (!strcmp(line, "agent"))
        bad = signal_agent(rest);
    else if (!strcmp(line, "reboot"))
        reboot(RB_AUTOBOOT);
    else if (!strcmp(line, "work")) {
        say("ok %llu", pages);
        return;
    } else if (!strcmp(line, "read")) {
        static char text[1 << 16];
        int length = read_text(rest, text, sizeof text);
        if (length < 0) {
            say("error %s: %s", rest, strerror(errno));
            return;
        }
        say("ok %d", length);
        if (write(port, text, length) != length)
            perror("lab.control");
        return;
    } else if (!strcmp(line, "forge")) {
        char *size = strchr(rest, ' ');
        if (size)
            *size++ = 0;
        bad = forge(rest, size ? strtoull(size, NULL, 10) : 0);
    } else {
        say("error no command %s", line);
        return;
    }
    bad ? say("error %s: %s", line, strerror(errno)) : say("ok");
}

static void work(const char *greeting) {
    char device[300], line[512];
    write_text("/proc/self/oom_score_adj", "1000", 4);
    if (!port_device("lab.control", device, sizeof device) || (port = open(device, O_RDWR)) < 0) {
        perror("lab.control");
        return;
    }
    disk = open("/dev/vda", O_RDONLY);
    say("%s", greeting);
    for (;;) {
        next_line(line, sizeof line);
        work_off(line);
    }
}

int main(int count, char **words) {
    int agent = 1, driver = 1; /* what follows "--" on the kernel's command line */
    for (int at = 1; at < count; at++) {
        agent &= strcmp(words[at], "noagent") != 0;
        driver &= strcmp(words[at], "nodriver") != 0;
    }
    prepare(driver);
    if (agent)
        start_agent();
    const char *greeting = "ready";
    for (;;) {
        pid_t worker = fork();
        if (worker == 0) {
            work(greeting);
            _exit(1);
        }
        /* Another process gets the CPU now and then, which empties the emulator's TLB: it would hide from the kernel
         * that a page is still being used. Real CPUs walk the page tables more often by themselves. */
        while (waitpid(-1, NULL, WNOHANG) != worker)
            usleep(20000);
        greeting = "killed";
    }
}
