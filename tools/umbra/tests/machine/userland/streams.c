// Many streams at once over AF_VSOCK, with one thread: as a server of port 5000, and as clients of the
// host's port 6000. The test has the other ends.
//
//   streams COUNT    COUNT of either kind; all of them are open before the first byte goes
//
// The client sends a message, the server checks it and answers with another one, the client checks that.
// Clients with an even seed end their direction behind the message, and the server waits for that end.
//
//   message: length of the data, seed (32 bits each), data, checksum (64 bits)

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

enum { SERVED = 5000, ASKED = 6000, HEAD = 8, SUM = 8 };

struct stream {
    int fd, is_client, is_open, is_answered;
    uint32_t seed;
    uint8_t *in, *out;
    size_t in_len, in_size, out_at, out_len;
};

static int epoll, wrong;

static void fail(const char *what) {
    printf("failed: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void check(int result, const char *what) {
    if (result < 0) fail(what);
}

static uint32_t length(uint32_t seed) { return 8 * (500 + seed % 16 * 700); }

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// Makes the data of a message, or compares it; returns the checksum.
static uint64_t data(uint32_t seed, uint8_t *at, int compare, int *same) {
    uint64_t state = 0x9e3779b97f4a7c15ull + seed, sum = 0;
    for (uint32_t n = length(seed) / 8; n; n--, at += 8) {
        uint64_t word = next(&state);
        if (compare) *same &= !memcmp(at, &word, 8);
        else memcpy(at, &word, 8);
        sum = (sum << 5 | sum >> 59) ^ word;
    }
    return sum;
}

static void say(struct stream *s, uint32_t seed) {
    uint32_t len = length(seed);
    s->out_len = HEAD + len + SUM;
    s->out = malloc(s->out_len);
    if (!s->out) fail("malloc");
    memcpy(s->out, &len, 4);
    memcpy(s->out + 4, &seed, 4);
    uint64_t sum = data(seed, s->out + HEAD, 0, 0);
    memcpy(s->out + HEAD + len, &sum, SUM);
}

// Whether a message is whole; 0 if not yet.
static int is_whole(struct stream *s) {
    uint32_t len;
    if (s->in_len < HEAD) return 0;
    memcpy(&len, s->in, 4);
    return s->in_len >= HEAD + (size_t)len + SUM;
}

static int is_right(struct stream *s) {
    uint32_t len, seed;
    uint64_t sum, found;
    int same = 1;
    memcpy(&len, s->in, 4);
    memcpy(&seed, s->in + 4, 4);
    if (len != length(seed) || s->in_len != HEAD + (size_t)len + SUM) return 0;
    if (s->is_client && seed != s->seed + 1) return 0;
    memcpy(&sum, s->in + HEAD + len, SUM);
    found = data(seed, s->in + HEAD, 1, &same);
    s->seed = seed;
    return same && found == sum;
}

static void watch(struct stream *s, int how, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = s};
    check(epoll_ctl(epoll, how, s->fd, &event), "epoll_ctl");
}

static struct stream *add(int fd, int is_client, uint32_t events) {
    struct stream *s = calloc(1, sizeof *s);
    if (!s) fail("calloc");
    s->fd = fd;
    s->is_client = is_client;
    watch(s, EPOLL_CTL_ADD, events);
    return s;
}

static int make_socket(void) {
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK, 0);
    check(fd, "socket");
    return fd;
}

// What the client has to do when its message has gone; and the server.
static int is_sent(struct stream *s) {
    free(s->out);
    s->out = 0;
    if (!s->is_client) return 1;
    if (s->seed % 2 == 0) check(shutdown(s->fd, SHUT_WR), "shutdown");
    watch(s, EPOLL_CTL_MOD, EPOLLIN);
    return 0;
}

// Sends on; 1 if the stream is done.
static int send_on(struct stream *s) {
    while (s->out_at < s->out_len) {
        ssize_t len = send(s->fd, s->out + s->out_at, s->out_len - s->out_at, MSG_NOSIGNAL);
        if (len < 0 && errno == EAGAIN) return 0;
        if (len < 0) {
            printf("wrong: send %s\n", strerror(errno));
            wrong++;
            return 1;
        }
        s->out_at += len;
    }
    return is_sent(s);
}

// Receives on; 1 if the stream is done.
static int receive_on(struct stream *s) {
    for (;;) {
        if (s->in_len == s->in_size) {
            s->in_size = s->in_size ? 2 * s->in_size : 0x4000;
            s->in = realloc(s->in, s->in_size);
            if (!s->in) fail("realloc");
        }
        ssize_t len = recv(s->fd, s->in + s->in_len, s->in_size - s->in_len, 0);
        if (len < 0 && errno == EAGAIN) break;
        if (len <= 0) {
            // The end of a message that a server waits for, or the answer's.
            int good = len == 0 && is_whole(s) && is_right(s);
            if (good && !s->is_client && s->seed % 2 == 0 && !s->is_answered) goto answer;
            if (good && s->is_client) return 1;
            printf("wrong: %zu bytes, %s\n", s->in_len, len ? strerror(errno) : "the end");
            wrong++;
            return 1;
        }
        s->in_len += len;
        if (!s->is_client && is_whole(s)) {
            uint32_t seed;
            memcpy(&seed, s->in + 4, 4);
            if (seed % 2 == 0) continue;
            if (!is_right(s)) {
                wrong++;
                return 1;
            }
            goto answer;
        }
    }
    return 0;
answer:
    s->is_answered = 1;
    say(s, s->seed + 1);
    watch(s, EPOLL_CTL_MOD, EPOLLOUT);
    return 0;
}

static void end(struct stream *s) {
    close(s->fd);
    free(s->in);
    free(s->out);
    free(s);
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 1;
    // With another argument seeds are odd: nobody ends one direction.
    int odd = argc > 2;
    struct rlimit limit = {4 * count + 64, 4 * count + 64};
    check(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
    setvbuf(stdout, 0, _IOLBF, 0);
    epoll = epoll_create1(0);
    check(epoll, "epoll_create1");

    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = SERVED};
    int listener = make_socket();
    check(bind(listener, (void *)&address, sizeof address), "bind");
    check(listen(listener, 4096), "listen");
    struct stream *listening = add(listener, 0, EPOLLIN);

    struct stream **clients = calloc(count, sizeof *clients);
    address.svm_cid = VMADDR_CID_HOST;
    address.svm_port = ASKED;
    for (int n = 0; n < count; n++) {
        int fd = make_socket();
        // The first one tells the host that port 5000 is served.
        if (connect(fd, (void *)&address, sizeof address) < 0 && errno != EINPROGRESS) fail("connect");
        clients[n] = add(fd, 1, EPOLLOUT);
        clients[n]->seed = odd ? 2 * n + 1 : n;
    }

    int opened = 0, accepted = 0, asked = 0, served = 0;
    while (asked < count || served < count) {
        struct epoll_event events[256];
        int found = epoll_wait(epoll, events, 256, 30000);
        check(found, "epoll_wait");
        if (!found) {
            printf("stuck: %d open, %d accepted, %d asked, %d served\n", opened, accepted, asked, served);
            return 1;
        }
        for (int n = 0; n < found; n++) {
            struct stream *s = events[n].data.ptr;
            if (s == listening) {
                int fd;
                while ((fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
                    add(fd, 0, EPOLLIN)->is_open = 1;
                    accepted++;
                }
                continue;
            }
            if (!s->is_open) {
                int error = 0;
                socklen_t len = sizeof error;
                getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &len);
                if (error) {
                    errno = error;
                    fail("connect");
                }
                s->is_open = 1;
                opened++;
                watch(s, EPOLL_CTL_MOD, 0);
                // All together, when the last one is open.
                for (int c = 0; opened == count && c < count; c++) {
                    say(clients[c], clients[c]->seed);
                    watch(clients[c], EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
                }
                continue;
            }
            int done = 0;
            if (s->out) done = send_on(s);
            if (!done && !s->out && (s->is_client || !s->is_answered)) done = receive_on(s);
            if (done) {
                *(s->is_client ? &asked : &served) += 1;
                end(s);
            }
        }
    }
    printf("asked: %d\nserved: %d\nwrong: %d\n", asked, served, wrong);
    return 0;
}
