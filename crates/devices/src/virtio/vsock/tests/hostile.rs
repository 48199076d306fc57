//! Packets that make no sense, and chains.

use umbra_virtio::testing::{RAM, ROM};

use super::*;

#[test]
fn what_belongs_to_no_connection_is_reset() {
    let mut bench = Bench::started();
    let base = bench.header(Op::Data, (5, 6));
    let op = |op: u16| Header { op, ..base };
    let table = [
        ("no connection", base),
        ("no operation", op(0)),
        ("no such operation", op(8)),
        ("the last of all", op(u16::MAX)),
        ("an answer to nothing", op(Op::Response.number())),
        ("the end of nothing", op(Op::Shutdown.number())),
        ("room for nothing", op(Op::CreditUpdate.number())),
        ("a question for nothing", op(Op::CreditRequest.number())),
    ];
    for (what, header) in table {
        bench.send_header(&header, &[]);
        let reset = bench.expect(Op::Reset);
        assert_eq!((reset.header.src_cid, reset.ports()), (2, (5, 6)), "{what}");
        assert_eq!(reset.header.len, 0, "{what}");
    }
    bench.send(Op::Reset, (5, 6), &[]);
    bench.expect_nothing();
}

#[test]
fn requests_from_elsewhere_to_elsewhere_or_of_another_type_are_reset() {
    let mut bench = Bench::started();
    let _server = bench.server(5);
    let request = bench.header(Op::Request, (5, 6));
    let table = [
        Header {
            dst_cid: 4,
            ..request
        },
        Header {
            dst_cid: 2 | 1 << 32,
            ..request
        },
        Header {
            src_cid: 4,
            ..request
        },
        Header {
            src_cid: u64::MAX,
            ..request
        },
    ];
    for header in table {
        bench.send_header(&header, &[]);
        let reset = bench.expect(Op::Reset).header;
        assert_eq!((reset.src_cid, reset.dst_cid), (header.dst_cid, CID));
    }
    // SEQPACKET and nonsense: the answer has that type, too.
    for kind in [0, 2, 77] {
        bench.send_header(&Header { kind, ..request }, &[]);
        let reset = bench.packet().header;
        assert_eq!((reset.kind, reset.op), (kind, Op::Reset.number()));
    }
}

#[test]
fn a_connection_ends_with_a_packet_that_makes_no_sense_for_it() {
    let mut bench = Bench::started();
    type Break = fn(&Bench, (u32, u32)) -> Header;
    let table: [(&str, Break); 4] = [
        ("again", |b, ports| b.header(Op::Request, ports)),
        ("answered twice", |b, ports| b.header(Op::Response, ports)),
        ("no operation", |b, ports| Header {
            op: 99,
            ..b.header(Op::Data, ports)
        }),
        ("not asked for", |b, ports| b.header(Op::Response, ports)),
    ];
    for (what, header) in table {
        let (mut program, ports) = bench.connected(1);
        bench.send_header(&header(&bench, ports), &[]);
        assert_eq!(bench.expect(Op::Reset).ports(), ports, "{what}");
        assert!(is_ended(&mut program), "{what}");
    }
    // Data behind the end of data, and before the beginning.
    let (_program, ports) = bench.connected(1);
    bench.shut_down(ports, SHUTDOWN_SEND);
    bench.send(Op::Data, ports, b"x");
    bench.expect(Op::Reset);
    let _program = bench.program(1);
    let ports = bench.expect(Op::Request).ports();
    bench.send(Op::Data, ports, b"x");
    bench.expect(Op::Reset);
    // Others live on.
    bench.connected(1);
}

#[test]
fn an_answer_cannot_come_before_the_question() {
    let mut bench = Bench::new();
    bench.start(Features::RINGS);
    // There is no room for the request.
    let mut program = bench.program(1);
    std::thread::sleep(Duration::from_millis(20));
    bench.send(Op::Response, (1 << 30, 1), &[]);
    assert!(is_ended(&mut program));
}

#[test]
fn a_driver_that_breaks_the_rules_needs_a_reset_and_gets_one() {
    type Break = fn(&mut Bench);
    fn packet(bench: &mut Bench, len: u32, chain: u32) {
        let header = Header {
            len,
            ..bench.header(Op::Data, (1, 2))
        };
        bench.driver.memory.put(SEND, &header.bytes());
        bench.describe(TX, 0, (SEND, chain, 0, 0));
        bench.offer(TX, 0);
    }
    fn refused(bench: &mut Bench, buffer: (u64, u32, u16, u16)) {
        bench.describe(RX, 0, buffer);
        bench.offer(RX, 0);
        bench.offer_packet(&bench.header(Op::Data, (1, 2)), &[]);
    }
    let table: [(&str, Break); 10] = [
        ("no whole header", |b| packet(b, 0, 43)),
        ("nothing at all", |b| packet(b, 0, 0)),
        ("less than it says", |b| packet(b, 100, 44 + 99)),
        ("much less than it says", |b| packet(b, u32::MAX, 0x1000)),
        ("out of reach", |b| {
            b.describe(TX, 0, (RAM - 10, 44, 0, 0));
            b.offer(TX, 0);
        }),
        ("far out of reach", |b| {
            b.describe(TX, 0, (u64::MAX - 10, 44, 0, 0));
            b.offer(TX, 0);
        }),
        ("no room for a header", |b| {
            refused(b, (RECEIVE, 43, WRITE, 0))
        }),
        ("no room to write", |b| refused(b, (RECEIVE, 0x1000, 0, 0))),
        ("room that is read-only", |b| {
            refused(b, (ROM, 0x1000, WRITE, 0))
        }),
        ("room that is not there", |b| {
            refused(b, (RAM - 4, 0x1000, WRITE, 0))
        }),
    ];
    for (what, break_it) in table {
        let mut bench = Bench::new();
        bench.start(Features::RINGS);
        break_it(&mut bench);
        let begin = Instant::now();
        while !bench.driver.needs_reset() {
            assert!(begin.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::yield_now();
        }
        bench.start(Features::NONE);
        bench.make_room();
        let (mut program, ports) = bench.connected(1);
        bench.send(Op::Data, ports, b"again");
        assert_eq!(read(&mut program, 5), b"again", "{what}");
    }
}

#[test]
fn room_for_a_header_alone_takes_no_data() {
    let mut bench = Bench::new();
    bench.start(Features::RINGS);
    let mut program = bench.program(1);
    for head in 0..2 {
        bench.describe(RX, head, (RECEIVE, Header::LEN as u32, WRITE, 0));
    }
    bench.offer(RX, 0);
    bench.driver.wait(|driver| driver.used_in(RX) == 1);
    let request = Header::of(&bench.driver.memory.get(RECEIVE));
    bench.send(Op::Response, (request.src_port, request.dst_port), &[]);
    program.write_all(b"x").unwrap();
    bench.offer(RX, 1);
    bench.driver.wait(Driver::needs_reset);
}

#[test]
fn a_guest_that_takes_no_answers_is_not_heard_any_more() {
    let mut bench = Bench::new();
    bench.start(Features::RINGS);
    let header = bench.header(Op::Data, (1, 2));
    bench.send_all(&[header; 1024]);
    for _ in 0..3 {
        bench.offer_packet(&header, &[]);
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.driver.used_in(TX), 1024);
    bench.make_room();
    for _ in 0..1027 {
        bench.expect(Op::Reset);
    }
    assert_eq!(bench.driver.used_in(TX), 1027);
    bench.expect_nothing();
}

#[test]
fn connections_without_number_are_refused_and_those_that_end_make_room() {
    let mut bench = Bench::started();
    let server = bench.server(5);
    rustix::net::listen(&server, 0).unwrap();
    let first = UnixStream::connect(bench.place.path().join("v_5")).unwrap();
    // The server is busy: all of them wait.
    let limit = switch::CONNECTIONS as u32;
    let request = |guest| bench.header(Op::Request, (5, guest));
    let requests: Vec<_> = (0..limit).map(request).collect();
    bench.send_all(&requests);
    bench.expect_nothing();
    bench.send(Op::Request, (5, limit), &[]);
    assert_eq!(bench.expect(Op::Reset).ports(), (5, limit));
    // A program of the host has no place either.
    let _program = bench.program(1);
    bench.expect_nothing();
    bench.send(Op::Reset, (5, 0), &[]);
    bench.expect(Op::Request);
    drop((server, first));
}

#[test]
fn a_driver_without_streams_has_no_connections() {
    let mut bench = Bench::new();
    bench.start(feature::NO_IMPLIED_STREAM);
    bench.make_room();
    let _server = bench.server(5);
    bench.send(Op::Request, (5, 6), &[]);
    bench.expect(Op::Reset);
    let mut program = bench.program(1);
    assert!(is_ended(&mut program));
    // Whoever does not know that bit means streams.
    bench.start(Features::NONE);
    bench.make_room();
    bench.connected(1);
}
