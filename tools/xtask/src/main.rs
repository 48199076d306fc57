//! Project tasks: `cargo xtask lint`, `cargo xtask test`, `cargo xtask loom`, `cargo xtask fuzz`,
//! `cargo xtask package`, `cargo xtask semver`, `cargo xtask coverage`, `cargo xtask bench NAME`.

mod bench;
mod coverage;
mod fuzz;
mod lint;
mod loom;
mod mutate;
mod package;
mod places;
mod semver;
mod test;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask TASK
  lint         check that crates depend on lower levels only, and other rules of the house
  test         everything that has to pass: formatting, clippy, lint, all tests
  loom         run the models: every interleaving of small scenes (slots, bus, mmu)
  mutate [RULE…]  break each rule of the generation (and PCI, MSI-X, virtio, virtio-mem), and see who notices
  fuzz [TARGET] [--seconds N]   feed random input to the MMU, the processor, the loaders, virtio
  package [--no-verify]   package every library crate, and build it from its package
  semver [--baseline REV] [--changed]   compare the crates' interfaces with the last release
  coverage     lines of slots, mmu and bus that their own tests reach; at least 95 %
  bench api    start of an API server to its first answer, and resident memory
  bench boot   boot a Debian kernel to power-off, and memory at its peak, beside qemu-system-x86_64 -accel tcg
  bench processor   a program in a guest, beside QEMU's TCG and natively
  bench programs   Python's tests, gzip, xz, gcc and SQLite in a guest, beside QEMU's TCG and natively
  bench io        a guest's disk and network beside QEMU's TCG
  bench vhost     a guest's disk in the monitor, behind its own back end, and behind QEMU's
  bench startup   process start to the guest's end on KVM, and resident memory, beside QEMU's microvm
  bench mmio   round trips to devices on both backends, while devices come and go
  bench invalidate   make MMIO entries invalid, by the generation and by a walk";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["lint"] => lint::run(),
        ["test", rest @ ..] => test::run(rest),
        ["loom"] => loom::run(),
        ["mutate", rules @ ..] => mutate::run(rules),
        ["fuzz", rest @ ..] => fuzz::run(rest),
        ["semver", rest @ ..] => semver::run(rest),
        ["coverage"] => coverage::run(),
        ["package", rest @ ..] => package::run(rest),
        ["bench", name] => bench::run(name),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
