/* What the guests of `cargo xtask bench io` and `bench vhost` do with disks and networks, and the peer on the host.
 *
 *   load random DEVICE DEPTH SECONDS     4 KiB reads at random places, DEPTH at a time; reads a second
 *   load sequential DEVICE SECONDS       1 MiB reads one after the other; MB a second
 *   load write DEVICE SECONDS            4 KiB at random places, each made durable; writes a second. What is written
 *                                        is what is there: word n of the disk is n times WORD
 *   load sum DEVICE                      what all of it adds up to
 *   load serve PORT                      the peer
 *   load receive|send|ask ADDRESS PORT SECONDS    MB a second; MB a second; one-byte questions a second
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PIECE (1 << 20)
#define WORD 0x9e3779b97f4a7c15ull

static void fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void *pages(size_t len)
{
    void *memory;
    if (posix_memalign(&memory, 4096, len))
        fail("memory");
    memset(memory, 1, len);
    return memory;
}

static int open_disk(const char *path, int how, uint64_t *len)
{
    int disk = open(path, how | O_DIRECT);
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, len))
        fail(path);
    return disk;
}

static uint64_t random_place(uint64_t len)
{
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % (len / 4096) * 4096;
}

static void random_reads(const char *path, int depth, double seconds)
{
    uint64_t len;
    int disk = open_disk(path, O_RDONLY, &len);
    char *memory = pages(depth * 4096);
    struct iocb *requests = calloc(depth, sizeof *requests);
    struct io_event *events = calloc(depth, sizeof *events);
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, depth, &context))
        fail("io_setup");
    struct iocb *one;
    for (int n = 0; n < depth; n++) {
        requests[n] = (struct iocb){
            .aio_lio_opcode = IOCB_CMD_PREAD,
            .aio_fildes = disk,
            .aio_buf = (uint64_t)(memory + n * 4096),
            .aio_nbytes = 4096,
            .aio_offset = random_place(len),
        };
        one = &requests[n];
        if (syscall(SYS_io_submit, context, 1L, &one) != 1)
            fail("io_submit");
    }
    uint64_t done = 0;
    double begin = now(), end = begin;
    while ((end = now()) - begin < seconds) {
        long got = syscall(SYS_io_getevents, context, 1L, (long)depth, events, NULL);
        if (got < 1)
            fail("io_getevents");
        for (long n = 0; n < got; n++) {
            if (events[n].res != 4096)
                fail("a read");
            one = (struct iocb *)events[n].obj;
            one->aio_offset = random_place(len);
            if (syscall(SYS_io_submit, context, 1L, &one) != 1)
                fail("io_submit");
        }
        done += got;
    }
    printf("random-%d: %.1f\n", depth, done / (end - begin));
    fflush(stdout);
    _exit(0);
}

static void sequential_reads(const char *path, double seconds)
{
    uint64_t len, at = 0, done = 0;
    int disk = open_disk(path, O_RDONLY, &len);
    char *memory = pages(PIECE);
    double begin = now(), end = begin;
    while ((end = now()) - begin < seconds) {
        if (pread(disk, memory, PIECE, at) != PIECE)
            fail("a read");
        at = at + 2 * PIECE > len ? 0 : at + PIECE;
        done += PIECE;
    }
    printf("sequential: %.1f\n", done / (end - begin) / 1e6);
}

static void writes(const char *path, double seconds)
{
    uint64_t len, done = 0;
    int disk = open_disk(path, O_RDWR, &len);
    uint64_t *memory = pages(4096);
    double begin = now(), end = begin;
    while ((end = now()) - begin < seconds) {
        uint64_t place = random_place(len);
        for (int n = 0; n < 512; n++)
            memory[n] = (place / 8 + n) * WORD;
        if (pwrite(disk, memory, 4096, place) != 4096 || fdatasync(disk))
            fail("a write");
        done += 1;
    }
    printf("write: %.1f\n", done / (end - begin));
}

static void sum(const char *path)
{
    uint64_t len, all = 0;
    int disk = open_disk(path, O_RDONLY, &len);
    uint64_t *memory = pages(PIECE);
    for (uint64_t at = 0; at < len; at += PIECE) {
        if (pread(disk, memory, PIECE, at) != PIECE)
            fail("a read");
        for (int n = 0; n < PIECE / 8; n++)
            all = all * 3 + memory[n];
    }
    printf("sum: %llu\n", (unsigned long long)all);
}

static void serve_one(int peer)
{
    static char memory[1 << 16];
    char what;
    int yes = 1;
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (read(peer, &what, 1) != 1)
        return;
    uint64_t total = 0;
    ssize_t got;
    if (what == 'r')
        while (write(peer, memory, sizeof memory) > 0)
            ;
    else if (what == 's') {
        while ((got = read(peer, memory, sizeof memory)) > 0)
            total += got;
        if (write(peer, &total, sizeof total) < 0)
            return;
    } else
        while ((got = read(peer, memory, 1)) == 1 && write(peer, memory, 1) == 1)
            ;
}

static void serve(int port)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    struct sockaddr_in place = { .sin_family = AF_INET, .sin_port = htons(port) };
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&place, sizeof place) || listen(listener, 8))
        fail("bind");
    for (;;) {
        int peer = accept(listener, NULL, NULL);
        if (peer < 0)
            fail("accept");
        serve_one(peer);
        close(peer);
    }
}

static void speak(const char *what, const char *address, int port, double seconds)
{
    static char memory[1 << 16];
    int peer = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    struct sockaddr_in place = { .sin_family = AF_INET, .sin_port = htons(port) };
    if (inet_pton(AF_INET, address, &place.sin_addr) != 1)
        fail(address);
    if (connect(peer, (struct sockaddr *)&place, sizeof place))
        fail("connect");
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (write(peer, what, 1) != 1)
        fail("write");
    uint64_t total = 0;
    double begin = now(), end = begin;
    if (*what == 'r') {
        ssize_t got;
        while ((end = now()) - begin < seconds && (got = read(peer, memory, sizeof memory)) > 0)
            total += got;
    } else if (*what == 's') {
        while (now() - begin < seconds)
            if (write(peer, memory, sizeof memory) < 0)
                fail("write");
        shutdown(peer, SHUT_WR);
        /* What has arrived counts, and until when it has. */
        if (read(peer, &total, sizeof total) != sizeof total)
            fail("the count");
        end = now();
    } else {
        while ((end = now()) - begin < seconds) {
            if (write(peer, memory, 1) != 1 || read(peer, memory, 1) != 1)
                fail("a question");
            total += 1;
        }
    }
    double rate = total / (end - begin);
    printf("%s: %.1f\n", what, *what == 'a' ? rate : rate / 1e6);
}

int main(int count, char **words)
{
    signal(SIGPIPE, SIG_IGN);
    if (count == 5 && !strcmp(words[1], "random"))
        random_reads(words[2], atoi(words[3]), atof(words[4]));
    else if (count == 4 && !strcmp(words[1], "sequential"))
        sequential_reads(words[2], atof(words[3]));
    else if (count == 4 && !strcmp(words[1], "write"))
        writes(words[2], atof(words[3]));
    else if (count == 3 && !strcmp(words[1], "sum"))
        sum(words[2]);
    else if (count == 3 && !strcmp(words[1], "serve"))
        serve(atoi(words[2]));
    else if (count == 5)
        speak(words[1], words[2], atoi(words[3]), atof(words[4]));
    else
        return 2;
    return 0;
}
