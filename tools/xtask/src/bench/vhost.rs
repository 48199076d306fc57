//! A guest's disk in the monitor, the same behind a back end of its own, and QEMU's behind its storage daemon: the
//! same kernel, disk, and jobs, one after the other.
//!
//! The jobs are those of fio's `--direct=1 --ioengine=libaio` with `--rw=randread --bs=4k`, `--iodepth=16`,
//! `--rw=read --bs=1M`, and `--rw=randwrite --bs=4k --fdatasync=1`; an initramfs has no fio, so that
//! [load.c](io/load.c) does them. In the end each guest adds up all of the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::figures::{Figure, Figures, Ratios, run_apart, said};
use super::io::{DISK, KERNEL, PROGRAM, WORD, write_disk};
use super::program::Program;
use super::{fetch, qemu, release_build};

/// Runs of each side; they take turns, and the median counts.
const ROUNDS: usize = 5;
const DAEMON: &str = "qemu-storage-daemon";

/// What the guest does. The disk is the one of that size; QEMU's serial port loses some of what comes before the
/// kernel has it. Behind QEMU 7.2's daemon a guest finds a cache that writes through, and neither it nor the daemon
/// makes anything durable; told that there is one, both do.
const COMMANDS: &str = "\
# some of this may be lost, some of this may be lost
disk=/dev/vda; load=/dev/vdb
[ $(cat /sys/block/vda/size) = SECTORS ] || { disk=/dev/vdb; load=/dev/vda; }
cat $load > /tmp/load; chmod +x /tmp/load
/tmp/load sequential $disk 3
/tmp/load random $disk 1 3
/tmp/load random $disk 16 3
echo write back > /sys/block/${disk#/dev/}/cache_type
/tmp/load write $disk 3
/tmp/load sum $disk
poweroff -f
";

/// What is measured.
const FIGURES: [Figure; 4] = [
    ("sequential", "1 MiB reads", "MB/s"),
    ("random-1", "4 KiB random reads, one at a time", "1/s"),
    ("random-16", "4 KiB random reads, 16 at a time", "1/s"),
    ("write", "4 KiB random writes, each made durable", "1/s"),
];

/// What it may cost that a disk is another process's.
const APART: f64 = 0.8;
/// The same where two more threads have to be woken for each request, and nothing else goes on meanwhile.
const APART_ALONE: f64 = 0.7;
/// The least beside QEMU, as in `bench io`.
const BESIDE: f64 = 1.5;
/// The same for what waits for the host's disk most of the time.
const BESIDE_DURABLE: f64 = 0.8;

/// What is promised of a figure: beside the disk in the monitor, and beside QEMU.
fn targets(word: &str) -> (f64, f64) {
    match word {
        "random-1" => (APART_ALONE, BESIDE),
        "write" => (APART, BESIDE_DURABLE),
        _ => (APART, BESIDE),
    }
}

/// Runs the benchmark.
pub fn run() -> Result<()> {
    let (umbra, qemu) = (release_build()?, qemu()?);
    if Command::new(DAEMON).arg("--version").output().is_err() {
        bail!("{DAEMON} is missing: apt-get install qemu-system-common");
    }
    let (kernel, initrd) = fetch(&umbra, KERNEL)?;
    let place = tempfile::tempdir()?;
    let bench = Bench::prepare(place.path(), (kernel, initrd))?;
    let sides = [
        ("in the monitor", bench.inside(&umbra)),
        ("umbra backend", bench.apart(&umbra)),
        (DAEMON, bench.theirs(qemu)),
    ];
    let mut figures = [(); 3].map(|()| Figures::new(&FIGURES));
    for round in 1..=ROUNDS {
        println!("round {round}");
        for ((name, script), figures) in sides.iter().zip(&mut figures) {
            let text = run_apart(script)?;
            let sum = said(&text, "sum").and_then(|sum| sum.parse::<u64>().ok());
            if sum != Some(bench.sum) {
                bail!(
                    "{name}: the disk adds up to {sum:?}, not {}: {text}",
                    bench.sum
                );
            }
            figures.add(name, &text)?;
        }
    }
    ratios(&figures).print();
    Ok(())
}

fn ratios([inside, apart, theirs]: &[Figures; 3]) -> Ratios {
    let mut ratios = Ratios::new("vhost");
    for (word, name, unit) in FIGURES {
        let [inside, apart, theirs] = [inside, apart, theirs].map(|side| side.median(word));
        println!(
            "{name}: in the monitor {inside:.1} {unit}, umbra backend {apart:.1} {unit}, qemu {theirs:.1} {unit}"
        );
        let targets = targets(word);
        let within = format!("{name}: backend/in the monitor");
        ratios.at_least(within, apart / inside, targets.0);
        ratios.at_least(format!("{name}: umbra/qemu tcg"), apart / theirs, targets.1);
    }
    ratios
}

/// Files for all machines.
struct Bench {
    folder: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    program: Program,
    /// What the disk adds up to.
    sum: u64,
}

impl Bench {
    fn prepare(folder: &Path, (kernel, initrd): (PathBuf, PathBuf)) -> Result<Self> {
        let program = Program::build(folder, "load", PROGRAM)?;
        write_disk(&folder.join("disk"))?;
        let commands = COMMANDS.replace("SECTORS", &(DISK / 512).to_string());
        fs::write(folder.join("commands"), commands)?;
        let words = (0..DISK / 8).map(|n| n.wrapping_mul(WORD));
        let sum = words.fold(0u64, |sum, word| sum.wrapping_mul(3).wrapping_add(word));
        Ok(Self {
            folder: folder.to_owned(),
            kernel,
            initrd,
            program,
            sum,
        })
    }

    fn disk(&self) -> String {
        self.folder.join("disk").display().to_string()
    }

    fn socket(&self) -> String {
        self.folder.join("socket").display().to_string()
    }

    fn umbra(&self, umbra: &Path, disk: &str) -> String {
        format!(
            "{} run --backend soft --memory 512M --pci {disk} --disk {program},readonly --kernel {} --initrd {} \
             --cmdline 'console=ttyS0 panic=-1 quiet' < {commands}\n",
            umbra.display(),
            self.kernel.display(),
            self.initrd.display(),
            program = self.program.disk.display(),
            commands = self.folder.join("commands").display(),
        )
    }

    fn inside(&self, umbra: &Path) -> String {
        self.umbra(umbra, &format!("--disk {}", self.disk()))
    }

    /// Starts a back end, and a machine when it listens.
    fn behind(&self, back_end: &str, machine: &str) -> String {
        let socket = self.socket();
        format!(
            "rm -f {socket}\n\
             {back_end} > /dev/null &\n\
             while ! test -S {socket}; do sleep 0.01; done\n\
             {machine}"
        )
    }

    fn apart(&self, umbra: &Path) -> String {
        let (disk, socket) = (self.disk(), self.socket());
        let back_end = format!("{} backend block {disk} --socket {socket}", umbra.display());
        let machine = self.umbra(umbra, &format!("--vhost-user block,socket={socket}"));
        self.behind(&back_end, &machine)
    }

    fn theirs(&self, qemu: &str) -> String {
        let (disk, socket) = (self.disk(), self.socket());
        let back_end = format!(
            "{DAEMON} --blockdev driver=file,filename={disk},node-name=d --export \
             type=vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={socket}"
        );
        let machine = format!(
            "{qemu} -accel tcg -M pc,memory-backend=m -cpu qemu64 -m 512 -display none -serial stdio -nodefaults \
             -no-reboot -object memory-backend-memfd,id=m,size=512M,share=on \
             -chardev socket,id=c,path={socket} -device vhost-user-blk-pci,chardev=c \
             -drive if=none,id=p,format=raw,readonly=on,file={program} -device virtio-blk-pci,drive=p \
             -kernel {} -initrd {} -append 'console=ttyS0 panic=-1 quiet' < {commands}\n",
            self.kernel.display(),
            self.initrd.display(),
            program = self.program.disk.display(),
            commands = self.folder.join("commands").display(),
        );
        self.behind(&back_end, &machine)
    }
}
