//! Connections as both sides mean them to be.

use super::*;

#[test]
fn a_program_of_the_host_speaks_with_the_guest() {
    let mut bench = Bench::started();
    let mut program = bench.program(52);
    let request = bench.expect(Op::Request);
    let ports = request.ports();
    assert_eq!((ports.0 >= 1 << 30, ports.1), (true, 52));
    assert_eq!(
        (request.header.src_cid, request.header.buf_alloc),
        (2, BUF_ALLOC)
    );
    bench.send(Op::Response, ports, &[]);
    assert_eq!(line(&mut program), format!("OK {}\n", ports.0));
    assert!(bench.driver.line.is_high());
    for round in 0..20u8 {
        program.write_all(&[round; 100]).unwrap();
        let packet = bench.expect(Op::Data);
        assert_eq!((packet.ports(), packet.data), (ports, vec![round; 100]));
        bench.send(Op::Data, ports, &[round; 70]);
        assert_eq!(read(&mut program, 70), [round; 70]);
    }
    // The next one has another port.
    let other = bench.connected(52);
    assert_eq!((other.1.0 != ports.0, other.1.1), (true, 52));
}

#[test]
fn what_comes_right_behind_the_line_is_data() {
    let mut bench = Bench::started();
    let mut program = UnixStream::connect(bench.place.path().join("v")).unwrap();
    program.write_all(b"CONNECT 7\nhello").unwrap();
    let ports = bench.expect(Op::Request).ports();
    bench.expect_nothing();
    bench.send(Op::Response, ports, &[]);
    assert_eq!(bench.expect(Op::Data).data, b"hello");
}

#[test]
fn a_program_of_the_guest_speaks_with_the_host() {
    let mut bench = Bench::started();
    let server = bench.server(1234);
    let mut program = bench.connect(&server, (1234, 9));
    bench.send(Op::Data, (1234, 9), b"from the guest");
    assert_eq!(read(&mut program, 14), b"from the guest");
    program.write_all(b"from the host").unwrap();
    let packet = bench.expect(Op::Data);
    assert_eq!(
        (packet.ports(), &packet.data[..]),
        ((1234, 9), &b"from the host"[..])
    );
}

#[test]
fn who_is_not_there_refuses() {
    let mut bench = Bench::started();
    // Nobody at all, and somebody who has gone.
    drop(bench.server(2));
    for port in [1, 2] {
        bench.send(Op::Request, (port, 9), &[]);
        assert_eq!(bench.expect(Op::Reset).ports(), (port, 9));
    }
    let mut program = bench.program(3);
    let ports = bench.expect(Op::Request).ports();
    bench.send(Op::Reset, ports, &[]);
    assert!(is_ended(&mut program), "without a line");
    bench.expect_nothing();
}

#[test]
fn a_program_that_is_busy_is_waited_for() {
    let mut bench = Bench::started();
    let server = bench.server(5);
    rustix::net::listen(&server, 0).unwrap();
    let first = UnixStream::connect(bench.place.path().join("v_5")).unwrap();
    bench.send(Op::Request, (5, 1), &[]);
    bench.expect_nothing();
    drop(server.accept().unwrap());
    assert_eq!(bench.expect(Op::Response).ports(), (5, 1));
    drop((server, first));
}

#[test]
fn much_goes_both_ways_at_once() {
    let mut bench = Bench::started();
    let (mut program, ports) = bench.connected(1);
    let sent = pattern(1_000_000);
    let (expected, mut there) = (sent.clone(), program.try_clone().unwrap());
    let writer = std::thread::spawn(move || there.write_all(&expected).unwrap());
    let reader = std::thread::spawn(move || read(&mut program, 500_000));
    let up = pattern(500_000);
    let (mut received, mut at, mut allowed) = (Vec::<u8>::new(), 0, BUF_ALLOC as usize);
    while received.len() < sent.len() || at < up.len() {
        let len = (up.len() - at).min(0x4000).min(allowed - at);
        if len > 0 {
            bench.send(Op::Data, ports, &up[at..at + len]);
            at += len;
        }
        let packet = bench.packet();
        allowed = (packet.header.fwd_cnt + packet.header.buf_alloc) as usize;
        received.extend(&packet.data);
        bench.fwd_cnt = received.len() as u32;
        if packet.op() == Some(Op::CreditRequest) {
            bench.send(Op::CreditUpdate, ports, &[]);
        }
    }
    assert!(received == sent && reader.join().unwrap() == up);
    writer.join().unwrap();
}

#[test]
fn each_direction_ends_for_itself() {
    let mut bench = Bench::started();
    // The host first.
    let (mut program, ports) = bench.connected(1);
    program.write_all(b"question").unwrap();
    program.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(bench.expect(Op::Data).data, b"question");
    let end = bench.expect(Op::Shutdown);
    assert_eq!(end.header.flags, SHUTDOWN_SEND);
    bench.send(Op::Data, ports, b"answer");
    bench.shut_down(ports, BOTH);
    assert_eq!(bench.expect(Op::Reset).ports(), ports);
    assert_eq!(read(&mut program, 6), b"answer");
    assert!(is_ended(&mut program));
    // The guest first.
    let (mut program, ports) = bench.connected(1);
    bench.send(Op::Data, ports, b"question");
    bench.shut_down(ports, SHUTDOWN_SEND);
    assert_eq!(read(&mut program, 8), b"question");
    assert!(is_ended(&mut program));
    program.write_all(b"answer").unwrap();
    assert_eq!(bench.expect(Op::Data).data, b"answer");
    drop(program);
    assert_eq!(bench.expect(Op::Shutdown).header.flags, BOTH);
    bench.send(Op::Reset, ports, &[]);
    bench.expect_nothing();
}

#[test]
fn a_program_that_goes_is_a_connection_that_ends_once_all_was_read() {
    let mut bench = Bench::started();
    let (mut program, ports) = bench.connected(1);
    program.write_all(&[7; 6000]).unwrap();
    drop(program);
    let mut len = 0;
    while len < 6000 {
        len += bench.expect(Op::Data).data.len();
    }
    let end = bench.expect(Op::Shutdown);
    assert_eq!((end.ports(), end.header.flags), (ports, BOTH));
    // What was on its way is for nobody, and no fault.
    bench.send(Op::Data, ports, &[1; 100]);
    bench.send(Op::Reset, ports, &[]);
    bench.expect_nothing();
    bench.send(Op::Data, ports, &[1; 100]);
    bench.expect(Op::Reset);
}

#[test]
fn a_guest_that_wants_no_more_is_no_end_for_what_it_sends() {
    let mut bench = Bench::started();
    let (mut program, ports) = bench.connected(1);
    bench.shut_down(ports, SHUTDOWN_RECEIVE);
    assert_eq!(bench.expect(Op::Shutdown).header.flags, SHUTDOWN_SEND);
    let refused = program.write_all(b"for nobody").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::BrokenPipe);
    bench.send(Op::Data, ports, b"still");
    assert_eq!(read(&mut program, 5), b"still");
    drop(program);
    assert_eq!(bench.expect(Op::Shutdown).header.flags, BOTH);
}

#[test]
fn a_program_that_reads_no_more_is_told_to_the_guest() {
    let mut bench = Bench::started();
    let (mut program, ports) = bench.connected(1);
    program.shutdown(std::net::Shutdown::Read).unwrap();
    bench.send(Op::Data, ports, b"for nobody");
    assert_eq!(bench.expect(Op::Shutdown).header.flags, SHUTDOWN_RECEIVE);
    program.write_all(b"still").unwrap();
    assert_eq!(bench.expect(Op::Data).data, b"still");
}

#[test]
fn what_was_sent_before_an_end_still_arrives() {
    let mut bench = Bench::started();
    for end in [Op::Shutdown, Op::Reset] {
        let (mut program, ports) = bench.connected(1);
        let mut sent = 0;
        // As much as the socket takes, and what the device keeps then.
        let mut fill = |bench: &mut Bench| {
            loop {
                bench.send(Op::Data, ports, &[sent as u8; 0x1000]);
                sent += 1;
                bench.send(Op::CreditRequest, ports, &[]);
                let told = bench.expect(Op::CreditUpdate).header.fwd_cnt;
                if sent * 0x1000 - told == 0x8000 {
                    return;
                }
            }
        };
        fill(&mut bench);
        if end == Op::Shutdown {
            bench.shut_down(ports, BOTH);
            bench.expect(Op::Reset);
        } else {
            bench.shut_down(ports, SHUTDOWN_SEND);
            bench.send(Op::Reset, ports, &[]);
        }
        for n in 0..sent {
            assert_eq!(read(&mut program, 0x1000), [n as u8; 0x1000]);
        }
        assert!(is_ended(&mut program));
        bench.expect_nothing();
    }
}

#[test]
fn connections_take_turns() {
    use umbra_virtio::Transport;
    let mut bench = Bench::started();
    let mut all: Vec<_> = (1..=3).map(|port| bench.connected(port)).collect();
    // So that all of them have something from the beginning.
    bench.driver.transport.pause();
    for (program, _) in &mut all {
        program.write_all(&[1; 0x8000]).unwrap();
    }
    bench.driver.transport.resume();
    let order: Vec<_> = (0..24).map(|_| bench.expect(Op::Data).ports().1).collect();
    for round in order.chunks(3) {
        let mut round = round.to_vec();
        round.sort_unstable();
        assert_eq!(round, [1, 2, 3], "{order:?}");
    }
}

#[test]
fn chains_may_be_cut_anywhere() {
    let mut bench = Bench::new();
    bench.start(Features::RINGS);
    let cut = |bench: &Bench, queue: u32, at: u64, lens: [u32; 4], flags: u16| {
        let mut at = at;
        for (index, len) in (0..).zip(lens) {
            let more = if index < 3 { NEXT } else { 0 };
            bench.describe(queue, index, (at, len, flags | more, index + 1));
            at += u64::from(len);
        }
    };
    cut(&bench, RX, RECEIVE, [20, 0, 30, 300], WRITE);
    bench.offer(RX, 0);
    let mut program = bench.program(1);
    bench.driver.wait(|driver| driver.used_in(RX) == 1);
    let request = Header::of(&bench.driver.memory.get(RECEIVE));
    let ports = (request.src_port, request.dst_port);
    for (round, op, data) in [(1, Op::Response, &b""[..]), (2, Op::Data, b"some bytes")] {
        let header = Header {
            len: data.len() as u32,
            ..bench.header(op, ports)
        };
        bench.driver.memory.put(SEND, &header.bytes());
        bench.driver.memory.put(SEND + Header::LEN as u64, data);
        cut(&bench, TX, SEND, [1, 42, 4, 7], 0);
        bench.offer(TX, 0);
        bench.driver.wait(|driver| driver.used_in(TX) == round);
    }
    assert_eq!(line(&mut program), format!("OK {}\n", ports.0));
    assert_eq!(read(&mut program, 10), b"some bytes");
    program.write_all(&pattern(1000)).unwrap();
    for (round, expected) in [(2, &pattern(1000)[..306]), (3, &pattern(1000)[306..612])] {
        bench.offer(RX, 0);
        bench.driver.wait(|driver| driver.used_in(RX) == round);
        let bytes: [u8; 350] = bench.driver.memory.get(RECEIVE);
        assert_eq!(&bytes[Header::LEN..], expected);
    }
}
