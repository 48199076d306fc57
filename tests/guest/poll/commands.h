/* The commands that have files of their own; what they do is in README.md. Each takes its numbers, and
   returns if it succeeded. */
#pragma once

#include "machine.h"

void block(const u64 *numbers);
void churn(const u64 *numbers);
void console(const u64 *numbers);
void dirty(const u64 *numbers);
void hammer(const u64 *numbers);
void interrupts(const u64 *numbers);
void net(const u64 *numbers);
void rng(const u64 *numbers);
void vsock(const u64 *numbers);
