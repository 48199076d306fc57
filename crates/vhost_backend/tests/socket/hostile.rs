//! Front ends that mean no good, or die.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use umbra_vhost_backend::{Error, Visits};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::back::Back;
use crate::guest::{Guest, RAM, memory, region, wait};

/// One wrong thing that a front end does.
type Wrong = fn(&mut Guest) -> vhost::Result<()>;

/// Has a front end do one wrong thing; the next one finds the device as new. Returns the reason.
fn refused(name: &str, wrong: Wrong) -> String {
    let back = Back::serve(Visits::Once);
    let mut guest = Guest::new(&back);
    assert!(wrong(&mut guest).is_err(), "{name} is taken");
    let error = back.end().unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn start_with(guest: &mut Guest, edit: impl FnOnce(&mut VringConfigData)) -> vhost::Result<()> {
    let mut addresses = guest.addresses(0);
    edit(&mut addresses);
    guest.set_up(0, 0);
    guest.frontend.set_vring_addr(0, &addresses)?;
    guest.frontend.set_vring_enable(0, true)
}

#[test]
fn what_is_wrong_ends_the_connection_with_its_reason() {
    let table: &[(&str, Wrong, &str)] = &[
        (
            "a table elsewhere",
            |g| start_with(g, |a| a.desc_table_addr = 0x1000),
            "descriptor table",
        ),
        (
            "a ring elsewhere",
            |g| start_with(g, |a| a.avail_ring_addr = 0x1000),
            "available ring",
        ),
        (
            "a used ring elsewhere",
            |g| start_with(g, |a| a.used_ring_addr = !3),
            "used ring",
        ),
        (
            "a table at the end",
            |g| {
                let end = g.ram.host_addr(RAM - 0x10).as_ptr() as u64;
                start_with(g, |a| a.desc_table_addr = end)
            },
            "cannot be used",
        ),
        (
            "a used ring at the end",
            |g| {
                let end = g.ram.host_addr(RAM - 4).as_ptr() as u64;
                start_with(g, |a| a.used_ring_addr = end)
            },
            "cannot be used",
        ),
        (
            "no size",
            |g| g.frontend.set_vring_num(0, 0),
            "0 descriptors",
        ),
        (
            "a size that is no power",
            |g| g.frontend.set_vring_num(0, 3),
            "3 descriptors",
        ),
        (
            "a size that no ring has",
            |g| g.frontend.set_vring_num(0, 2048),
            "1024 at most",
        ),
        (
            "another size of a ring that runs",
            |g| {
                g.start(0);
                g.frontend.set_vring_num(0, 4)
            },
            "while rings run",
        ),
        (
            "another base of a ring that runs",
            |g| {
                g.start(0);
                g.frontend.set_vring_base(0, 4)
            },
            "while rings run",
        ),
        (
            "features that are not there",
            |g| g.frontend.set_features(1 << 50),
            "accepts features",
        ),
        (
            "other features while rings run",
            |g| {
                g.start(0);
                g.frontend.set_features(crate::guest::FEATURES | 1 << 29)
            },
            "while rings run",
        ),
        (
            "a legacy driver",
            |g| {
                g.frontend.set_features(1 << 30)?;
                g.set_up(0, 0);
                g.frontend.set_vring_enable(0, true)
            },
            "legacy",
        ),
        (
            "memory that overlaps",
            |g| {
                g.frontend
                    .add_mem_region(&region(RAM - 0x1000, &g.ram, 0, 0x2000))
                    .map(drop)
            },
            "overlaps",
        ),
        (
            "memory that is in no file",
            |g| {
                let mut info = region(RAM, &g.ram, 0, 0x1000);
                info.mmap_offset = RAM;
                g.frontend.add_mem_region(&info).map(drop)
            },
            "cannot be 0x1000 bytes",
        ),
        (
            "memory beyond every machine",
            |g| {
                g.frontend
                    .add_mem_region(&region(1 << 52, &g.ram, 0, 0x1000))
                    .map(drop)
            },
            "no range",
        ),
        (
            "memory that wraps",
            |g| {
                g.frontend
                    .add_mem_region(&region(!0xfff, &g.ram, 0, 0x2000))
                    .map(drop)
            },
            "invalid message",
        ),
        (
            "half a page",
            |g| {
                g.frontend
                    .add_mem_region(&region(RAM, &g.ram, 0, 0x800))
                    .map(drop)
            },
            "no size",
        ),
        (
            "a part of a page",
            |g| {
                g.frontend
                    .add_mem_region(&region(RAM, &g.ram, 0x800, 0x1000))
                    .map(drop)
            },
            "cannot begin",
        ),
        (
            "memory that was never there",
            |g| {
                g.frontend
                    .remove_mem_region(&region(RAM, &g.ram, 0, 0x1000))
            },
            "no memory of",
        ),
        (
            "rings whose memory goes",
            |g| {
                g.start(0);
                let more = memory(0x1000);
                g.frontend
                    .set_mem_table(&[region(0, &more, 0, 0x1000)])
                    .map(drop)
            },
            "no memory region",
        ),
    ];
    for (name, wrong, why) in table {
        let reason = refused(name, *wrong);
        assert!(reason.contains(why), "{name}: {reason}");
    }
}

#[test]
fn a_front_end_that_wants_to_be_polled_for_is_refused() {
    let back = Back::serve(Visits::Once);
    let mut stream = back.connect();
    // SET_VRING_KICK of ring 1, without a descriptor.
    let mut message: Vec<u8> = [12u32, 1, 8].iter().flat_map(|w| w.to_ne_bytes()).collect();
    message.extend(0x101u64.to_ne_bytes());
    stream.write_all(&message).unwrap();
    let error = back.end().unwrap_err();
    assert!(matches!(error, Error::Polling { ring: 1 }), "{error}");
}

#[test]
fn bytes_that_are_no_message_are_refused_and_the_next_front_end_is_served() {
    let back = Back::start();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..300 {
        let mut stream = back.connect();
        let mut bytes = Vec::new();
        for _ in 0..16 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.extend(seed.to_ne_bytes());
        }
        if round % 2 == 0 {
            // A header that could be one, of a message that has a body.
            let header = [seed as u32 % 45, 1, seed as u32 >> 8 & 0x7f];
            let header: Vec<u8> = header.iter().flat_map(|w| w.to_ne_bytes()).collect();
            bytes[..12].copy_from_slice(&header);
        }
        // It may be gone before all is written.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.echo(0, b"fine");
}

#[test]
fn a_front_end_that_dies_leaves_the_device_to_the_next_one() {
    let back = Back::start();
    for round in 0..20u8 {
        let mut guest = Guest::new(&back);
        guest.start(0);
        guest.start(1);
        guest.echo(1, &[round; 4]);
        back.knobs.delay_ms.store(5, Ordering::SeqCst);
        back.knobs.busy.store(false, Ordering::SeqCst);
        guest.request(0, 1, b"gone");
        guest.offer(0, 2);
        guest.kick(0);
        wait("a request", || back.knobs.busy.load(Ordering::SeqCst));
        drop(guest);
        back.knobs.delay_ms.store(0, Ordering::SeqCst);
    }
    wait("resets", || back.knobs.count()[2] == 20);
    let [begun, ended, _] = back.knobs.count();
    assert_eq!(begun, ended);
}

#[test]
fn a_back_end_is_stopped_whatever_its_front_end_does() {
    // It says nothing; half a message; nothing more while a ring runs; it does not read its answers.
    let nothing = |_: &mut Back| None;
    let half = |back: &mut Back| {
        let mut stream = back.connect();
        stream.write_all(&[1, 0, 0, 0, 1, 0]).unwrap();
        Some(stream)
    };
    let deaf = |back: &mut Back| {
        let mut stream = back.connect();
        stream.set_nonblocking(true).unwrap();
        let ask: Vec<u8> = [1u32, 1, 0].iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut full = 0;
        while full < 50 {
            match stream.write(&ask) {
                Ok(12) => full = 0,
                _ => {
                    full += 1;
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
        }
        Some(stream)
    };
    type Does = fn(&mut Back) -> Option<std::os::unix::net::UnixStream>;
    let table: [Does; 3] = [nothing, half, deaf];
    for does in table {
        let mut back = Back::start();
        let _stream = does(&mut back);
        std::thread::sleep(std::time::Duration::from_millis(20));
        back.stop().unwrap();
        assert!(!back.path.exists());
    }
    let mut back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.echo(0, b"once");
    back.stop().unwrap();
}

#[test]
fn a_descriptor_that_is_no_event_is_refused() {
    let back = Back::serve(Visits::Once);
    let stream = back.connect();
    let directory = std::fs::File::open("/").unwrap();
    // SET_VRING_KICK of ring 0.
    let mut message: Vec<u8> = [12u32, 1, 8].iter().flat_map(|w| w.to_ne_bytes()).collect();
    message.extend(0u64.to_ne_bytes());
    let fds = [directory.as_raw_fd()];
    stream.send_with_fds(&[&message[..]], &fds).unwrap();
    let error = back.end().unwrap_err();
    assert!(matches!(error, Error::Kick { ring: 0, .. }), "{error}");
}
