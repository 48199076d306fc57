//! `--inspect SOCKET`, as `ptdump` uses it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Input, Umbra, image};

/// Reads where no device is, then spins.
const MMIO: [u8; 9] = [
    0xbb, 0x00, 0x00, 0x00, 0xd0, // mov ebx, 0xd0000000
    0x8b, 0x03, // mov eax, [ebx]
    0xeb, 0xfe, // jmp $
];

fn ask(socket: &Path, request: &str) -> String {
    let start = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(30), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_page_tables_of_a_running_machine_are_shown_and_the_socket_goes_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = image::multiboot(directory.path(), &MMIO);
    let socket = directory.path().join("socket");
    let arguments = [
        "run",
        "--backend",
        "soft",
        "--kernel",
        kernel.to_str().unwrap(),
        "--inspect",
        socket.to_str().unwrap(),
    ];
    let umbra = Umbra::new(&arguments, &Input::Empty).start();

    for _ in 0..20 {
        let tables = ask(&socket, "page-tables 0\n");
        assert!(
            tables.contains("generation") && tables.contains("no paging"),
            "{tables}"
        );
    }
    let table = [
        (
            "page-tables 9\n",
            "error: there is no processor 9; the last one is 0",
        ),
        ("page-tables x\n", "error: \"x\" is no number"),
        ("registers\n", "error: \"registers\" is no request"),
    ];
    for (request, refusal) in table {
        let answer = ask(&socket, request);
        assert!(answer.starts_with(refusal), "{answer}");
    }

    umbra.signal(rustix::process::Signal::TERM);
    umbra.finish(Duration::from_secs(30));
    assert!(!socket.exists(), "left behind");
}
