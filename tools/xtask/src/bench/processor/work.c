/* What `cargo xtask bench processor` measures, natively and in guests: `work` does everything once and prints
 * a line for each, with seconds and a checksum; `work NAME` only that. `work nothing` does nothing: it is what
 * is executed by the test of fork and exec.
 */
#define _GNU_SOURCE
#include <emmintrin.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *self;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static uint64_t integer(void)
{
    uint64_t x = 88172645463325252ull, sum = 0;
    for (int n = 0; n < 60000000; n++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        sum += x;
    }
    return sum;
}

static uint64_t sieve(void)
{
    enum { LEN = 1 << 20 };
    static uint8_t composite[LEN];
    uint64_t primes = 0;
    for (int round = 0; round < 20; round++) {
        memset(composite, 0, LEN);
        for (uint32_t n = 2; n < LEN; n++) {
            if (composite[n])
                continue;
            primes++;
            for (uint32_t multiple = 2 * n; multiple < LEN; multiple += n)
                composite[multiple] = 1;
        }
    }
    return primes;
}

static uint64_t sum(void)
{
    static uint32_t words[4096];
    uint64_t total = 0;
    for (int round = 0; round < 20000; round++)
        for (int n = 0; n < 4096; n++) {
            words[n] += n ^ round;
            /* One at a time: the compiler would make vectors of it. */
            __asm__ volatile("" : "+m"(words[n]));
            total += words[n];
        }
    return total;
}

static uint64_t chase(size_t bytes, int steps)
{
    size_t count = bytes / 64, at = 0;
    uint64_t (*nodes)[8] = aligned_alloc(64, bytes);
    /* One cycle through all of them, in no order that a prefetcher knows. */
    size_t step = 0x9e3779b1 % count | 1;
    for (size_t n = 0; n < count; n++, at = (at + step) % count)
        nodes[at][0] = (at + step) % count;
    uint64_t node = 0;
    for (int n = 0; n < steps; n++)
        node = nodes[node][0];
    free(nodes);
    return node;
}

static uint64_t chase_small(void) { return chase(32 << 10, 40000000); }
static uint64_t chase_large(void) { return chase(4 << 20, 20000000); }

static uint64_t scalar_fp(void)
{
    enum { SIDE = 160 };
    static double a[SIDE][SIDE], b[SIDE][SIDE], c[SIDE][SIDE];
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            a[i][j] = i + j / 3.0;
            b[i][j] = i - j / 7.0;
        }
    for (int round = 0; round < 20; round++)
        for (int i = 0; i < SIDE; i++)
            for (int j = 0; j < SIDE; j++) {
                double total = c[i][j] / 2;
                for (int k = 0; k < SIDE; k++)
                    total += a[i][k] * b[k][j];
                c[i][j] = total;
            }
    uint64_t bits;
    memcpy(&bits, &c[7][11], 8);
    return bits;
}

static uint64_t vectors(void)
{
    static __m128i words[1024];
    static __m128 floats[1024];
    __m128i total = _mm_setzero_si128();
    __m128 product = _mm_set1_ps(1.0f);
    for (int n = 0; n < 1024; n++) {
        words[n] = _mm_set1_epi32(n);
        floats[n] = _mm_set1_ps(1.0f + n / 4096.0f);
    }
    for (int round = 0; round < 10000; round++)
        for (int n = 0; n < 1024; n++) {
            total = _mm_add_epi32(_mm_xor_si128(total, words[n]), _mm_slli_epi32(words[n], 3));
            product = _mm_add_ps(_mm_mul_ps(product, _mm_set1_ps(0.5f)), floats[n]);
        }
    return _mm_cvtsi128_si32(total) ^ (uint64_t)(_mm_cvtss_f32(product) * 1e6f);
}

__attribute__((noinline)) static uint64_t fibonacci(int n)
{
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}
static uint64_t calls(void) { return fibonacci(37); }

static uint64_t dispatch(void)
{
    static const uint8_t program[] = { 0, 1, 2, 3, 4, 5, 1, 3, 6, 2, 5, 7 };
    uint64_t a = 1, b = 2;
    int at = 0;
    for (long n = 0; n < 50000000; n++) {
        switch (program[at++]) {
        case 0: a += b; break;
        case 1: b ^= a; break;
        case 2: a = a << 5 | a >> 59; break;
        case 3: b -= 7; break;
        case 4: a *= 3; break;
        case 5: b += a >> 3; break;
        case 6: a = ~a; break;
        default: at = 0;
        }
    }
    return a ^ b;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static uint64_t quicksort(void)
{
    enum { LEN = 400000 };
    static uint32_t numbers[LEN], scratch[LEN];
    uint32_t x = 2463534242u;
    for (int n = 0; n < LEN; n++) {
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        numbers[n] = x;
    }
    uint64_t total = 0;
    for (int round = 0; round < 3; round++) {
        memcpy(scratch, numbers, sizeof scratch);
        qsort(scratch, LEN, sizeof *scratch, compare);
        total += scratch[LEN / 3];
    }
    return total;
}

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static uint64_t sha256(void)
{
    static uint32_t k[64];
    uint32_t h[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, w[64];
    for (int n = 0; n < 64; n++)
        k[n] = 0x428a2f98u * (n + 1);
    for (int block = 0; block < 300000; block++) {
        for (int n = 0; n < 16; n++)
            w[n] = h[n & 7] + n + block;
        for (int n = 16; n < 64; n++) {
            uint32_t s0 = rotate(w[n - 15], 7) ^ rotate(w[n - 15], 18) ^ w[n - 15] >> 3;
            uint32_t s1 = rotate(w[n - 2], 17) ^ rotate(w[n - 2], 19) ^ w[n - 2] >> 10;
            w[n] = w[n - 16] + s0 + w[n - 7] + s1;
        }
        uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], i = h[7];
        for (int n = 0; n < 64; n++) {
            uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
            uint32_t t1 = i + s1 + ((e & f) ^ (~e & g)) + k[n] + w[n];
            uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
            uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
            i = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e, h[5] += f, h[6] += g, h[7] += i;
    }
    return (uint64_t)h[0] << 32 | h[7];
}

static uint64_t system_calls(void)
{
    uint64_t total = 0;
    for (int n = 0; n < 500000; n++)
        total += syscall(SYS_getppid) > 0;
    return total != 0;
}

static uint64_t page_faults(void)
{
    enum { PAGES = 4096 };
    uint64_t total = 0;
    for (int round = 0; round < 8; round++) {
        uint8_t *memory = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(memory, PAGES * 4096, MADV_NOHUGEPAGE);
        for (int n = 0; n < PAGES; n++)
            total += memory[n * 4096] = n;
        munmap(memory, PAGES * 4096);
    }
    return total;
}

static uint64_t fork_exec(void)
{
    char *words[] = { (char *)self, "nothing", NULL };
    uint64_t total = 0;
    for (int n = 0; n < 200; n++) {
        int status = 1;
        pid_t child = fork();
        if (child == 0) {
            execv(self, words);
            _exit(9);
        }
        waitpid(child, &status, 0);
        total += status == 0;
    }
    return total;
}

static uint64_t ping_pong(void)
{
    int there[2], back[2];
    char byte = 1;
    uint64_t total = 0;
    if (pipe(there) || pipe(back))
        exit(1);
    if (fork() == 0) {
        while (read(there[0], &byte, 1) == 1 && byte)
            if (write(back[1], &byte, 1) != 1)
                break;
        _exit(0);
    }
    for (int n = 0; n < 30000; n++)
        total += write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1;
    byte = 0;
    if (write(there[1], &byte, 1) != 1)
        exit(1);
    wait(NULL);
    return total;
}

static volatile uint64_t heard;
static void hear(int signal) { heard += signal == SIGUSR1; }

static uint64_t signals(void)
{
    heard = 0;
    signal(SIGUSR1, hear);
    for (int n = 0; n < 200000; n++)
        raise(SIGUSR1);
    return heard;
}

static const struct {
    const char *name;
    uint64_t (*run)(void);
} ALL[] = {
    { "integer", integer }, { "sieve", sieve }, { "sum", sum },
    { "chase-32k", chase_small }, { "chase-4m", chase_large },
    { "scalar-fp", scalar_fp }, { "sse2", vectors }, { "calls", calls },
    { "dispatch", dispatch }, { "quicksort", quicksort }, { "sha256", sha256 },
    { "syscalls", system_calls }, { "faults", page_faults }, { "fork-exec", fork_exec },
    { "ping-pong", ping_pong }, { "signals", signals },
};

int main(int count, char **words)
{
    self = words[0];
    if (count > 1 && !strcmp(words[1], "nothing"))
        return 0;
    for (size_t n = 0; n < sizeof ALL / sizeof *ALL; n++) {
        if (count > 1 && strcmp(words[1], ALL[n].name))
            continue;
        double begin = now();
        uint64_t result = ALL[n].run();
        printf("%s: %.4f %016llx\n", ALL[n].name, now() - begin, (unsigned long long)result);
        fflush(stdout);
    }
    return 0;
}
