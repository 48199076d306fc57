#!/bin/sh
# Builds the guests into a folder: build.sh FOLDER makes FOLDER/umbra-poll and FOLDER/umbra-tiny.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
link="-nostdlib -static -no-pie -Wl,--build-id=none"
# General registers only, and no loop may become a call of memset or memcpy: there are none.
gcc -std=gnu11 -O2 -Wall -Wextra -ffreestanding -mgeneral-regs-only -mno-red-zone \
    -fno-stack-protector -fcf-protection=none -fno-pie -fno-asynchronous-unwind-tables \
    -fno-tree-loop-distribute-patterns $link -Wl,-z,max-page-size=0x1000 -Wl,-T,"$here/link.ld" \
    "$here/start.S" "$here/poll.c" "$here/say.c" "$here/mailbox.c" \
    "$here/virtio.c" "$here/rng.c" "$here/block.c" "$here/net.c" "$here/console.c" "$here/vsock.c" \
    "$here/interrupts.S" "$here/interrupts.c" -o "$1/umbra-poll"
# Addresses are computed in the source: where the linker puts a flat file does not matter.
gcc $link -Wl,--oformat=binary -Wl,-Ttext=0 -Wl,-e,0 "$here/tiny.S" -o "$1/umbra-tiny"
