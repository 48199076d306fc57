/* Text through the first serial port. */
#pragma once

/* Prints a text; %s is a string, %u a u64 in decimal, %x a u64 in hexadecimal with 0x, %b
   one as two hexadecimal digits. */
void say(const char *format, ...);

/* Prints `FAIL what` and ends the machine with status 1. */
_Noreturn void fail(const char *what);

/* Fails unless a condition holds. */
static inline void ensure(int condition, const char *what)
{
    if (!condition)
        fail(what);
}
