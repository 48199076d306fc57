//! Who may do what: WP, SMEP, SMAP, NX, protection keys, and rights over several levels (R35).

use umbra_x86::{PageFaultError as E, cr0, cr4, pte};

use super::guest::*;
use crate::Access;

const AT: u64 = 0x4000_0000;
const TARGET: u64 = 0x60_0000;
const P: u32 = E::PRESENT;
const W: u32 = E::WRITE;
const U: u32 = E::USER;
const F: u32 = E::FETCH;

fn ac(access: Access) -> Access {
    Access { ac: true, ..access }
}

/// Asks twice, so that both the walk and the shadow answer.
fn check(m: &mut Machine, access: Access, error: Option<u32>, what: &str) {
    for _ in 0..2 {
        match m.translate(AT, access) {
            Ok(_) => assert_eq!(error, None, "{what}: {access:?}"),
            Err(fault) => assert_eq!(Some(fault.error.0), error, "{what}: {access:?}"),
        }
    }
}

#[test]
fn the_table_of_rights() {
    // flags, CR0.WP, CR4 bits, access, error
    let ro_user = pte::P | pte::US;
    let rw_kernel = pte::P | pte::RW;
    let cases = [
        (PWU, true, 0, user(WRITE), None),
        (PWU, true, 0, user(FETCH), None),
        (rw_kernel, true, 0, user(READ), Some(P | U)),
        (rw_kernel, true, 0, user(WRITE), Some(P | U | W)),
        (rw_kernel, true, 0, WRITE, None),
        (ro_user, true, 0, user(READ), None),
        (ro_user, true, 0, user(WRITE), Some(P | U | W)),
        (ro_user, false, 0, user(WRITE), Some(P | U | W)),
        (ro_user, true, 0, WRITE, Some(P | W)),
        (ro_user, false, 0, WRITE, None),
        (PWU | pte::XD, true, 0, user(FETCH), Some(P | U | F)),
        (PWU | pte::XD, true, 0, FETCH, Some(P | F)),
        (PWU | pte::XD, true, 0, user(READ), None),
        (PWU, true, 0, FETCH, None),
        (PWU, true, cr4::SMEP, FETCH, Some(P | F)),
        (PWU, true, cr4::SMEP, user(FETCH), None),
        (rw_kernel, true, cr4::SMEP, FETCH, None),
        (PWU, true, cr4::SMAP, READ, Some(P)),
        (PWU, true, cr4::SMAP, WRITE, Some(P | W)),
        (PWU, true, cr4::SMAP, ac(READ), None),
        (PWU, true, cr4::SMAP, ac(WRITE), None),
        (ro_user, false, cr4::SMAP, WRITE, Some(P | W)),
        (ro_user, false, cr4::SMAP, ac(WRITE), None),
        (PWU, true, cr4::SMAP, FETCH, None),
        (rw_kernel, true, cr4::SMAP, WRITE, None),
        (PWU, true, cr4::SMAP, user(READ), None),
    ];
    for target in [TARGET, HOLE.0] {
        for (flags, wp, bits, access, error) in cases {
            let mut m = Machine::new(checked());
            m.map(AT, target, flags);
            m.regs.cr4 |= bits;
            if !wp {
                m.regs.cr0 &= !cr0::WP;
            }
            m.load_regs();
            let what = format!("{target:#x} {flags:#x} wp {wp} cr4 {bits:#x}");
            check(&mut m, access, error, &what);
            m.audit();
        }
    }
}

#[test]
fn one_shadow_serves_all_privileges_and_control_bits() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, pte::P | pte::US);
    m.page(AT, user(READ));
    check(&mut m, WRITE, Some(P | W), "WP");
    m.regs.cr0 &= !cr0::WP;
    m.load_regs();
    check(&mut m, WRITE, None, "no WP");
    let page = m.page(AT, READ);
    assert!(page.write, "a supervisor may write");
    let page = m.page(AT, user(READ));
    assert!(!page.write, "a user may not");
    m.regs.cr0 |= cr0::WP;
    m.load_regs();
    check(&mut m, WRITE, Some(P | W), "WP again");
}

#[test]
fn protection_keys() {
    // AD, WD for the page's key; WP; access; error
    let cases = [
        (true, false, true, user(READ), Some(P | U | E::PKEY)),
        (true, false, true, READ, Some(P | E::PKEY)),
        (true, false, true, user(FETCH), None),
        (false, true, true, user(READ), None),
        (false, true, true, user(WRITE), Some(P | U | W | E::PKEY)),
        (false, true, true, WRITE, Some(P | W | E::PKEY)),
        (false, true, false, WRITE, None),
        (false, true, false, user(WRITE), Some(P | U | W | E::PKEY)),
    ];
    for target in [TARGET, HOLE.0] {
        for key in [0u32, 5, 15] {
            for (ad, wd, wp, access, error) in cases {
                let mut m = Machine::new(checked());
                m.map(AT, target, PWU | u64::from(key) << pte::PKEY_SHIFT);
                m.translate(AT, user(WRITE)).unwrap();
                m.regs.cr4 |= cr4::PKE;
                m.regs.pkru = (u32::from(ad) | u32::from(wd) << 1) << (2 * key);
                if !wp {
                    m.regs.cr0 &= !cr0::WP;
                }
                m.load_regs();
                let what = format!("{target:#x} key {key} ad {ad} wd {wd} wp {wp}");
                check(&mut m, access, error, &what);
            }
        }
    }
}

#[test]
fn keys_of_supervisor_pages_are_ignored() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, pte::P | pte::RW | 3 << pte::PKEY_SHIFT);
    m.regs.cr4 |= cr4::PKE;
    m.regs.pkru = u32::MAX;
    m.load_regs();
    check(&mut m, WRITE, None, "supervisor page");
}

#[test]
fn r35_a_table_reached_by_two_ways_has_the_rights_of_each() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, PWU);
    // The same leaf table below a directory entry that takes the write right away.
    let table = {
        let at = m.entry_at(AT, 2);
        m.load(at) & pte::FRAME
    };
    let other = AT + 0x20_0000;
    let at = m.entry_at(other, 2);
    m.store(at, table | pte::P | pte::US);
    // … and one that takes the user right away on a higher level.
    let third = AT + (1 << 30);
    m.map(third, 0, 0);
    let (up, directory) = (m.entry_at(third, 3), m.entry_at(third, 2));
    m.store(directory, table | PWU);
    m.store(up, m.load(up) & !pte::US);

    // What one way put into the shadow must not answer for another: each comes after each.
    for _ in 0..2 {
        assert!(m.page(AT, user(WRITE)).write);
        assert_eq!(m.error(other, user(WRITE)), P | U | W);
        assert!(!m.page(other, user(READ)).write);
        assert!(m.page(AT, user(WRITE)).write);
        assert_eq!(m.error(third, user(READ)), P | U);
        assert!(m.page(third, WRITE).write);
    }
    m.audit();
}
