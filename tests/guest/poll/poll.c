/* A guest that executes the one command on its command line. README.md says what there is. */
#include "commands.h"
#include "say.h"
#include "virtio.h"

/* Xen's public/arch-x86/hvm/start_info.h, as far as it matters here. */
struct start_info {
    u32 magic, version, flags, modules;
    u64 module_list;
    u64 command_line;
};

enum { START_INFO = 0x336ec578, MOST_NUMBERS = 3 };

struct command {
    const char *name;
    int numbers;
    void (*run)(const u64 *numbers);
};

/* start.S */
void execute_sse(void);

static void hello(const u64 *numbers)
{
    (void)numbers;
    say("hello from umbra-poll\n");
}

static void mmio(const u64 *numbers)
{
    u64 address = numbers[0], count = numbers[1];
    u64 begin = rdtsc();
    for (u64 n = 0; n < count; n++)
        read32(address);
    u64 middle = rdtsc();
    for (u64 n = 0; n < count; n++)
        write32(address, 0);
    say("mmio read %u write %u\n", middle - begin, rdtsc() - middle);
}

static void port(const u64 *numbers)
{
    u16 port = numbers[0];
    u64 count = numbers[1], begin = rdtsc();
    for (u64 n = 0; n < count; n++)
        in8(port);
    u64 middle = rdtsc();
    for (u64 n = 0; n < count; n++)
        out8(port, 0);
    say("port read %u write %u\n", middle - begin, rdtsc() - middle);
}

/* The first word is the counter, the others are scribbled over. */
static u64 private_page[512] __attribute__((aligned(4096)));

static void load(const u64 *numbers)
{
    u64 address = numbers[0], value = 1;
    u16 port = numbers[1];
    say("counter %x\n", (u64)private_page);
    for (;;) {
        value = value * 6364136223846793005 + 1442695040888963407;
        write64((u64)&private_page[1 + (value >> 40) % 511], value);
        value ^= read32(address);
        out8(port, value >> 56);
        write64((u64)private_page, read64((u64)private_page) + 1);
    }
}

static void spin(const u64 *numbers)
{
    (void)numbers;
    say("spinning\n");
    __asm__ volatile("jmp .");
}

static void halt(const u64 *numbers)
{
    (void)numbers;
    say("halting\n");
    halt_for_ever();
}

static void emulate(const u64 *numbers)
{
    (void)numbers;
    say("next comes SSE\n");
    execute_sse();
    say("survived\n");
}

/* The interrupt descriptor table has been empty since the boot. */
static void triple(const u64 *numbers)
{
    (void)numbers;
    __asm__ volatile("ud2");
}

static void tsc(const u64 *numbers)
{
    u64 first = rdtsc(), last = first;
    for (u64 n = 1; n < numbers[0]; n++) {
        u64 now = rdtsc();
        ensure(now >= last, "the time stamp counter went backwards");
        last = now;
    }
    say("tsc %u %u\n", first, last);
}

static u32 say_leaf(u32 leaf, u32 subleaf)
{
    u32 a = leaf, b, c = subleaf, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    say("cpuid %x %x %x %x %x %x\n", (u64)leaf, (u64)subleaf, (u64)a, (u64)b, (u64)c, (u64)d);
    return a;
}

static void say_basic_leaf(u32 leaf)
{
    int has_subleafs = leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd;
    for (u32 subleaf = 0; subleaf < (has_subleafs ? 4 : 1); subleaf++)
        say_leaf(leaf, subleaf);
}

static void cpuid(const u64 *numbers)
{
    (void)numbers;
    u32 last = say_leaf(0, 0);
    for (u32 leaf = 1; leaf <= last; leaf++)
        say_basic_leaf(leaf);
    for (u32 leaf = 0x40000000; leaf <= 0x40000001; leaf++)
        say_leaf(leaf, 0);
    for (u32 leaf = 0x80000000; leaf <= 0x80000008; leaf++)
        say_leaf(leaf, 0);
}

static const struct command COMMANDS[] = {
    {"block", 1, block},     {"churn", 3, churn},   {"console", 1, console}, {"cpuid", 0, cpuid},
    {"dirty", 3, dirty},     {"emulate", 0, emulate}, {"halt", 0, halt},     {"hammer", 3, hammer},
    {"hello", 0, hello},     {"interrupts", 3, interrupts}, {"load", 2, load}, {"mmio", 2, mmio},
    {"net", 1, net},         {"port", 2, port},     {"rng", 2, rng},         {"spin", 0, spin},
    {"triple", 0, triple},   {"tsc", 1, tsc},       {"vsock", 2, vsock},
};

static int ends_word(char byte)
{
    return byte == 0 || byte == ' ';
}

/* Returns what follows `word` at the beginning of `text`, or nothing. */
static const char *skip_word(const char *text, const char *word)
{
    while (*word)
        if (*text++ != *word++)
            return 0;
    return ends_word(*text) ? text : 0;
}

static const char *skip_spaces(const char *text)
{
    while (*text == ' ')
        text++;
    return text;
}

static unsigned digit(char byte)
{
    if (byte >= '0' && byte <= '9')
        return byte - '0';
    byte |= 0x20;
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10u : 16;
}

/* Reads a number, decimal or with 0x; returns what follows it. */
static const char *number(const char *text, u64 *value)
{
    unsigned base = 10;
    if (text[0] == '0' && (text[1] | 0x20) == 'x') {
        base = 16;
        text += 2;
    }
    ensure(!ends_word(*text), "a number is missing");
    for (*value = 0; !ends_word(*text); text++) {
        ensure(digit(*text) < base, "a number is malformed");
        *value = *value * base + digit(*text);
    }
    return text;
}

/* Reads an address, or `pci:` and a number, where a virtio device is. */
static const char *place(const char *text, u64 *value)
{
    int pci = text[0] == 'p' && text[1] == 'c' && text[2] == 'i' && text[3] == ':';
    text = number(pci ? text + 4 : text, value);
    ensure(!(*value & PCI), "no device can be there");
    *value |= pci ? PCI : 0;
    return text;
}

/* Tells whether a command's first number is a place. */
static int takes_place(const struct command *command)
{
    static void (*const drivers[])(const u64 *) = {block, console, net, rng, vsock};
    for (unsigned n = 0; n < sizeof drivers / sizeof *drivers; n++)
        if (command->run == drivers[n])
            return 1;
    return 0;
}

static void execute(const struct command *command, const char *text)
{
    u64 numbers[MOST_NUMBERS] = {0};
    for (int n = 0; n < command->numbers; n++) {
        text = skip_spaces(text);
        text = n == 0 && takes_place(command) ? place(text, &numbers[n]) : number(text, &numbers[n]);
    }
    command->run(numbers);
    end(0);
}

/* Where start.S arrives, in 64-bit mode. */
_Noreturn void kernel_main(const struct start_info *info)
{
    ensure(info->magic == START_INFO, "there is no start info");
    const char *text = info->command_line ? skip_spaces((const char *)info->command_line) : "";
    for (unsigned n = 0; n < sizeof COMMANDS / sizeof *COMMANDS; n++) {
        const char *rest = skip_word(text, COMMANDS[n].name);
        if (rest)
            execute(&COMMANDS[n], rest);
    }
    fail("unknown command");
}
