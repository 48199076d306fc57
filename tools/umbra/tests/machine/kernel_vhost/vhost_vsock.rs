//! Sockets, by `/dev/vhost-vsock`.

use std::io::{Read, Write};
use std::thread;
use std::time::Instant;

use umbra_vhost::{Hub, VhostKernel, VhostVsockOptions, nodes};
use umbra_virtio::Features;
use umbra_virtio::testing::Memory;

use super::driver::{Guest, VSOCK_HEADER, has};
use super::machine::{FIRST, lines, machine};
use crate::support::poll::checksum;
use crate::support::sockets;

/// A packet (virtio 1.3, 5.10.6): operation, ports of the guest and of the host, and what it carries.
fn packet(operation: u16, [guest, host]: [u32; 2], data: &[u8], taken: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(u64::from(CID).to_le_bytes());
    packet.extend(2u64.to_le_bytes());
    for word in [guest, host, data.len() as u32] {
        packet.extend(word.to_le_bytes());
    }
    packet.extend(1u16.to_le_bytes());
    packet.extend(operation.to_le_bytes());
    // Flags, room for what comes, how much of it was taken.
    for word in [0, 0x1_0000, taken as u32] {
        packet.extend(u32::to_le_bytes(word));
    }
    packet.extend(data);
    packet
}

fn word(packet: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*packet[at..].first_chunk().unwrap())
}

fn is_operation(operation: u16) -> impl Fn(&[u8]) -> bool {
    move |packet| packet.len() >= VSOCK_HEADER && packet[30..32] == operation.to_le_bytes()
}

const CID: u32 = 4242;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT: u16 = 6;

#[test]
fn connections_go_both_ways_through_the_kernels_vhost_vsock() {
    const BYTES: usize = 20_000;
    if !has(nodes::VSOCK) {
        return;
    }
    let memory = Memory::new();
    let hub = Hub::new(&memory.space).unwrap();
    let options = VhostVsockOptions {
        name: "vsock".into(),
        node: nodes::VSOCK.into(),
        cid: CID.into(),
    };
    let device = VhostKernel::vsock(options.clone(), &hub).unwrap();
    let taken = VhostKernel::vsock(options, &hub).err().unwrap();
    println!("NODES vsock: a second guest: {taken}");
    assert!(taken.to_string().contains("another guest"), "{taken}");
    let mut guest = Guest::start(&memory, device, Features::RINGS);

    // A program of the host's connects.
    let begin = Instant::now();
    let sent: Vec<u8> = (0..BYTES).map(|at| (at / 7) as u8).collect();
    let theirs = sent.clone();
    let program = thread::spawn(move || {
        let mut connection = sockets::connect(CID, 1234).unwrap();
        connection.write_all(&theirs).unwrap();
        let mut answer = [0; 600];
        connection.read_exact(&mut answer).unwrap();
        answer.to_vec()
    });
    let request = guest.receive(is_operation(REQUEST));
    assert_eq!(word(&request, 20), 1234);
    let ports = [1234, word(&request, 16)];
    guest.send(&packet(RESPONSE, ports, &[], 0));
    let mut got: Vec<u8> = Vec::new();
    while got.len() < BYTES {
        let data = guest.receive(is_operation(DATA));
        got.extend(&data[VSOCK_HEADER..]);
        guest.send(&packet(CREDIT, ports, &[], got.len()));
    }
    assert_eq!(got, sent);
    let answer: Vec<u8> = (0..600).map(|at| (at / 3) as u8).collect();
    guest.send(&packet(DATA, ports, &answer, got.len()));
    assert_eq!(program.join().unwrap(), answer);
    // It has closed its end.
    guest.receive(is_operation(SHUTDOWN));
    guest.send(&packet(RESET, ports, &[], got.len()));
    println!(
        "NODES vsock: {BYTES} bytes to the guest, 600 back, in {:?}",
        begin.elapsed()
    );

    // A program of the guest's connects.
    let listener = sockets::listen(4321).unwrap();
    let ports = [77, 4321];
    guest.send(&packet(REQUEST, ports, &[], 0));
    let mut connection = sockets::accept(&listener).unwrap();
    guest.receive(is_operation(RESPONSE));
    guest.send(&packet(DATA, ports, b"from the guest", 0));
    let mut bytes = [0; 14];
    connection.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    connection.write_all(b"from the host").unwrap();
    let data = guest.receive(is_operation(DATA));
    assert_eq!(&data[VSOCK_HEADER..], b"from the host");

    // A driver that begins anew knows no connections, and the host hears of it.
    guest.restart(Features::RINGS);
    let lost = connection.read(&mut bytes);
    println!("NODES vsock: after a reset: {lost:?}");
    assert!(matches!(lost, Ok(0) | Err(_)));
    guest.send(&packet(REQUEST, [78, 4321], &[], 0));
    let _again = sockets::accept(&listener).unwrap();
    assert_eq!(guest.control.state().losses, 0);
}

#[test]
fn a_connection_of_a_machine_goes_through_the_kernels_vhost_vsock() {
    const PORT: u32 = 7000;
    if !has(nodes::VSOCK) {
        return;
    }
    let listener = sockets::listen(PORT).unwrap();
    let vsock = format!("cid={},vhost", CID + 1);
    let machine = machine(&["--vsock", &vsock], &format!("vsock {FIRST} {PORT}"));
    let mut stream = sockets::accept(&listener).unwrap();
    let all = sockets::echo(&mut stream);
    let told = lines(machine);
    println!("NODES a machine's vsock: {told:?}");
    assert_eq!(told[0], format!("vsock cid {}", CID + 1));
    assert_eq!(told[1], format!("echo {:#x}", checksum(&all)));
}
