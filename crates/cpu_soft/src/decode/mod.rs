//! From code bytes to blocks.
//!
//! `iced-x86` decodes; [`operands`] resolves register and memory operands into an [`Op`],
//! [`select`] chooses the handler, by what [`classify`] says, and asks [`extensions`] for what not every model
//! has. A block ends at a branch, at what has to be looked at, at the
//! end of its page, or when it is long enough. An instruction that crosses into the next page is a
//! block of its own, which is never jumped to without asking for both pages again.

mod classify;
mod extensions;
mod operands;
mod select;

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};
use umbra_slots::Gpa;
use umbra_x86::state::seg;

use crate::code::Block;
use crate::cpu::{Cpu, Trap, mode};
use crate::op::{MAX_OPS, Op, counted};
use crate::ops::{branch, system};
use crate::raw;
use crate::translator::Piece;
pub(crate) use classify::condition;

/// Bytes that are read for one block.
const WINDOW: usize = 256;
/// The longest instruction.
pub(crate) const LONGEST: usize = 15;

/// What handler selection says about an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// The handler goes on with the next operation.
    On,
    /// The handler always leaves: a branch.
    End,
}

impl Cpu {
    /// Finds or decodes the block at the instruction pointer.
    pub fn block(&mut self, mode: u8) -> Result<*const Block, Trap> {
        let la = self.code_address(self.rip)?;
        let (gpa, host) = self.fetch_address(la)?;
        let key = (gpa, self.rip, mode);
        let limit = self.code_limit();
        let fits = |block: &&Block| !block.limited && block.last() <= limit;
        if let Some(block) = self.blocks.get(key).filter(fits) {
            match block.second {
                None => return Ok(block),
                Some(second) => {
                    let pointer: *const Block = block;
                    let next = self.next_page(la)?;
                    if self.fetch_address(next)?.0 == second {
                        return Ok(pointer);
                    }
                }
            }
        }
        self.decode(la, gpa, host, mode)
    }

    /// Linear address of `rip`, checked against CS outside 64-bit code.
    fn code_address(&mut self, rip: u64) -> Result<u64, Trap> {
        if self.long_code() {
            return Ok(rip);
        }
        if rip > u64::from(self.seg[seg::CS].limit) {
            return Err(self.gp(0));
        }
        Ok(self.seg[seg::CS].base.wrapping_add(rip) & 0xffff_ffff)
    }

    /// The highest address of code.
    fn code_limit(&self) -> u64 {
        if self.long_code() {
            u64::MAX
        } else {
            self.seg[seg::CS].limit.into()
        }
    }

    fn next_page(&mut self, la: u64) -> Result<u64, Trap> {
        let next = (la & !0xfff).wrapping_add(0x1000);
        Ok(if self.long_code() {
            next
        } else {
            next & 0xffff_ffff
        })
    }

    /// Makes sure that writes to `len` bytes at `gpa` will be noticed, by every processor.
    pub(crate) fn watch_code(&mut self, gpa: u64, len: usize) {
        if self.code.mark(gpa, len as u64) {
            self.mmu.flush_writers(Gpa(gpa).gfn());
            self.drain();
            self.pool.drop_writers(gpa & !0xfff);
        }
    }

    fn decode(&mut self, la: u64, gpa: u64, host: u64, mode: u8) -> Result<*const Block, Trap> {
        if self.blocks.full() || self.stubs.full() {
            self.forget_code();
        }
        let room = (0x1000 - (gpa & 0xfff)) as usize;
        let len = room.min(WINDOW);
        self.watch_code(gpa, len);
        // Watching may have waited for others; the mapping is asked for again.
        if self.fetch_address(la)? != (gpa, host) {
            return self.block(mode);
        }
        let mut bytes = [0; WINDOW + LONGEST];
        // SAFETY: 1. `host` was translated just now, and `len` stays on its page.
        unsafe { raw::read_bytes(host, &mut bytes[..len]) };
        let mut builder = Builder::new(self, &bytes[..len], mode);
        builder.count();
        builder.run();
        if builder.len == 0 {
            return self.decode_crossing(la, gpa, mode, &mut bytes, room);
        }
        let block = builder.finish(gpa, None);
        Ok(self.insert(block))
    }

    /// Decodes one instruction whose bytes lie on two pages.
    fn decode_crossing(
        &mut self,
        la: u64,
        gpa: u64,
        mode: u8,
        bytes: &mut [u8],
        room: usize,
    ) -> Result<*const Block, Trap> {
        if self.rip.saturating_add(room as u64) > self.code_limit() {
            return Err(self.gp(0));
        }
        let next = self.next_page(la)?;
        let (second, host) = self.fetch_address(next)?;
        self.watch_code(second, LONGEST);
        let (second, host) = match self.fetch_address(next)? {
            same if same == (second, host) => same,
            _ => return self.block(mode),
        };
        // SAFETY: 1. `host` was translated just now; fifteen bytes from the start of a page.
        unsafe { raw::read_bytes(host, &mut bytes[room..room + LONGEST]) };
        let mut builder = Builder::new(self, &bytes[..room + LONGEST], mode);
        builder.count();
        builder.mode |= mode::SINGLE;
        builder.run();
        let mut block = builder.finish(gpa, Some(second));
        block.mode = mode;
        Ok(self.insert(block))
    }

    /// Decodes for the translator: what `bytes` at `rip` hold up to the end of a block. Distances are
    /// counted from `base`.
    pub(crate) fn decode_piece(&mut self, bytes: &[u8], rip: u64, base: u64, mode: u8) -> Piece {
        let mut builder = Builder::new(self, bytes, mode);
        (builder.rip, builder.insns) = (base, Some(Vec::new()));
        builder.decoder.set_ip(rip);
        builder.run();
        Piece {
            rip,
            insns: builder.insns.unwrap_or_default(),
            ops: builder.ops,
            ended: builder.ended,
        }
    }

    fn insert(&mut self, block: Block) -> *const Block {
        self.stats.blocks_decoded += 1;
        self.blocks.insert(block)
    }
}

/// Builds one block.
struct Builder<'a> {
    cpu: &'a mut Cpu,
    decoder: Decoder<'a>,
    rip: u64,
    mode: u8,
    ops: Vec<Op>,
    /// The instructions, for who wants them.
    insns: Option<Vec<Instruction>>,
    /// Operations that are no instructions.
    extra: usize,
    ended: bool,
    limited: bool,
    limit: u64,
    len: u16,
}

impl<'a> Builder<'a> {
    fn new(cpu: &'a mut Cpu, bytes: &'a [u8], mode: u8) -> Self {
        let bitness = 16 << (mode & mode::SIZE);
        let (rip, limit) = (cpu.rip, cpu.code_limit());
        let decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
        Self {
            cpu,
            decoder,
            rip,
            mode,
            ops: Vec::with_capacity(16),
            insns: None,
            extra: 0,
            ended: false,
            limited: false,
            limit,
            len: 0,
        }
    }

    /// Has the block's executions counted, if there is a translator.
    fn count(&mut self) {
        let translator = &self.cpu.translator;
        if translator.counts_blocks() && self.mode == 2 {
            let op = Op::new(counted);
            op.left.set(translator.threshold);
            self.ops.push(op);
            self.extra = 1;
        }
    }

    /// Decodes until the block ends. No operation at all means that the first instruction needs
    /// bytes of the next page.
    fn run(&mut self) {
        let limit = if self.mode & mode::SINGLE != 0 {
            1
        } else {
            MAX_OPS
        };
        let mut insn = Instruction::default();
        while !self.ended && self.ops.len() - self.extra < limit && self.decoder.can_decode() {
            self.decoder.decode_out(&mut insn);
            if self.decoder.last_error() == DecoderError::NoMoreBytes && self.truncated(&insn) {
                return;
            }
            self.add(&insn);
        }
    }

    /// The bytes end in the middle of an instruction: it begins the next block, unless fifteen
    /// bytes are there, which is one too long to exist.
    fn truncated(&self, insn: &Instruction) -> bool {
        insn.len() < LONGEST
    }

    fn add(&mut self, insn: &Instruction) {
        let mut op = Op::new(system::undefined);
        op.off = (insn.ip().wrapping_sub(self.rip)) as u16;
        op.len = insn.len() as u8;
        let last = insn.ip().saturating_add(insn.len() as u64 - 1);
        let flow = if last > self.limit {
            self.limited = true;
            op.handler.set(system::beyond_limit);
            Flow::End
        } else if insn.is_invalid() && insn.len() >= LONGEST {
            // The decoder gives up behind the fifteenth byte: it is too long.
            op.handler.set(system::beyond_limit);
            Flow::End
        } else if insn.is_invalid() {
            Flow::End
        } else {
            self.select(insn, &mut op)
        };
        self.len = op.off + u16::from(op.len);
        self.ops.push(op);
        if let Some(insns) = &mut self.insns {
            insns.push(*insn);
        }
        self.ended = flow == Flow::End;
    }

    /// Closes the block: whatever happens, its last operation leaves.
    fn finish(mut self, gpa: u64, second: Option<u64>) -> Block {
        let count = (self.ops.len() - self.extra) as u16;
        if !self.ended {
            let mut end = Op::new(branch::fall_through);
            end.off = self.len;
            end.imm = mode::cut(self.mode, self.rip.wrapping_add(self.len.into()));
            self.ops.push(end);
        }
        Block {
            ops: self.ops.into_boxed_slice(),
            rip: self.rip,
            gpa,
            second,
            len: self.len.max(1),
            count: count.max(1),
            mode: self.mode,
            limited: self.limited,
        }
    }
}
