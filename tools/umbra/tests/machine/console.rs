//! A stock guest whose console is a virtio console, and ports by which programs of host and guest speak.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use umbra_vmm::{ConsoleSpec, PortEnd, PortSpec, VirtioKind};

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{Guest, LINUX_6_1};
use crate::support::shell::Shell;
use crate::support::{Terminal, Umbra};

const LIMIT: Duration = Duration::from_secs(120);
/// What goes each way.
const BYTES: usize = 4 << 20;

/// Types a line at a terminal.
fn enter(terminal: &Terminal, line: &str) {
    terminal.press(line.as_bytes());
    terminal.press(b"\n");
}

fn a_terminal_is_the_guests_console_and_has_a_size(backend: &str) {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let arguments = [
        "run",
        "--kernel",
        guest.kernel(),
        "--initrd",
        guest.initrd(),
        "--backend",
        backend,
        "--console",
        "stdio",
        "--cmdline",
        "console=ttyS0 console=hvc0 panic=-1",
    ];
    let terminal = Terminal::open();
    terminal.resize(90, 30);
    let running = Umbra::new(&arguments, &terminal.input()).start();
    terminal.wait_until_raw();
    // What is typed before the guest takes input waits.
    enter(&terminal, "echo \"shell: $(tty) size: $(stty size)\"");
    running.wait_for("shell: /dev/hvc0 size: 30 90\r", LIMIT);

    terminal.resize(132, 50);
    running.signal(Signal::WINCH);
    enter(
        &terminal,
        "until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo resized: $(stty size)",
    );
    running.wait_for("resized: 50 132\r", LIMIT);
    // What the kernel says would come in the middle of a line: it goes to both consoles.
    enter(
        &terminal,
        "dmesg -n 1; seq 20000; echo complaints: $(dmesg | grep -ciE 'virtio.*(error|fail)')",
    );
    running.wait_for("19999\r\n20000\r\ncomplaints: 0\r", LIMIT);
    enter(&terminal, "poweroff -f");
    let ended = running.finish(LIMIT);
    assert_eq!((ended.status, &*ended.stderr), (Some(0), ""), "{ended}");
    let numbers = ended
        .stdout
        .split("\r\n")
        .filter_map(|line| line.parse().ok());
    let numbers: Vec<u32> = numbers.filter(|number| *number > 0).collect();
    let wrong = numbers.iter().zip(1..).find(|(number, n)| *number != n);
    assert_eq!((wrong, numbers.len()), (None, 20000), "nothing is lost");
    assert!(ended.stdout.contains("reboot: Power down"), "{ended}");
    assert!(terminal.is_unchanged());
}

/// The checksum of bytes as the guest prints it.
fn checksum(bytes: &[u8]) -> String {
    let mut command = Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    command.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = command.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..32].to_owned()
}

fn pattern() -> Vec<u8> {
    let words = (0..BYTES as u64 / 8).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

fn programs_speak_by_ports_with_names(backend: &str) {
    let place = tempfile::tempdir().unwrap();
    let (socket, file) = (place.path().join("socket"), place.path().join("log"));
    let port = |name: &str, end| PortSpec {
        name: Some(name.into()),
        end,
    };
    let ports = vec![
        port("org.test.data", PortEnd::Socket(socket.clone())),
        port("log", PortEnd::File(file.clone())),
    ];
    let shell = Shell::boot(backend, LINUX_6_1, "", |spec| {
        let kind = VirtioKind::Console(ConsoleSpec { ports });
        spec.virtio("ports", kind)
    });
    let Some(shell) = shell else { return };
    // What udev would make a link of.
    let find = |name: &str| {
        let names = shell.ask(&format!(
            "grep -lx {name} /sys/class/virtio-ports/*/name | cut -d/ -f5"
        ));
        format!("/dev/{names}")
    };
    let (data, log) = (find("org.test.data"), find("log"));
    assert_ne!(data, log);

    shell.ask(&format!("echo for the log > {log}"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "for the log\n");

    // To the guest, by a client that has gone when the guest begins to read.
    let bytes = pattern();
    let sent = bytes.clone();
    let path = socket.clone();
    let client = std::thread::spawn(move || {
        UnixStream::connect(path).unwrap().write_all(&sent).unwrap();
    });
    let sum = shell.ask(&format!("head -c {BYTES} {data} | md5sum"));
    client.join().unwrap();
    assert_eq!(sum.split(' ').next(), Some(&*checksum(&bytes)));

    // From the guest, to another client, who takes his time.
    let mut client = UnixStream::connect(&socket).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        let mut bytes = vec![0; BYTES];
        client.read_exact(&mut bytes).unwrap();
        (bytes, client)
    });
    let sum = shell.ask(&format!(
        "dd if=/dev/urandom of=/r bs=1M count=4 2> /dev/null; cat /r > {data}; md5sum < /r"
    ));
    let (received, mut client) = reader.join().unwrap();
    assert_eq!(sum.split(' ').next(), Some(&*checksum(&received)));

    // A question and its answer, and what is left when the client is no more.
    client.write_all(b"what is your name?\n").unwrap();
    let answer = format!("exec 3<>{data}; read line <&3; echo $line umbra >&3; exec 3>&-");
    shell.ask(&answer);
    let mut bytes = [0; 25];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"what is your name? umbra\n");
    drop(client);
    assert_eq!(shell.ask("dmesg | grep -ciE 'virtio.*(error|fail)'"), "0");
    shell.power_off();
    assert!(!socket.exists(), "it goes with the machine");
}

on_each_stock_backend! {
    a_terminal_is_the_guests_console_and_has_a_size,
    programs_speak_by_ports_with_names,
}
