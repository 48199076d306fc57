//! Guest memory by linear address.
//!
//! ```text
//!   load / store / rmw ── tag matches ──> one host instruction (`raw`)
//!        └─ else ─> resolve ─> mmu.translate ─┬─ RAM       fill the cache, do it
//!                                             ├─ Code      do it, throw decoded blocks away
//!                                             ├─ Tracked   do it under the MMU's lock
//!                                             ├─ Mmio      call the machine with the address
//!                                             └─ fault     #PF
//! ```
//! An access that crosses a page is split; both pages are asked before either is written.
//! A translation returned by the MMU is used only if no flush is pending afterwards. A device access
//! that finds memory, because the map changed in between, is translated again.

use umbra_cpu::Served;
use umbra_mmu::{Access, AccessKind, Flush, Kind, RamPage, Translation};
use umbra_slots::Gpa;
use umbra_x86::{Exception, Gva, vector};

use crate::cpu::{Cpu, Trap, mode};
use crate::flags::Flags;
use crate::jumps::jump_tag;
use crate::meter::{Doing, Was};
use crate::op::Op;
use crate::raw;
use crate::tlb::{self, Class};

/// Serialises locked accesses that cross a page, for which the host has no instruction.
static SPLIT_LOCK: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// Where an access lands.
enum Where {
    /// Host address.
    Ram(u64),
    /// Host address, on a page with decoded code.
    Code(u64, Gpa),
    /// RAM that the MMU wants to see written.
    Tracked(Gpa),
    /// No RAM; or read-only memory that is written.
    Device(Gpa),
}

/// How many of `len` bytes the machine is asked for first: it takes 1, 2, 4 or 8 at a time
/// ([`umbra_cpu::Io`]).
fn device_piece(len: usize) -> usize {
    let power = (usize::BITS - 1).saturating_sub(len.leading_zeros());
    1 << power.min(3)
}

/// Tells whether `len` bytes at `la` leave the page.
fn crosses(la: u64, len: usize) -> bool {
    (la & 0xfff) + len as u64 > 0x1000
}

impl Cpu {
    /// Loads `N` bytes, zero-extended.
    #[inline(always)]
    pub fn load<const N: usize>(&mut self, la: u64) -> Result<u64, Trap> {
        let entry = self.ctx().entry(la);
        if la.wrapping_add(N as u64 - 1) & !0xfff == entry.read {
            // SAFETY: 1. first and last byte lie on the page of a read entry, which is mapped RAM
            // until this processor acknowledges its flush; it does so between instructions only.
            return Ok(unsafe { raw::load::<N>(entry.at(la)) });
        }
        self.load_slow::<N>(la)
    }

    /// Loads sixteen bytes.
    #[inline(always)]
    pub fn load16(&mut self, la: u64) -> Result<[u8; 16], Trap> {
        let entry = self.ctx().entry(la);
        let mut data = [0; 16];
        if la.wrapping_add(15) & !0xfff == entry.read {
            let at = entry.at(la);
            // SAFETY: 1. as in `load`.
            let (low, high) = unsafe { (raw::load::<8>(at), raw::load::<8>(at.wrapping_add(8))) };
            data[..8].copy_from_slice(&low.to_le_bytes());
            data[8..].copy_from_slice(&high.to_le_bytes());
            return Ok(data);
        }
        self.check_alignment(la, 16)?;
        if crosses(la, 16) {
            self.read(la, &mut data)?;
        } else {
            // Devices are asked for eight bytes at most.
            self.read(la, &mut data[..8])?;
            self.read(la.wrapping_add(8), &mut data[8..])?;
        }
        Ok(data)
    }

    /// Stores the low `N` bytes of `value`.
    #[inline(always)]
    pub fn store<const N: usize>(&mut self, la: u64, value: u64) -> Result<(), Trap> {
        if let Some(at) = self.writable::<N>(la) {
            // SAFETY: 1. by `writable`.
            unsafe { raw::store::<N>(at, value) };
            return Ok(());
        }
        self.store_slow::<N>(la, value)
    }

    /// Returns the host address of `N` bytes that may be written without further ado. Good until
    /// the next call that takes `&mut self` for guest memory.
    #[inline(always)]
    fn writable<const N: usize>(&mut self, la: u64) -> Option<u64> {
        let entry = self.ctx().entry(la);
        let hit = la.wrapping_add(N as u64 - 1) & !0xfff == entry.write;
        hit.then(|| entry.at(la))
    }

    /// Reads `N` bytes, lets `change` compute new ones, writes them.
    #[inline(always)]
    pub fn rmw<const N: usize>(
        &mut self,
        la: u64,
        change: impl FnOnce(&mut Flags, u64) -> u64,
    ) -> Result<(), Trap> {
        if let Some(at) = self.writable::<N>(la) {
            // SAFETY: 1. by `writable`; what may be written may be read.
            unsafe {
                let new = change(&mut self.flags, raw::load::<N>(at));
                raw::store::<N>(at, new);
            }
            return Ok(());
        }
        self.probe_write(la, N)?;
        let old = self.load_slow::<N>(la)?;
        let new = change(&mut self.flags, old);
        self.store_slow::<N>(la, new)
    }

    /// The same, atomically. `change` may be called more than once.
    #[inline(always)]
    pub fn rmw_locked<const N: usize>(
        &mut self,
        la: u64,
        change: impl Fn(&mut Flags, u64) -> u64,
    ) -> Result<(), Trap> {
        if let Some(at) = self.writable::<N>(la) {
            // SAFETY: 1. by `writable`.
            unsafe { exchange::<N>(&mut self.flags, at, change) };
            return Ok(());
        }
        self.rmw_locked_slow::<N>(la, change)
    }

    /// Loads the memory operand of `op` if its page is cached and its address plain; a handler
    /// that gets `None` leaves the work to its slow twin. Keeping all calls out of the handler
    /// keeps it free of a stack frame.
    #[inline(always)]
    pub fn quick_load<const N: usize>(&mut self, op: &Op) -> Option<u64> {
        if op.addr & self.slow != 0 {
            return None;
        }
        self.quick_load_at::<N>(self.flat_ea(op))
    }

    /// The same at a linear address.
    #[inline(always)]
    pub fn quick_load_at<const N: usize>(&mut self, la: u64) -> Option<u64> {
        let entry = self.ctx().entry(la);
        if la.wrapping_add(N as u64 - 1) & !0xfff != entry.read {
            return None;
        }
        // SAFETY: 1. as in `load`.
        Some(unsafe { raw::load::<N>(entry.at(la)) })
    }

    /// Stores to the memory operand of `op`; tells whether it could.
    #[inline(always)]
    pub fn quick_store<const N: usize>(&mut self, op: &Op, value: u64) -> bool {
        op.addr & self.slow == 0 && self.quick_store_at::<N>(self.flat_ea(op), value)
    }

    /// The same at a linear address.
    #[inline(always)]
    pub fn quick_store_at<const N: usize>(&mut self, la: u64, value: u64) -> bool {
        let Some(at) = self.writable::<N>(la) else {
            return false;
        };
        // SAFETY: 1. by `writable`.
        unsafe { raw::store::<N>(at, value) };
        true
    }

    /// Changes the memory operand of `op`; tells whether it could.
    #[inline(always)]
    pub fn quick_rmw<const N: usize>(
        &mut self,
        op: &Op,
        change: impl FnOnce(&mut Flags, u64) -> u64,
    ) -> bool {
        if op.addr & self.slow != 0 {
            return false;
        }
        let Some(at) = self.writable::<N>(self.flat_ea(op)) else {
            return false;
        };
        // SAFETY: 1. by `writable`; what may be written may be read.
        unsafe {
            let new = change(&mut self.flags, raw::load::<N>(at));
            raw::store::<N>(at, new);
        }
        true
    }

    #[inline(never)]
    fn rmw_locked_slow<const N: usize>(
        &mut self,
        la: u64,
        change: impl Fn(&mut Flags, u64) -> u64,
    ) -> Result<(), Trap> {
        if self.on_stage_now() {
            return self.rmw::<N>(la, change);
        }
        self.check_alignment(la, N)?;
        if crosses(la, N) {
            let _alone = SPLIT_LOCK.lock();
            return self.rmw::<N>(la, change);
        }
        loop {
            match self.resolve(la, AccessKind::Write, N)? {
                // SAFETY: 1. resolved for writing just now, one page.
                Where::Ram(at) => unsafe { exchange::<N>(&mut self.flags, at, change) },
                Where::Code(at, gpa) => {
                    // SAFETY: as above.
                    unsafe { exchange::<N>(&mut self.flags, at, change) };
                    self.code_written(gpa, N);
                }
                Where::Tracked(gpa) => {
                    let was = self.begin_tracked();
                    let flags = &mut self.flags;
                    let done = self.mmu.tracked(gpa, N, |at| {
                        // SAFETY: 1. the MMU vouches for `N` bytes while it holds its lock.
                        unsafe { exchange::<N>(flags, at.as_ptr() as u64, &change) }
                    });
                    self.drain();
                    self.gauge.end(was);
                    if done.is_none() {
                        continue;
                    }
                    self.code_written(gpa, N);
                }
                Where::Device(gpa) => {
                    let mut data = [0; 8];
                    if self.device_read(gpa, &mut data[..N]) == Served::Memory {
                        continue;
                    }
                    let mut after = self.flags;
                    let new = change(&mut after, u64::from_le_bytes(data));
                    if self.device_write(gpa, &new.to_le_bytes()[..N]) == Served::Memory {
                        continue;
                    }
                    self.flags = after;
                }
            }
            return Ok(());
        }
    }

    /// Compares and swaps sixteen bytes; `la` is a multiple of sixteen. Returns the old value.
    pub fn cmpxchg16(&mut self, la: u64, old: u128, new: u128) -> Result<u128, Trap> {
        loop {
            match self.resolve(la, AccessKind::Write, 16)? {
                // SAFETY: 1. resolved for writing just now; 2. aligned, by the caller and because
                // host pages are aligned like guest pages.
                Where::Ram(at) => return Ok(unsafe { raw::cmpxchg16(at, old, new) }),
                Where::Code(at, gpa) => {
                    // SAFETY: as above.
                    let seen = unsafe { raw::cmpxchg16(at, old, new) };
                    self.code_written(gpa, 16);
                    return Ok(seen);
                }
                Where::Tracked(gpa) => {
                    let was = self.begin_tracked();
                    let seen = self.mmu.tracked(gpa, 16, |at| {
                        // SAFETY: 1. the MMU vouches for the bytes while it holds its lock;
                        // 2. as above.
                        unsafe { raw::cmpxchg16(at.as_ptr() as u64, old, new) }
                    });
                    self.drain();
                    self.gauge.end(was);
                    if let Some(seen) = seen {
                        return Ok(seen);
                    }
                }
                Where::Device(gpa) => {
                    // A device cannot be locked for sixteen bytes: it is read, and keeps its value.
                    let mut data = [0; 16];
                    let (low, high) = data.split_at_mut(8);
                    let first = self.device_read(gpa, low);
                    let second = self.device_read(Gpa(gpa.0 + 8), high);
                    if (first, second) == (Served::Done, Served::Done) {
                        return Ok(u128::from_le_bytes(data));
                    }
                }
            }
        }
    }

    #[inline(never)]
    fn load_slow<const N: usize>(&mut self, la: u64) -> Result<u64, Trap> {
        let mut data = [0; 8];
        self.read(la, &mut data[..N])?;
        Ok(u64::from_le_bytes(data))
    }

    #[inline(never)]
    fn store_slow<const N: usize>(&mut self, la: u64, value: u64) -> Result<(), Trap> {
        self.write(la, &value.to_le_bytes()[..N])
    }

    /// Raises #AC for misaligned data at level 3 with CR0.AM and EFLAGS.AC (SDM vol. 3, 6.15,
    /// "Interrupt 17"). Nothing is cached then, so every access comes the slow way.
    #[inline]
    pub fn check_alignment(&mut self, la: u64, len: usize) -> Result<(), Trap> {
        if self.class != Class::Uncached || !self.alignment_checks() {
            return Ok(());
        }
        let last = la.wrapping_add(len as u64 - 1);
        if la & (alignment(len) - 1) == 0 || !self.canonical(la) || !self.canonical(last) {
            return Ok(());
        }
        Err(self.raise(Exception::with_error(vector::AC, 0)))
    }

    /// Reads any number of bytes below a page.
    pub fn read(&mut self, la: u64, data: &mut [u8]) -> Result<(), Trap> {
        let entry = self.ctx().entry(la);
        if !data.is_empty() && la.wrapping_add(data.len() as u64 - 1) & !0xfff == entry.read {
            // SAFETY: 1. as in `load`.
            unsafe { read_ram(entry.at(la), data) };
            return Ok(());
        }
        self.check_alignment(la, data.len())?;
        if !crosses(la, data.len()) {
            return self.read_part(la, data);
        }
        let second = self.second_page(la)?;
        let (head, tail) = data.split_at_mut((0x1000 - (la & 0xfff)) as usize);
        self.read_part(la, head)?;
        self.read_part(second, tail)
    }

    fn read_part(&mut self, la: u64, data: &mut [u8]) -> Result<(), Trap> {
        if self.on_stage_now() {
            return self.load_on_stage(la, data);
        }
        loop {
            match self.resolve(la, AccessKind::Read, data.len())? {
                // SAFETY: 1. resolved for reading just now, one page.
                Where::Ram(at) | Where::Code(at, _) => unsafe { read_ram(at, data) },
                Where::Tracked(gpa) | Where::Device(gpa) => {
                    let first = device_piece(data.len());
                    if first < data.len() {
                        let (head, tail) = data.split_at_mut(first);
                        self.read_part(la, head)?;
                        return self.read_part(la.wrapping_add(first as u64), tail);
                    }
                    if self.device_read(gpa, data) == Served::Memory {
                        continue;
                    }
                }
            }
            return Ok(());
        }
    }

    /// Writes any number of bytes below a page, all or none.
    pub fn write(&mut self, la: u64, data: &[u8]) -> Result<(), Trap> {
        let entry = self.ctx().entry(la);
        if !data.is_empty() && la.wrapping_add(data.len() as u64 - 1) & !0xfff == entry.write {
            // SAFETY: 1. as in `load`, of an entry that may be written.
            unsafe { write_ram(entry.at(la), data) };
            return Ok(());
        }
        self.check_alignment(la, data.len())?;
        if !crosses(la, data.len()) {
            return self.write_part(la, data);
        }
        let second = self.second_page(la)?;
        let (head, tail) = data.split_at((0x1000 - (la & 0xfff)) as usize);
        self.probe_part(la, head.len())?;
        self.probe_part(second, tail.len())?;
        self.write_part(la, head)?;
        self.write_part(second, tail)
    }

    fn write_part(&mut self, la: u64, data: &[u8]) -> Result<(), Trap> {
        if self.on_stage_now() {
            return self.store_on_stage(la, data);
        }
        loop {
            match self.resolve(la, AccessKind::Write, data.len())? {
                // SAFETY: 1. resolved for writing just now, one page.
                Where::Ram(at) => unsafe { write_ram(at, data) },
                Where::Code(at, gpa) => {
                    // SAFETY: as above.
                    unsafe { write_ram(at, data) };
                    self.code_written(gpa, data.len());
                }
                Where::Tracked(gpa) => {
                    let was = self.begin_tracked();
                    let done = self.mmu.tracked(gpa, data.len(), |at| {
                        // SAFETY: 1. the MMU vouches for the bytes while it holds its lock.
                        unsafe { write_ram(at.as_ptr() as u64, data) }
                    });
                    self.drain();
                    self.gauge.end(was);
                    if done.is_none() {
                        continue;
                    }
                    self.code_written(gpa, data.len());
                }
                Where::Device(gpa) => {
                    let first = device_piece(data.len());
                    if first < data.len() {
                        let (head, tail) = data.split_at(first);
                        self.write_part(la, head)?;
                        return self.write_part(la.wrapping_add(first as u64), tail);
                    }
                    if self.device_write(gpa, data) == Served::Memory {
                        continue;
                    }
                }
            }
            return Ok(());
        }
    }

    /// Raises what a write of `len` bytes at `la` would raise, without writing.
    pub fn probe_write(&mut self, la: u64, len: usize) -> Result<(), Trap> {
        self.check_alignment(la, len)?;
        if !crosses(la, len) {
            return self.probe_part(la, len);
        }
        let second = self.second_page(la)?;
        self.probe_part(la, len)?;
        self.probe_part(second, 1)
    }

    fn probe_part(&mut self, la: u64, len: usize) -> Result<(), Trap> {
        if self.on_stage_now() {
            return self.probe_on_stage(la);
        }
        self.resolve(la, AccessKind::Write, len).map(drop)
    }

    /// Where an access that leaves the page of `la` goes on. All of it must be canonical before any
    /// of it is translated; what begins with an address that is not fails at that one.
    fn second_page(&mut self, la: u64) -> Result<u64, Trap> {
        let second = self.wrap((la & !0xfff).wrapping_add(0x1000));
        if self.canonical(la) && !self.canonical(second) {
            return Err(self.not_canonical());
        }
        Ok(second)
    }

    fn not_canonical(&mut self) -> Trap {
        self.wild = true;
        self.raise(Exception::with_error(vector::GP, 0))
    }

    /// Returns the host address of `la` for a run of reads of `N` bytes, and how many bytes to the end
    /// of the page; `None` where each access must be seen, or the first one leaves the page.
    pub fn read_span<const N: usize>(&mut self, la: u64) -> Result<Option<(u64, u64)>, Trap> {
        if self.class == Class::Uncached || crosses(la, N) {
            return Ok(None);
        }
        if self.ctx().entry(la).read != la & !0xfff {
            self.resolve(la, AccessKind::Read, 1)?;
        }
        let entry = self.ctx().entry(la);
        let hit = entry.read == la & !0xfff;
        Ok(hit.then(|| (entry.at(la), 0x1000 - (la & 0xfff))))
    }

    /// The same for writes.
    pub fn write_span<const N: usize>(&mut self, la: u64) -> Result<Option<(u64, u64)>, Trap> {
        if self.class == Class::Uncached || crosses(la, N) {
            return Ok(None);
        }
        if self.ctx().entry(la).write != la & !0xfff {
            self.resolve(la, AccessKind::Write, 1)?;
        }
        let entry = self.ctx().entry(la);
        let hit = entry.write == la & !0xfff;
        Ok(hit.then(|| (entry.at(la), 0x1000 - (la & 0xfff))))
    }

    /// Truncates a linear address to 32 bits outside 64-bit mode.
    fn wrap(&self, la: u64) -> u64 {
        if self.long_code() {
            la
        } else {
            la & 0xffff_ffff
        }
    }

    /// Asks the MMU. The answer holds until the next flush is taken, so one that came with a flush
    /// is asked for again.
    fn translate(&mut self, la: u64, access: Access) -> Result<Translation, Trap> {
        if !self.canonical(la) {
            return Err(self.not_canonical());
        }
        let was = self.gauge.begin(Doing::Paging);
        let found = loop {
            let found = self.mmu.translate(Gva(la), access);
            if !self.mmu.pending() {
                break found;
            }
            self.drain();
        };
        self.gauge.end(was);
        found.map_err(|fault| self.raise(Exception::page_fault(fault.gva.0, fault.error)))
    }

    fn resolve(&mut self, la: u64, kind: AccessKind, len: usize) -> Result<Where, Trap> {
        if self.on_stage_now() {
            return Err(self.refuse_on_stage());
        }
        self.stats.tlb_misses += 1;
        self.check_watchpoints(la, kind, len as u64);
        let access = Access {
            kind,
            user: self.access_user,
            ac: self.access_ac,
        };
        let found = self.translate(la, access)?;
        Ok(match found.kind {
            Kind::Ram(page) => self.cache(la, found.gpa, &page),
            Kind::Tracked => Where::Tracked(found.gpa),
            Kind::Mmio { .. } | Kind::ReadOnly => Where::Device(found.gpa),
        })
    }

    /// A write to a page table begins.
    fn begin_tracked(&mut self) -> Was {
        self.stats.tracked += 1;
        self.gauge.begin(Doing::Paging)
    }

    /// Remembers a page of RAM, but for writes only if no decoded code is on it.
    fn cache(&mut self, la: u64, gpa: Gpa, page: &RamPage) -> Where {
        let host = page.page.as_ptr() as u64;
        let frame = gpa.0 & !0xfff;
        let code = page.write && self.code.contains(frame);
        if self.class != Class::Uncached {
            let known = tlb::Page {
                read: page.read,
                write: page.write && !code,
                host,
                gpa: frame | marks(page),
            };
            self.ctx_mut().fill(la, known);
        }
        let at = host + (la & 0xfff);
        if code {
            Where::Code(at, gpa)
        } else {
            Where::Ram(at)
        }
    }

    /// Translates for a fetch: guest-physical address and host address of the byte at `la`.
    pub fn fetch_address(&mut self, la: u64) -> Result<(u64, u64), Trap> {
        if let Some(hit) = self.ctx().fetch(la) {
            return Ok(((hit.gpa & !0xfff) + (la & 0xfff), hit.host + (la & 0xfff)));
        }
        let access = Access {
            kind: AccessKind::Fetch,
            user: self.cpl == 3,
            ac: false,
        };
        let found = self.translate(la, access)?;
        let Kind::Ram(page) = found.kind else {
            return Err(self.fetch_from_device(found.gpa));
        };
        let host = page.page.as_ptr() as u64;
        if self.class != Class::Uncached {
            let gpa = found.gpa.0 & !0xfff | marks(&page);
            self.ctx_mut().fill_fetch(la, gpa, host);
        }
        Ok((found.gpa.0, host + (la & 0xfff)))
    }

    /// There is no memory at the instruction pointer. Hardware would fetch all-ones from the bus,
    /// which is no instruction.
    fn fetch_from_device(&mut self, gpa: Gpa) -> Trap {
        tracing::debug!(rip = self.rip, %gpa, "the guest executes where there is no memory");
        self.raise(Exception::plain(vector::UD))
    }

    /// Throws away what was decoded from bytes that were just written.
    #[inline(never)]
    fn code_written(&mut self, gpa: Gpa, len: usize) {
        self.stats.code_writes += 1;
        if let Some((page, mask)) = self.code.written(gpa.0, len as u64, &self.code_port) {
            self.drop_code(page, mask);
        }
    }

    /// Drops decoded blocks that overlap `mask` of `page`.
    pub fn drop_code(&mut self, page: u64, mask: u64) {
        let pool = &mut self.pool;
        let gone = self
            .blocks
            .invalidate(page, mask, |block| pool.drop_block(block));
        self.stats.blocks_dropped += gone as u64;
        let translated = self
            .translator
            .invalidate(page, mask, |rip, code| pool.drop_code_at(rip, code));
        self.shared.stop |= translated;
    }

    /// Does what the MMU asked for, and acknowledges it.
    pub fn drain(&mut self) {
        while self.mmu.pending() {
            self.stats.flushes += 1;
            let pool = &mut self.pool;
            self.mmu.take_flushes(|flush| match flush {
                Flush::All => pool.clear(),
                Flush::Writers(gfn) => pool.drop_writers(gfn.gpa().0),
            });
        }
    }

    fn device_read(&mut self, gpa: Gpa, data: &mut [u8]) -> Served {
        self.stats.mmio += 1;
        if let Some(offset) = self.apic_offset(gpa) {
            let value = self.apic.mmio_read(offset & !3) >> (8 * (offset & 3));
            let bytes = value.to_le_bytes();
            data.fill(0);
            let len = data.len().min(4);
            data[..len].copy_from_slice(&bytes[..len]);
            return Served::Done;
        }
        self.outside(|io| io.mmio_read(gpa, data))
    }

    fn device_write(&mut self, gpa: Gpa, data: &[u8]) -> Served {
        self.stats.mmio += 1;
        if let Some(offset) = self.apic_offset(gpa) {
            let mut bytes = [0; 4];
            let len = data.len().min(4);
            bytes[..len].copy_from_slice(&data[..len]);
            self.apic.mmio_write(offset & !3, u32::from_le_bytes(bytes));
            self.timer_changed();
            self.wake.want();
            self.interrupt_block();
            return Served::Done;
        }
        let served = self.outside(|io| io.mmio_write(gpa, data));
        if self.wake.wanted() {
            self.interrupt_block();
        }
        served
    }

    /// Lets nothing of the executing block follow the current instruction before events are looked
    /// at: an interrupt that a store asked for comes before the next instruction (SDM vol. 3, 10.6.1).
    #[cold]
    fn interrupt_block(&mut self) {
        if self.shared.inside {
            self.shared.stop = true;
            return;
        }
        if self.blocks.has_parked() || self.mode & mode::SINGLE != 0 {
            return;
        }
        let rip = self.regs.block_rip();
        let jump = *self.jumps().block(rip);
        if jump.tag == jump_tag(rip, self.mode) {
            // SAFETY: a jump leads to a block that `self.blocks` owns, with an operation at least
            // for each of its instructions, and one that counts; see `enter_block`.
            let first = unsafe { &*jump.first() };
            // One more where the first only counts.
            let extra = usize::from(first.len == 0);
            // SAFETY: as above.
            let ops = unsafe { std::slice::from_raw_parts(first, jump.count() as usize + extra) };
            self.blocks.park_ops(ops);
        } else {
            // A flush has dropped the jump meanwhile.
            self.blocks.park(rip, self.mode);
        }
    }

    /// Offset in the local APIC's page, when it is enabled and `gpa` lies there.
    fn apic_offset(&self, gpa: Gpa) -> Option<u32> {
        (self.apic.window() == Some(gpa.0 & !0xfff)).then_some((gpa.0 & 0xfff) as u32)
    }
}

/// The alignment of data of `len` bytes (SDM vol. 3, table 6-7). Images of the x87 state are made
/// of words or doublewords, extended numbers need eight bytes. Sixteen bytes are left to the
/// processor; this one checks them, as those of AMD do.
fn alignment(len: usize) -> u64 {
    match len {
        2 | 14 | 94 => 2,
        4 | 6 | 28 | 108 => 4,
        8 | 10 => 8,
        16 => 16,
        _ => 1,
    }
}

/// What a cached translation remembers besides its addresses.
fn marks(page: &RamPage) -> u64 {
    let mark = |set: bool, bit: u64| if set { bit } else { 0 };
    mark(page.global, tlb::GLOBAL) | mark(page.large, tlb::LARGE)
}

/// Reads guest RAM with one instruction where the size allows.
///
/// # Safety
/// 1. `at..at + data.len()` is mapped guest RAM.
pub unsafe fn read_ram(at: u64, data: &mut [u8]) {
    // SAFETY: 1. by the caller.
    unsafe {
        match data.len() {
            1 => data[0] = raw::load::<1>(at) as u8,
            2 => data.copy_from_slice(&(raw::load::<2>(at) as u16).to_le_bytes()),
            4 => data.copy_from_slice(&(raw::load::<4>(at) as u32).to_le_bytes()),
            8 => data.copy_from_slice(&raw::load::<8>(at).to_le_bytes()),
            _ => raw::read_bytes(at, data),
        }
    }
}

/// Writes guest RAM with one instruction where the size allows.
///
/// # Safety
/// 1. `at..at + data.len()` is mapped, writable guest RAM.
pub unsafe fn write_ram(at: u64, data: &[u8]) {
    let mut word = [0; 8];
    if let Some(head) = word.get_mut(..data.len()) {
        head.copy_from_slice(data);
    }
    let word = u64::from_le_bytes(word);
    // SAFETY: 1. by the caller.
    unsafe {
        match data.len() {
            1 => raw::store::<1>(at, word),
            2 => raw::store::<2>(at, word),
            4 => raw::store::<4>(at, word),
            8 => raw::store::<8>(at, word),
            _ => raw::write_bytes(at, data),
        }
    }
}

/// Replaces `N` bytes atomically by what `change` makes of them.
///
/// # Safety
/// 1. `at..at + N` is mapped, writable guest RAM.
#[inline(always)]
unsafe fn exchange<const N: usize>(
    flags: &mut Flags,
    at: u64,
    change: impl Fn(&mut Flags, u64) -> u64,
) {
    // SAFETY: 1. by the caller.
    unsafe {
        let mut old = raw::load::<N>(at);
        loop {
            let mut after = *flags;
            let new = change(&mut after, old);
            let seen = raw::cmpxchg::<N>(at, old, new);
            if seen == old {
                *flags = after;
                return;
            }
            old = seen;
        }
    }
}
