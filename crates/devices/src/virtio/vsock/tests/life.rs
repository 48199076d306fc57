//! Pauses, resets, and those who do not answer.

use umbra_virtio::Transport;

use super::*;

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut bench = Bench::started();
    let mut program = bench.program(1);
    let begin = Instant::now();
    let ports = bench.expect(Op::Request).ports();
    assert!(is_ended(&mut program));
    let waited = begin.elapsed();
    assert!(
        waited >= switch::PATIENCE - Duration::from_millis(100),
        "{waited:?}"
    );
    assert_eq!(bench.expect(Op::Reset).ports(), ports);
}

#[test]
fn a_guest_that_was_not_asked_hears_nothing_of_who_has_gone() {
    let mut bench = Bench::new();
    bench.start(Features::RINGS);
    for port in 0..20 {
        drop(bench.program(port));
    }
    std::thread::sleep(Duration::from_millis(20));
    bench.make_room();
    bench.expect_nothing();
    // One that was asked does.
    let program = bench.program(1);
    let ports = bench.expect(Op::Request).ports();
    drop(program);
    assert_eq!(bench.expect(Op::Reset).ports(), ports);
}

#[test]
fn a_program_that_never_takes_its_connection_is_given_up() {
    let mut bench = Bench::started();
    let server = bench.server(5);
    rustix::net::listen(&server, 0).unwrap();
    let first = UnixStream::connect(bench.place.path().join("v_5")).unwrap();
    bench.send(Op::Request, (5, 1), &[]);
    assert_eq!(bench.expect(Op::Reset).ports(), (5, 1));
    drop((server, first));
}

#[test]
fn a_pause_loses_nothing() {
    let mut bench = Bench::started();
    let (mut program, ports) = bench.connected(1);
    for round in 0..10u8 {
        bench.driver.transport.pause();
        program.write_all(&[round; 40]).unwrap();
        let early = bench.program(2);
        bench.driver.transport.resume();
        assert_eq!(bench.expect(Op::Data).data, [round; 40]);
        let asked = bench.expect(Op::Request).ports();
        bench.send(Op::Reset, asked, &[]);
        bench.send(Op::Data, ports, &[round; 30]);
        assert_eq!(read(&mut program, 30), [round; 30]);
        drop(early);
    }
}

#[test]
fn a_pause_is_no_time_to_wait_for_an_answer() {
    let mut bench = Bench::started();
    let mut program = bench.program(1);
    let ports = bench.expect(Op::Request).ports();
    bench.driver.transport.pause();
    std::thread::sleep(switch::PATIENCE + Duration::from_millis(100));
    bench.driver.transport.resume();
    bench.expect_nothing();
    bench.send(Op::Response, ports, &[]);
    assert_eq!(line(&mut program), format!("OK {}\n", ports.0));
}

#[test]
fn a_reset_drops_all_connections_and_the_device_begins_anew() {
    let mut bench = Bench::started();
    let (mut program, ports) = bench.connected(1);
    let mut asked = bench.program(2);
    bench.expect(Op::Request);
    bench.start(Features::RINGS);
    bench.make_room();
    assert!(is_ended(&mut program) && is_ended(&mut asked));
    bench.send(Op::Data, ports, b"old");
    bench.expect(Op::Reset);
    bench.connected(1);
}

#[test]
fn a_device_that_needs_a_reset_has_no_connections() {
    let mut bench = Bench::started();
    let (mut program, _) = bench.connected(1);
    bench.describe(TX, 0, (0, 1, 0, 0));
    bench.offer(TX, 0);
    bench.driver.wait(Driver::needs_reset);
    assert!(is_ended(&mut program));
}

#[test]
fn a_driver_may_leave_queues_out() {
    for left_out in [RX, TX] {
        let mut bench = Bench::new();
        bench.driver.write(0x70, 0);
        assert!(bench.driver.agree(Features::VERSION_1));
        bench.driver.set_up(1 - left_out);
        bench.driver.write(0x70, 15);
        assert_eq!(bench.driver.status(), 15);
        let mut program = bench.program(1);
        match left_out {
            RX => bench.send(Op::Data, (1, 2), b"x"),
            _ => {
                bench.make_room();
                bench.expect(Op::Request);
                bench.expect(Op::Reset);
            }
        }
        if left_out == TX {
            assert!(is_ended(&mut program));
        }
        assert!(!bench.driver.needs_reset());
    }
}
