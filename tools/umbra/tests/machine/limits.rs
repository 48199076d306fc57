//! Limits as a stock guest feels them, of devices that have no test of their own.

use std::time::{Duration, Instant};

use umbra_vmm::{Bucket, Limits, PmemSpec, RngSpec, VirtioKind};

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::LINUX_6_1;
use crate::support::shell::Shell;

fn bucket(size: u64, one_time_burst: u64) -> Option<Bucket> {
    Some(Bucket {
        size,
        one_time_burst,
        refill_time: Duration::from_secs(1),
    })
}

fn a_serial_port_drops_what_is_over_its_limit_and_the_guest_goes_on(backend: &str) {
    let Some(shell) = Shell::boot(backend, LINUX_6_1, "quiet", |mut spec| {
        spec.serial_limit = bucket(8 << 10, 32 << 10);
        spec
    }) else {
        return;
    };
    assert_eq!(shell.handle.serial_dropped(), 0);
    shell
        .handle
        .console()
        .send(b"seq 100000 150000 > /dev/ttyS0; sleep 1.5\n")
        .unwrap();
    let begin = Instant::now();
    // What follows the dump is within the limit again, but for what it takes with it: ask until it is heard.
    while !shell.screen.text().contains("still here") {
        assert!(begin.elapsed() < Duration::from_secs(100));
        shell
            .handle
            .console()
            .send(b"echo still  here | tr -s ' '\n")
            .unwrap();
        std::thread::sleep(Duration::from_secs(2));
    }
    assert!(shell.handle.serial_dropped() > 100_000);
    assert!(shell.screen.text().len() < 300_000);
}

fn seconds(shell: &Shell, commands: &str) -> f64 {
    let begin = Instant::now();
    shell.ask(commands);
    begin.elapsed().as_secs_f64()
}

fn entropy_and_flushes_wait_for_their_tokens(backend: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    let Some(shell) = Shell::boot(backend, LINUX_6_1, "", |spec| {
        let limits = Limits {
            bandwidth: bucket(16 << 10, 0),
            operations: None,
        };
        let pmem = PmemSpec {
            limits: Limits {
                bandwidth: None,
                operations: bucket(2, 0),
            },
            ..PmemSpec::new(file.path())
        };
        spec.virtio("rng", VirtioKind::Rng(RngSpec { limits }))
            .virtio("pmem", VirtioKind::Pmem(pmem))
    }) else {
        return;
    };
    let took = seconds(
        &shell,
        "dd if=/dev/hwrng of=/dev/null bs=4096 count=16 iflag=fullblock",
    );
    assert!(took > 2.5, "64 KiB at 16 a second took {took} s");

    let flush = "for n in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=/dev/pmem0 bs=512 count=1 conv=fsync; done";
    let took = seconds(&shell, &format!("{{ {flush}; }} >/dev/null 2>&1"));
    assert!(took > 2.5, "8 flushes at 2 a second took {took} s");
    shell
        .handle
        .pmem("pmem")
        .unwrap()
        .set_limits(Limits::default());
    let fast = seconds(&shell, &format!("{{ {flush}; }} >/dev/null 2>&1"));
    assert!(fast < took, "without a limit {fast} s");
    assert!(shell.handle.pmem("rng").is_none());
    shell.power_off();
}

on_each_stock_backend! {
    a_serial_port_drops_what_is_over_its_limit_and_the_guest_goes_on,
    entropy_and_flushes_wait_for_their_tokens,
}
