//! What a back end may ask of the host (seccomp(2)).
//!
//! ```text
//!   every device   its threads, memory, descriptors that it has, messages of its sockets, its clock, its log
//!   block          its file; with io_uring, that
//!   net            its interface, and the end of its passt
//!   vsock, console sockets of programs of this host
//! ```
//!
//! A call that is not among these ends the process, all threads at once, by SIGSYS; the host writes down which it was
//! (`dmesg`, or its audit log). Nobody here opens a file, starts a program, connects to a network, or makes memory that
//! can be executed.
//!
//! *What it does not hold.* io_uring has operations of its own, which this filter does not see, and opening files is
//! among them: a disk with `engine=threads` has none. A path is not looked at: vsock connects to, and unlinks, whatever
//! socket its user can.
//!
//! A file that is to be read cannot be opened either, but whoever tries lives: the C library's allocator looks into
//! `/proc/sys/vm/overcommit_memory` when it gives a heap back, and does without if it may not.
//!
//! New threads are made by `clone`, whose flags can be looked at; those of `clone3` are in memory, so it is said not to
//! be there, and the C library takes the other one.

use std::collections::BTreeMap;

use anyhow::Result;
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter_all_threads,
};
use umbra_vmm::{EngineKind, NetHost, VirtioKind};

/// Calls that are allowed, whatever their arguments are.
type Calls = &'static [c_long];

const EVERY: Calls = &[
    // Threads.
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    // Signals.
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Memory; see also the rules.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Descriptors that are there, and what one waits for.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_preadv2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // The socket, and in the end its file.
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_statx,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    // Time, and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_nanosleep,
];

const BLOCK: Calls = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sync_file_range,
];

const IO_URING: Calls = &[
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
];

const SOCKETS: Calls = &[
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_setsockopt,
];

/// Ends passt, which was started before.
const CHILD: Calls = &[libc::SYS_wait4, libc::SYS_waitid];

/// Requests of block devices, of TAP interfaces, and of sockets (linux/fs.h, linux/if_tun.h, asm-generic/ioctls.h).
const BLOCK_REQUESTS: &[u32] = &[
    0x1260,      // BLKGETSIZE
    0x1268,      // BLKSSZGET
    0x1277,      // BLKDISCARD
    0x127b,      // BLKPBSZGET
    0x127f,      // BLKZEROOUT
    0x8008_1272, // BLKGETSIZE64
];
const TAP_REQUESTS: &[u32] = &[
    0x4004_54d0, // TUNSETOFFLOAD
    0x4004_54d9, // TUNSETQUEUE
];
const SOCKET_REQUESTS: &[u32] = &[
    0x5421, // FIONBIO
];

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Confines all threads of this process, and those that they start, for good.
///
/// # Errors
/// If the host has no seccomp, or refuses it.
pub fn confine(kind: &VirtioKind) -> Result<()> {
    quiet_panics();
    // The one that is asked last is the one that is there first: no filter may keep the other from coming.
    apply_filter_all_threads(&refused(libc::SYS_clone3, libc::ENOSYS)?)?;
    apply_filter_all_threads(&refused(libc::SYS_openat, libc::EACCES)?)?;
    apply_filter_all_threads(&allowed(kind)?)?;
    Ok(())
}

/// A backtrace opens files. A device's panic is told without.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| eprintln!("umbra: {panic}")));
}

fn compile(rules: Rules, other: SeccompAction, these: SeccompAction) -> Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, other, these, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

/// Answers a call with an error.
fn refused(call: c_long, error: i32) -> Result<BpfProgram> {
    let rules = BTreeMap::from([(call, Vec::new())]);
    let answer = SeccompAction::Errno(error as u32);
    compile(rules, SeccompAction::Allow, answer)
}

fn allowed(kind: &VirtioKind) -> Result<BpfProgram> {
    let own: &[Calls] = match kind {
        VirtioKind::Block(disk) if disk.engine == EngineKind::IoUring => &[BLOCK, IO_URING],
        VirtioKind::Block(_) => &[BLOCK],
        VirtioKind::Vsock(_) | VirtioKind::Console(_) => &[SOCKETS],
        VirtioKind::Net(net) if matches!(net.host, NetHost::User { .. }) => &[CHILD],
        _ => &[],
    };
    let mut rules = Rules::new();
    for call in [EVERY].iter().chain(own).copied().flatten() {
        rules.insert(*call, Vec::new());
    }
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
    rules.insert(libc::SYS_clone, vec![rule(&[masked(0, thread, thread)?])?]);
    let no_code = [masked(2, libc::PROT_EXEC as u64, 0)?];
    rules.insert(libc::SYS_mmap, vec![rule(&no_code)?]);
    rules.insert(libc::SYS_mprotect, vec![rule(&no_code)?]);
    rules.insert(libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME as u32)?]);
    // It is refused, but does not end the process.
    let writes = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
    rules.insert(libc::SYS_openat, vec![rule(&[masked(2, writes, 0)?])?]);
    let this = rustix::process::getpid().as_raw_nonzero().get() as u32;
    rules.insert(libc::SYS_tgkill, vec![is(0, this)?]);
    let requests = match kind {
        VirtioKind::Block(_) => BLOCK_REQUESTS,
        VirtioKind::Net(net) if matches!(net.host, NetHost::Tap { .. }) => TAP_REQUESTS,
        VirtioKind::Vsock(_) | VirtioKind::Console(_) => SOCKET_REQUESTS,
        _ => &[],
    };
    if !requests.is_empty() {
        let all: Result<_> = requests.iter().map(|request| is(1, *request)).collect();
        rules.insert(libc::SYS_ioctl, all?);
    }
    if own.contains(&SOCKETS) {
        rules.insert(libc::SYS_socket, vec![is(0, libc::AF_UNIX as u32)?]);
    }
    if own.contains(&CHILD) {
        rules.insert(libc::SYS_kill, vec![is(1, libc::SIGKILL as u32)?]);
        rules.insert(
            libc::SYS_pidfd_send_signal,
            vec![is(1, libc::SIGKILL as u32)?],
        );
    }
    compile(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

fn rule(all: &[SeccompCondition]) -> Result<SeccompRule> {
    Ok(SeccompRule::new(all.to_vec())?)
}

/// An argument is a number of 32 bits.
fn is(argument: u8, value: u32) -> Result<SeccompRule> {
    let equal = SeccompCondition::new(argument, Len::Dword, Op::Eq, value.into())?;
    rule(&[equal])
}

/// The bits of an argument that a mask has.
fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition> {
    let op = Op::MaskedEq(mask);
    Ok(SeccompCondition::new(argument, Len::Qword, op, value)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Set for the child: what it tries.
    const TRY: &str = "UMBRA_TEST_FILTER";

    /// What a confined process tries, and whether it may.
    fn attempts() -> Vec<(&'static str, fn(), bool)> {
        vec![
            ("nothing", || (), true),
            (
                "a thread",
                || std::thread::spawn(|| ()).join().unwrap(),
                true,
            ),
            (
                "memory",
                || drop(std::hint::black_box(vec![1u8; 64 << 20])),
                true,
            ),
            (
                "a panic",
                || drop(std::thread::spawn(|| panic!("on purpose")).join()),
                true,
            ),
            (
                "a file to read",
                || {
                    let refused = std::fs::File::open("/etc/passwd").unwrap_err();
                    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
                },
                true,
            ),
            (
                "a file to write",
                || drop(std::fs::File::create("/tmp/umbra-filter")),
                false,
            ),
            ("heaps that shrink", heaps, true),
            (
                "a program",
                || drop(Command::new("/bin/true").status()),
                false,
            ),
            (
                "a network",
                || drop(std::net::UdpSocket::bind("127.0.0.1:0")),
                false,
            ),
            (
                "a unix socket",
                || drop(std::os::unix::net::UnixDatagram::unbound()),
                false,
            ),
            (
                "a directory",
                || drop(std::env::set_current_dir("/")),
                false,
            ),
            (
                "its parent",
                || assert!(rustix::process::getppid().is_some()),
                false,
            ),
        ]
    }

    /// Has several threads take much memory in small pieces, and give it back.
    fn heaps() {
        let threads = (0..4).map(|_| {
            std::thread::spawn(|| {
                let pieces: Vec<_> = (0..2000).map(|n| vec![n as u8; 0x8000]).collect();
                drop(std::hint::black_box(pieces));
            })
        });
        let threads: Vec<_> = threads.collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }

    #[test]
    #[ignore = "the next one runs it, as its child, each time"]
    fn child() {
        let Ok(name) = std::env::var(TRY) else {
            return;
        };
        let all = attempts();
        let (_, attempt, _) = all.iter().find(|(other, ..)| *other == name).unwrap();
        confine(&VirtioKind::Rng(umbra_vmm::RngSpec::default())).unwrap();
        attempt();
    }

    #[test]
    fn a_call_outside_the_list_ends_the_process_by_sigsys() {
        for (name, _, allowed) in attempts() {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--ignored", "backend::filter::tests::child"])
                .env(TRY, name)
                .env("RUST_BACKTRACE", "1")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&child.stdout).into_owned();
            match allowed {
                true => assert!(child.status.success(), "{name}: {} {text}", child.status),
                false => assert_eq!(child.status.signal(), Some(libc::SIGSYS), "{name}: {text}"),
            }
        }
    }
}
