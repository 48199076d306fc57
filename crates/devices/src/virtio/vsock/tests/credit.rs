//! Who may send how much.

use super::*;

#[test]
fn a_guest_gets_no_more_than_it_has_room_for() {
    let mut bench = Bench::started();
    bench.room = 100;
    let (mut program, ports) = bench.connected(1);
    program.write_all(&pattern(350)).unwrap();
    let mut received = bench.expect(Op::Data).data;
    assert_eq!(received.len(), 100);
    bench.expect(Op::CreditRequest);
    bench.expect_nothing();
    // An answer that gives none is not asked again.
    bench.send(Op::CreditUpdate, ports, &[]);
    bench.expect_nothing();
    bench.fwd_cnt = 60;
    bench.send(Op::CreditUpdate, ports, &[]);
    received.extend(bench.expect(Op::Data).data);
    assert_eq!(received.len(), 160);
    bench.expect(Op::CreditRequest);
    // Any packet says it. More than was sent cannot have been taken, and does not count.
    bench.fwd_cnt = 161;
    bench.room = 100;
    bench.send(Op::Data, ports, b"x");
    bench.expect_nothing();
    bench.room = u32::MAX;
    bench.send(Op::Data, ports, b"x");
    while received.len() < 350 {
        received.extend(bench.expect(Op::Data).data);
    }
    assert_eq!(received, pattern(350));
    assert_eq!(read(&mut program, 2), b"xx");
}

#[test]
fn a_guest_with_no_room_at_all_is_asked_for_some() {
    let mut bench = Bench::started();
    bench.room = 0;
    let (mut program, ports) = bench.connected(1);
    program.write_all(b"hello").unwrap();
    bench.expect(Op::CreditRequest);
    bench.room = 3;
    bench.send(Op::CreditUpdate, ports, &[]);
    assert_eq!(bench.expect(Op::Data).data, b"hel");
}

#[test]
fn a_guest_that_asks_for_room_is_told() {
    let mut bench = Bench::started();
    let (mut program, ports) = bench.connected(1);
    bench.send(Op::Data, ports, &[1; 1000]);
    bench.send(Op::CreditRequest, ports, &[]);
    let update = bench.expect(Op::CreditUpdate).header;
    assert_eq!((update.buf_alloc, update.fwd_cnt), (BUF_ALLOC, 1000));
    assert_eq!(read(&mut program, 1000), [1; 1000]);
}

#[test]
fn a_guest_hears_of_room_before_it_has_none() {
    let mut bench = Bench::started();
    let (mut program, ports) = bench.connected(1);
    for round in 1..10 {
        bench.send(Op::Data, ports, &[1; 0x4000]);
        bench.expect_nothing();
        bench.send(Op::Data, ports, &[1; 0x4000]);
        let update = bench.expect(Op::CreditUpdate).header;
        assert_eq!(update.fwd_cnt, round * 0x8000);
        read(&mut program, 0x8000);
    }
}

#[test]
fn a_guest_that_sends_more_than_it_may_loses_the_connection() {
    let mut bench = Bench::started();
    // At once, in one piece that is no fault of the chain.
    let (mut program, ports) = bench.connected(1);
    bench.send(Op::Data, ports, &vec![1; BUF_ALLOC as usize + 1]);
    assert_eq!(bench.expect(Op::Reset).ports(), ports);
    assert!(is_ended(&mut program), "nothing of it arrives");
    // Bit by bit, where the program does not read.
    let (program, ports) = bench.connected(1);
    let mut len = 0usize;
    loop {
        bench.send(Op::Data, ports, &[1; 0x4000]);
        len += 0x4000;
        if bench.driver.used_in(RX) != bench.seen {
            match bench.packet().op() {
                Some(Op::CreditUpdate) => continue,
                Some(Op::Reset) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(len < 1 << 20, "it is never enough");
    }
    assert!(!bench.driver.needs_reset());
    drop(program);
}

#[test]
fn a_program_that_reads_late_gets_all_and_the_guest_goes_on() {
    let mut bench = Bench::started();
    let (mut program, ports) = bench.connected(1);
    let mut sent = 0u32;
    let mut forwarded = 0;
    // Until there is not room for one more.
    while sent + 0x1000 - forwarded <= BUF_ALLOC {
        bench.send(Op::Data, ports, &[(sent >> 12) as u8; 0x1000]);
        sent += 0x1000;
        bench.send(Op::CreditRequest, ports, &[]);
        forwarded = bench.expect(Op::CreditUpdate).header.fwd_cnt;
    }
    assert_eq!(sent - forwarded, BUF_ALLOC, "all of it is in use");
    for n in 0..sent >> 12 {
        assert_eq!(read(&mut program, 0x1000), [n as u8; 0x1000]);
    }
    let mut told = forwarded;
    while told < sent - BUF_ALLOC / 2 {
        told = bench.expect(Op::CreditUpdate).header.fwd_cnt;
    }
    bench.send(Op::Data, ports, b"more");
    assert_eq!(read(&mut program, 4), b"more");
}
