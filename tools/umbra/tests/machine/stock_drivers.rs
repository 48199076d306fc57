//! Virtio devices, driven by a stock Debian kernel with the modules of its own package.

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{LINUX_6_1, LINUX_6_12, LINUX_686};
use crate::support::stock::{answer, run};

/// Bytes from `/dev/hwrng`, twice; the interrupts of the device; and that nothing is wrong.
const ENTROPY: &str = r#"
echo "source: $(cat /sys/class/misc/hw_random/rng_current)"
for n in 1 2; do echo "sum$n: $(dd if=/dev/hwrng bs=4096 count=64 iflag=fullblock 2>/dev/null | sha256sum)"; done
echo "size: $(dd if=/dev/hwrng bs=65536 count=4 iflag=fullblock 2>/dev/null | wc -c)"
echo "interrupts: $(awk '/virtio/ { n += $2 + $3 } END { print n + 0 }' /proc/interrupts)"
echo "complaints: $(dmesg | grep -ciE 'virtio.*(error|fail|wrong|broken)')"
"#;

fn gives_entropy(backend: &str, package: &str, more: &[&str]) {
    let arguments = [&["--rng"], more].concat();
    let Some(ended) = run(backend, package, &arguments, ENTROPY) else {
        return;
    };
    assert_eq!(answer(&ended, "source: "), "virtio_rng.0", "{ended}");
    let (first, second) = (answer(&ended, "sum1: "), answer(&ended, "sum2: "));
    assert!(first != second && first.len() == second.len(), "{ended}");
    assert_eq!(answer(&ended, "size: "), "262144");
    let interrupts: u64 = answer(&ended, "interrupts: ").parse().unwrap();
    assert!(interrupts >= 8, "{ended}");
    assert_eq!(answer(&ended, "complaints: "), "0", "{ended}");
}

fn linux_6_1_takes_entropy(backend: &str) {
    gives_entropy(backend, LINUX_6_1, &[]);
}

fn linux_6_12_takes_entropy(backend: &str) {
    gives_entropy(backend, LINUX_6_12, &[]);
}

fn linux_686_takes_entropy(backend: &str) {
    gives_entropy(backend, LINUX_686, &[]);
}

fn linux_6_1_takes_entropy_by_pci(backend: &str) {
    gives_entropy(backend, LINUX_6_1, &["--pci"]);
}

fn linux_6_12_takes_entropy_by_pci(backend: &str) {
    gives_entropy(backend, LINUX_6_12, &["--pci", "--cpus", "2"]);
}

fn linux_686_takes_entropy_by_pci(backend: &str) {
    gives_entropy(backend, LINUX_686, &["--pci"]);
}

on_each_stock_backend! {
    linux_6_1_takes_entropy,
    linux_6_12_takes_entropy,
    linux_686_takes_entropy,
    linux_6_1_takes_entropy_by_pci,
    linux_6_12_takes_entropy_by_pci,
    linux_686_takes_entropy_by_pci,
}
