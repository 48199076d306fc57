//! Programs as a distribution has them: on the software processor, on QEMU's TCG, and natively.
//!
//! A dozen of Python's own test modules (those of pure Python for the most part, each in a process of its own), gzip
//! and xz of 100 MB and back, gcc with 10,000 lines of C, and a database. [run.sh](run.sh) runs and times them. All
//! three have the same binaries, from Debian's packages ([tree]), and the same input ([inputs]), and must have
//! computed the same: tests with the same outcomes, and files that are equal by their SHA-256.
//!
//! - xz compresses at level 1, and gcc at `-O1`: at their usual levels these two would take most of the time.
//! - No package of Debian's has SQLite's own `speedtest1`; [speed.sql](speed.sql) does the same kinds of work.
//! - Input and output are in memory (tmpfs), programs on an ext4 disk that is read as they start: this measures
//!   processors. `bench io` measures disks.
//! - One round, as it takes long: single programs vary by some per cent, the total by less.
//!
//! A guest is given its input, and gives back what it has measured, as a tar archive on a second disk: the first
//! bytes typed at QEMU's serial port may be lost, and a serial port is slow.

mod inputs;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::tree::{Tree, done};
use super::figures::Ratios;
use super::machine::{Access, Disk, Machine, output};
use super::{fetch, qemu, release_build};

const KERNEL: &str = "linux-image-cloud-amd64";
/// How long a machine may take.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Bytes of text to compress.
const TEXT: usize = 100_000_000;
/// Lines of C to compile.
const LINES: usize = 10_000;
/// The guest's memory holds the text and what becomes of it.
const MEMORY_MIB: u32 = 1024;
/// What a guest's shell does.
const COMMANDS: &str = "\
# some of this may be lost, some of this may be lost
mkdir /tree; modprobe ext4; mount -t ext4 -o ro /dev/vda /tree
mount -t proc proc /tree/proc; mount -t devtmpfs dev /tree/dev; mount -t tmpfs tmp /tree/tmp
tar -xof /dev/vdb -C /tree/tmp
chroot /tree /usr/bin/env -i /bin/bash /tmp/run.sh < /dev/null
tar -cf /dev/vdb -C /tree/tmp results; sync
poweroff -f
";
/// The same on the host, in namespaces of its own: nothing is left, and the tree stays as it is.
const NATIVELY: &str = "\
mount -t proc proc \"$1/proc\"; mount --rbind /dev \"$1/dev\"; mount -t tmpfs tmp \"$1/tmp\"
tar -xof \"$2\" -C \"$1/tmp\"
/usr/sbin/chroot \"$1\" /usr/bin/env -i /bin/bash /tmp/run.sh < /dev/null
tar -cf \"$2\" -C \"$1/tmp\" results
";

/// All together shall not take longer than on TCG.
const TOTAL: f64 = 1.0;
/// No single program may take longer than on TCG by more than this.
const WORST: f64 = 1.05;

/// Runs the benchmark.
pub fn run() -> Result<()> {
    let (umbra, qemu) = (release_build()?, qemu()?);
    let (kernel, initrd) = fetch(&umbra, KERNEL)?;
    let tree = Tree::fetch(initrd.parent().context("the cache has a place")?)?;
    let place = tempfile::tempdir()?;
    let bench = Bench::prepare(place.path())?;
    let machine = Machine {
        kernel,
        initrd,
        memory_mib: MEMORY_MIB,
        disks: vec![
            Disk {
                path: tree.disk,
                access: Access::Read,
            },
            Disk {
                path: bench.exchange(),
                access: Access::Write,
            },
        ],
        commands: bench.folder.join("commands"),
        patience: PATIENCE,
    };
    let native = bench.measure("native", || natively(&tree.root, &bench.exchange()))?;
    let ours = bench.measure("umbra", || machine.umbra(&umbra))?;
    let theirs = bench.measure("qemu tcg", || machine.qemu(qemu))?;
    report(&ours, &theirs, &native)
}

fn natively(root: &Path, exchange: &Path) -> Result<String> {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "--pid", "--fork"]);
    command.args(["--kill-child", "sh", "-eu", "-c", NATIVELY, "sh"]);
    output(command.arg(root).arg(exchange), None)
}

fn report(ours: &Measured, theirs: &Measured, native: &Measured) -> Result<()> {
    let mut ratios = Ratios::new("programs");
    for (name, mine) in &ours.0 {
        let (tcg, host) = (theirs.get(name)?, native.get(name)?);
        println!(
            "{name}: umbra {:.2} s, qemu tcg {:.2} s, native {:.2} s",
            mine.seconds, tcg.seconds, host.seconds
        );
        let ratio = mine.seconds / tcg.seconds;
        ratios.at_most(format!("{name}: umbra/qemu tcg"), ratio, WORST);
    }
    for (name, mine) in &ours.0 {
        same(name, "qemu tcg", &mine.result, &theirs.get(name)?.result)?;
        same(name, "the host", &mine.result, &native.get(name)?.result)?;
    }
    let (mine, tcg, host) = (ours.total(), theirs.total(), native.total());
    println!("total: umbra {mine:.2} s, qemu tcg {tcg:.2} s, native {host:.2} s");
    ratios.at_most("total: umbra/qemu tcg", mine / tcg, TOTAL);
    ratios.told("total: umbra/native", mine / host);
    ratios.print();
    Ok(())
}

/// Fails where `other` has computed something else.
fn same(name: &str, who: &str, ours: &str, other: &str) -> Result<()> {
    if ours == other {
        return Ok(());
    }
    let mut lines = ours.lines().zip(other.lines());
    match lines.find(|(mine, theirs)| mine != theirs) {
        Some((mine, theirs)) => {
            bail!("umbra and {who} do not agree about {name}: {mine:?}, {theirs:?}")
        }
        None => bail!("one of umbra and {who} says more about {name}"),
    }
}

/// What goes to each of the three, and comes back.
struct Bench {
    folder: PathBuf,
}

impl Bench {
    fn prepare(folder: &Path) -> Result<Self> {
        fs::write(folder.join("run.sh"), include_str!("run.sh"))?;
        fs::write(folder.join("speed.sql"), include_str!("speed.sql"))?;
        fs::write(folder.join("source.c"), inputs::source(LINES))?;
        fs::write(folder.join("text"), inputs::text(TEXT))?;
        fs::write(folder.join("commands"), COMMANDS)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// The archive by which that is done.
    fn exchange(&self) -> PathBuf {
        self.folder.join("exchange")
    }

    /// Has one of the three run all programs.
    fn measure(&self, who: &str, run: impl FnOnce() -> Result<String>) -> Result<Measured> {
        // By whole sectors of disks.
        let mut tar = Command::new("tar");
        tar.args(["--blocking-factor=8", "-cf"])
            .arg(self.exchange());
        tar.arg("-C").arg(&self.folder);
        done(tar.args(["run.sh", "speed.sql", "source.c", "text"]))?;
        let said = run()?;
        let taken = tempfile::tempdir_in(&self.folder)?;
        let mut tar = Command::new("tar");
        tar.arg("-xof").arg(self.exchange());
        tar.arg("-C").arg(taken.path()).arg("results");
        done(&mut tar).with_context(|| format!("{who} gives nothing back: {said}"))?;
        let measured = Measured::read(&taken.path().join("results")).context(who.to_owned())?;
        println!("{who}: {:.2} s", measured.total());
        Ok(measured)
    }
}

/// What one of the three has measured, by name, in the order of the runs.
struct Measured(Vec<(String, Ran)>);

/// How long a program took, and what it computed.
struct Ran {
    seconds: f64,
    result: String,
}

impl Measured {
    fn read(folder: &Path) -> Result<Self> {
        let times = fs::read_to_string(folder.join("times")).context("no times")?;
        let ran = |line: &str| {
            let [name, micros, status] = line.split(' ').collect::<Vec<_>>()[..] else {
                bail!("{line:?} is no time");
            };
            if status != "0" {
                let log = fs::read(folder.join(name).with_extension("log")).unwrap_or_default();
                bail!("{name}: status {status}: {}", String::from_utf8_lossy(&log));
            }
            let seconds = micros.parse::<f64>()? / 1e6;
            let result = fs::read_to_string(folder.join(name)).context("no result")?;
            Ok((name.to_owned(), Ran { seconds, result }))
        };
        Ok(Self(times.lines().map(ran).collect::<Result<_>>()?))
    }

    fn get(&self, name: &str) -> Result<&Ran> {
        let found = self.0.iter().find(|(other, _)| other == name);
        let (_, ran) = found.with_context(|| format!("{name} was not run by all"))?;
        Ok(ran)
    }

    fn total(&self) -> f64 {
        self.0.iter().map(|(_, ran)| ran.seconds).sum()
    }
}
