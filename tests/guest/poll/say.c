/* Text through the first serial port, one byte after the other. */
#include "say.h"

#include <stdarg.h>

#include "machine.h"

enum { PORT = 0x3f8, LINE_STATUS = PORT + 5, EMPTY = 1 << 5 };

static void put(char byte)
{
    while (!(in8(LINE_STATUS) & EMPTY))
        pause();
    out8(PORT, byte);
}

static void put_text(const char *text)
{
    while (*text)
        put(*text++);
}

static const char DIGITS[] = "0123456789abcdef";

static void put_byte(u8 value)
{
    put(DIGITS[value >> 4]);
    put(DIGITS[value & 15]);
}

static void put_number(u64 value, unsigned base)
{
    char digits[20];
    int count = 0;
    do {
        digits[count++] = DIGITS[value % base];
        value /= base;
    } while (value);
    while (count)
        put(digits[--count]);
}

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            put_text(va_arg(arguments, const char *));
            break;
        case 'u':
            put_number(va_arg(arguments, u64), 10);
            break;
        case 'b':
            put_byte(va_arg(arguments, u64));
            break;
        case 'x':
            put_text("0x");
            put_number(va_arg(arguments, u64), 16);
            break;
        }
    }
    va_end(arguments);
}

void fail(const char *what)
{
    say("FAIL %s\n", what);
    end(1);
}
