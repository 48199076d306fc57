//! Rights and page faults: every combination of the bits that decide, against a model written from
//! SDM vol. 3, 4.6 and 4.7.
#![allow(unsafe_code)]

use core::arch::asm;

use super::{Check, claims};
use crate::cpu::{self, CR0_WP, EFER_NXE, cr4, msr};
use crate::page::{self, AT, DATA, USER_CODE, bit};
use crate::trap::{Fault, attempt, vector};
use crate::user::{self, user_jump, user_read, user_write};
use crate::{ensure, needs, same};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Fetch,
}

/// An access, and the registers that it is made with.
#[derive(Clone, Copy, Debug)]
struct Access {
    kind: Kind,
    user: bool,
    /// CR0.WP, EFER.NXE, CR4.SMEP, CR4.SMAP, RFLAGS.AC.
    wp: bool,
    nxe: bool,
    smep: bool,
    smap: bool,
    ac: bool,
}

const KINDS: [Kind; 3] = [Kind::Read, Kind::Write, Kind::Fetch];

/// What the manual says: the error code of the page fault, if there is one. `tables` are the entries
/// from the top down to the one that maps the page.
fn expected(access: Access, tables: &[u64]) -> Option<u64> {
    let Access { kind, user, .. } = access;
    let base = u64::from(kind == Kind::Write) << 1
        | u64::from(user) << 2
        | u64::from(kind == Kind::Fetch && (access.nxe || access.smep)) << 4;
    for entry in tables {
        if entry & bit::P == 0 {
            return Some(base);
        }
        if entry & bit::RESERVED != 0 || entry & bit::NX != 0 && !access.nxe {
            return Some(base | reserved());
        }
    }
    let all = |b: u64| tables.iter().all(|entry| entry & b != 0);
    let any = |b: u64| tables.iter().any(|entry| entry & b != 0);
    let (user_page, writable, no_execute) = (all(bit::US), all(bit::RW), any(bit::NX));
    let allowed = match (user, kind) {
        (true, _) if !user_page => false,
        (true, Kind::Read) => true,
        (true, Kind::Write) => writable,
        (_, Kind::Fetch) => !no_execute && (user || !(user_page && access.smep)),
        (false, _) if user_page && access.smap && !access.ac => false,
        (false, Kind::Read) => true,
        (false, Kind::Write) => writable || !access.wp,
    };
    (!allowed).then_some(base | 1)
}

/// What a reserved bit adds to the error code: that, and that the entry is present. TCG leaves the
/// latter out.
fn reserved() -> u64 {
    if cpu::is_tcg() { 8 } else { 9 }
}

/// Makes an access; returns the fault, if one came.
fn perform(access: Access, at: u64) -> Option<Fault> {
    if access.user {
        let (piece, at): (unsafe extern "C" fn(), _) = match access.kind {
            Kind::Read => (user_read, at + 32),
            Kind::Write => (user_write, at + 32),
            Kind::Fetch => (user_jump, at + USER_CODE),
        };
        let flags = if access.ac { user::AC } else { 0 };
        let end = user::run(piece, at, flags);
        return end.filter(|f| f.vector != vector::DONE);
    }
    let set_ac = |on: bool| unsafe {
        let bits = if on { user::AC } else { 0 };
        asm!("pushfq", "and qword ptr [rsp], {0}", "or [rsp], {1}", "popfq",
             in(reg) !(user::AC as i64), in(reg) bits);
    };
    let fault = attempt(|| unsafe {
        set_ac(access.ac);
        match access.kind {
            Kind::Read => asm!("mov al, [{0}]", in(reg) at + 32, out("al") _),
            Kind::Write => asm!("mov byte ptr [{0}], 0", in(reg) at + 32),
            Kind::Fetch => asm!("call {0}", in(reg) at),
        }
    });
    set_ac(false);
    fault
}

/// Runs `body` with the registers of `access`, and puts the old ones back.
fn with_registers<R>(access: Access, body: impl FnOnce() -> R) -> R {
    let (cr0, cr4_before, efer) = (cpu::cr0(), cpu::cr4(), cpu::rdmsr(msr::EFER));
    let pick = |on: bool, bits: u64| if on { bits } else { 0 };
    cpu::set_cr0(cr0 & !CR0_WP | pick(access.wp, CR0_WP));
    cpu::set_cr4(
        cr4_before & !(cr4::SMEP | cr4::SMAP)
            | pick(access.smep, cr4::SMEP)
            | pick(access.smap, cr4::SMAP),
    );
    cpu::wrmsr(msr::EFER, efer & !EFER_NXE | pick(access.nxe, EFER_NXE));
    let result = body();
    cpu::wrmsr(msr::EFER, efer);
    cpu::set_cr4(cr4_before);
    cpu::set_cr0(cr0);
    result
}

/// Calls `each` for every combination of the control bits that this processor has.
fn for_controls(mut each: impl FnMut(Access) -> Check) -> Check {
    let (smep, smap) = (cpu::has(7, 1, 7), cpu::has(7, 1, 20));
    for n in 0..32u32 {
        let on = |bit: u32| n >> bit & 1 != 0;
        let access = Access {
            kind: Kind::Read,
            user: false,
            wp: on(0),
            nxe: on(1),
            smep: on(2),
            smap: on(3),
            ac: on(4),
        };
        if access.smep && !smep || access.smap && !smap {
            continue;
        }
        with_registers(access, || each(access))?;
    }
    Ok(())
}

/// Compares one access with the model, with nothing remembered of the address.
fn compare(access: Access, levels: &[usize]) -> Check {
    let mut tables = [0; 4];
    for (entry, level) in tables.iter_mut().zip(levels) {
        *entry = page::get(*level);
    }
    let tables = &tables[..levels.len()];
    cpu::invlpg(AT);
    let found = perform(access, AT);
    let wanted = expected(access, tables);
    let seen = found.map(|f| (f.vector, f.error));
    ensure!(
        seen == wanted.map(|error| (vector::PF, error)),
        "{access:?} through {tables:x?}: {seen:x?}, not {wanted:x?}"
    );
    if let Some(fault) = found {
        let offset = fault.cr2.wrapping_sub(AT);
        ensure!(offset <= 32, "CR2 is {:x}", fault.cr2);
    }
    Ok(())
}

/// Every access kind at either level.
fn for_accesses(controls: Access, mut each: impl FnMut(Access) -> Check) -> Check {
    for user in [false, true] {
        for kind in KINDS {
            each(Access {
                kind,
                user,
                ..controls
            })?;
        }
    }
    Ok(())
}

const RIGHTS: [u64; 4] = [0, bit::RW, bit::US, bit::RW | bit::US];

fn every_combination_of_rights_on_a_small_page() -> Check {
    page::prepare();
    for_controls(|controls| {
        for directory in RIGHTS {
            for directory_nx in [0, bit::NX] {
                page::set(
                    2,
                    page::entry(1) as u64 & !0xfff | bit::P | directory | directory_nx,
                );
                for rights in RIGHTS {
                    for more in [bit::P, bit::P | bit::NX, bit::P | bit::RESERVED, 0] {
                        page::set(1, DATA | rights | more);
                        for_accesses(controls, |access| compare(access, &[4, 3, 2, 1]))?;
                    }
                }
            }
        }
        Ok(())
    })
}

fn every_combination_of_rights_on_a_large_page() -> Check {
    page::prepare();
    for_controls(|controls| {
        for upper in RIGHTS {
            page::set(3, page::entry(2) as u64 & !0xfff | bit::P | upper);
            for rights in RIGHTS {
                for more in [bit::P, bit::P | bit::NX, bit::P | bit::RESERVED, 0] {
                    page::set(2, DATA | bit::PS | rights | more);
                    for_accesses(controls, |access| compare(access, &[4, 3, 2]))?;
                }
            }
        }
        Ok(())
    })
}

fn rights_of_every_upper_level_count() -> Check {
    for level in 2..=4 {
        page::prepare();
        let table = page::get(level);
        for_controls(|controls| {
            for rights in RIGHTS {
                for more in [bit::P, bit::P | bit::NX, bit::P | bit::RESERVED, 0] {
                    page::set(level, table & !bit::TABLE | rights | more);
                    for_accesses(controls, |access| compare(access, &[4, 3, 2, 1]))?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn reserved_bits_of_large_pages_and_of_the_top_level_fault() -> Check {
    page::prepare();
    let read = Access {
        kind: Kind::Read,
        user: false,
        wp: true,
        nxe: true,
        smep: false,
        smap: false,
        ac: false,
    };
    let fault = |error| Some((vector::PF, error));
    let code = |f: Option<Fault>| f.map(|f| (f.vector, f.error));
    page::set(2, DATA | bit::PS | bit::TABLE | 1 << 13);
    same!(
        code(perform(read, AT)),
        fault(reserved()),
        "bit 13 of a 2 MiB page"
    );
    page::set(2, DATA | bit::PS | bit::TABLE | 1 << 12);
    same!(
        code(perform(read, AT)),
        None,
        "bit 12 of a 2 MiB page is PAT"
    );
    page::prepare();
    let top = page::get(4);
    page::set(4, top | bit::PS);
    let found = code(perform(read, AT));
    page::set(4, top);
    same!(found, fault(reserved()), "PS at the top");
    page::set(3, bit::PS | bit::TABLE | 1 << 20);
    same!(
        code(perform(read, AT)),
        fault(reserved()),
        "bit 20 of a 1 GiB page"
    );
    if cpu::has(0x8000_0001, 3, 26) {
        page::set(3, bit::PS | bit::TABLE);
        same!(code(perform(read, AT + DATA)), None, "a 1 GiB page");
    }
    page::prepare();
    Ok(())
}

fn accessed_and_dirty_bits_follow_the_access() -> Check {
    page::prepare();
    let controls = Access {
        kind: Kind::Read,
        user: false,
        wp: true,
        nxe: true,
        smep: false,
        smap: false,
        ac: false,
    };
    for_accesses(controls, |access| {
        page::prepare();
        same!(perform(access, AT), None, "the access");
        let dirty = if access.kind == Kind::Write {
            bit::D
        } else {
            0
        };
        same!(
            page::get(1) & (bit::A | bit::D),
            bit::A | dirty,
            access.kind
        );
        for level in 2..=4 {
            same!(page::get(level) & (bit::A | bit::D), bit::A, level);
        }
        Ok(())
    })?;
    page::prepare();
    page::set(1, DATA | bit::P);
    let write = Access {
        kind: Kind::Write,
        ..controls
    };
    ensure!(perform(write, AT).is_some(), "a write to a read-only page");
    same!(
        page::get(1) & bit::D,
        0,
        "a write that faulted leaves D alone"
    );
    page::prepare();
    same!(perform(controls, AT), None, "read");
    same!(perform(write, AT), None, "write");
    same!(page::get(1) & bit::D, bit::D, "a write after a read sets D");
    Ok(())
}

fn a_fault_leaves_no_trace_and_more_rights_need_no_flush() -> Check {
    // 4.10.4.3: a processor that faults drops what it remembered of the address.
    page::prepare();
    page::set(1, DATA | bit::P);
    let write = || attempt(|| unsafe { asm!("mov byte ptr [{0}], 0", in(reg) AT + 32) });
    ensure!(write().is_some(), "read-only");
    unsafe { page::entry(1).write_volatile(DATA | bit::TABLE) }
    ensure!(write().is_none(), "writable now, without INVLPG");
    page::set(1, 0);
    ensure!(write().is_some(), "absent");
    unsafe { page::entry(1).write_volatile(DATA | bit::TABLE) }
    ensure!(write().is_none(), "present now, without INVLPG");
    Ok(())
}

fn invlpg_and_cr3_make_changes_seen() -> Check {
    page::prepare();
    let read = || unsafe { ((AT + 64) as *const u8).read_volatile() };
    unsafe {
        ((DATA + 64) as *mut u8).write_volatile(1);
        ((DATA + 0x1000 + 64) as *mut u8).write_volatile(2);
    }
    same!(read(), 1, "the first page");
    page::set(1, (DATA + 0x1000) | bit::TABLE);
    same!(read(), 2, "after INVLPG");
    unsafe { page::entry(1).write_volatile(DATA | bit::TABLE) }
    cpu::set_cr3(cpu::cr3());
    same!(read(), 1, "after MOV to CR3");
    // A page of 2 MiB is flushed by any address in it.
    page::set(2, (DATA + (2 << 20)) | bit::PS | bit::TABLE);
    unsafe { ((DATA + (2 << 20) + 64) as *mut u8).write_volatile(3) };
    same!(read(), 3, "a large page");
    page::prepare();
    cpu::invlpg(AT + 0x1f_f000);
    same!(read(), 1, "a small one again");
    Ok(())
}

fn an_access_across_pages_faults_at_the_second() -> Check {
    page::prepare();
    let end = AT + 0xffc;
    let found = attempt(|| unsafe { asm!("mov {1}, [{0}]", in(reg) end, out(reg) _) });
    let seen = found.map(|f| (f.vector, f.error, f.cr2));
    same!(seen, Some((vector::PF, 0, AT + 0x1000)), "a read");
    unsafe { ((DATA + 0xffc) as *mut u32).write_volatile(0x1234_5678) };
    let found = attempt(|| unsafe { asm!("mov qword ptr [{0}], 0", in(reg) end) });
    same!(
        found.map(|f| (f.error, f.cr2)),
        Some((2, AT + 0x1000)),
        "a write"
    );
    let kept = unsafe { ((DATA + 0xffc) as *const u32).read_volatile() };
    same!(kept, 0x1234_5678, "what the write left of the first page");
    Ok(())
}

fn global_pages_survive_cr3_and_not_cr4_pge() -> Check {
    needs!(cpu::has(1, 3, 13), "no global pages");
    const PGE: u64 = 1 << 7;
    page::prepare();
    let cr4_before = cpu::cr4();
    cpu::set_cr4(cr4_before | PGE);
    page::set(1, DATA | bit::TABLE | bit::G);
    let read = || unsafe { ((AT + 64) as *const u8).read_volatile() };
    unsafe {
        ((DATA + 64) as *mut u8).write_volatile(1);
        ((DATA + 0x1000 + 64) as *mut u8).write_volatile(2);
    }
    let _remembered = read();
    unsafe { page::entry(1).write_volatile((DATA + 0x1000) | bit::TABLE) }
    cpu::set_cr4(cr4_before);
    same!(read(), 2, "after CR4.PGE was cleared");
    page::prepare();
    Ok(())
}

claims! {
    every_combination_of_rights_on_a_small_page: "SDM vol. 3, 4.6 and 4.7",
    every_combination_of_rights_on_a_large_page: "SDM vol. 3, 4.6 and 4.7",
    rights_of_every_upper_level_count: "SDM vol. 3, 4.6 and 4.7",
    reserved_bits_of_large_pages_and_of_the_top_level_fault: "SDM vol. 3, 4.5 and 4.7",
    accessed_and_dirty_bits_follow_the_access: "SDM vol. 3, 4.8",
    a_fault_leaves_no_trace_and_more_rights_need_no_flush: "SDM vol. 3, 4.10.4.3",
    invlpg_and_cr3_make_changes_seen: "SDM vol. 3, 4.10.4.1",
    an_access_across_pages_faults_at_the_second: "SDM vol. 3, 4.7",
    global_pages_survive_cr3_and_not_cr4_pge: "SDM vol. 3, 4.10.2.4",
}
