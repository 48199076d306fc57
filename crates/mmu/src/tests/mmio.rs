//! MMIO entries and the generation.

use super::guest::*;
use crate::Kind;

#[test]
fn a_page_of_ram_is_found_where_the_tables_say() {
    let mut m = Machine::new(checked());
    m.map(0x4000_0000, 0x20_0000, PWU);
    let page = m.page(0x4000_0123, READ);
    assert_eq!(page.page, m.host(0x20_0000));
    assert!(!page.write, "clean in the guest's entry");
    assert!(m.page(0x4000_0123, WRITE).write);
    assert!(matches!(
        m.translate(HOLE.0, READ),
        Err(fault) if fault.error.0 == 0
    ));
    m.map(0x4000_1000, HOLE.0, PWU);
    assert!(matches!(m.kind(0x4000_1000, READ), Kind::Mmio { .. }));
    assert!(matches!(m.kind(0x4000_1008, WRITE), Kind::Mmio { .. }));
    assert!(matches!(m.kind(0x4000_1008, WRITE), Kind::Mmio { .. }));
    assert_eq!(m.statistic("mmio_hits"), 1);
    m.audit();
}
