//! A stock guest whose disk and network interface change while it uses them: limits, size, cable.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use umbra_vmm::{BlockControl, Bucket, DiskSpec, Limits, NetControl, NetHost, NetSpec, VirtioKind};

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::LINUX_6_1;
use crate::support::peer::Peer;
use crate::support::shell::Shell;

const MIB: u64 = 1 << 20;

struct Guest {
    shell: Shell,
    disk: BlockControl,
    net: NetControl,
    peer: Peer,
    file: PathBuf,
    _place: tempfile::TempDir,
}

/// So many, and no more before the test is over.
fn only(count: u64) -> Option<Bucket> {
    Some(Bucket {
        size: count,
        one_time_burst: 0,
        refill_time: Duration::from_secs(1_000_000 * count),
    })
}

fn operations(count: u64) -> Limits {
    Limits {
        bandwidth: None,
        operations: only(count),
    }
}

impl Guest {
    fn boot(backend: &str) -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let (file, socket) = (place.path().join("disk"), place.path().join("net"));
        File::create(&file)
            .and_then(|file| file.set_len(8 * MIB))
            .unwrap();
        let peer = Peer::serve(&socket);
        let host = NetHost::Stream { path: socket };
        let shell = Shell::boot(backend, LINUX_6_1, "ipv6.disable=1", |spec| {
            spec.pci()
                .virtio("d", VirtioKind::Block(DiskSpec::new(&file)))
                .virtio("n", VirtioKind::Net(NetSpec::new(host)))
        })?;
        // Nobody gives it an address, and nobody else sends anything.
        shell.ask("killall udhcpc; ip addr add 10.9.0.2/24 dev eth0");
        let handle = &shell.handle;
        assert!(handle.disk("n").is_none() && handle.network("other").is_none());
        Some(Self {
            disk: handle.disk("d").unwrap(),
            net: handle.network("n").unwrap(),
            shell,
            peer,
            file,
            _place: place,
        })
    }

    fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{what}: {:?} {:?}, the guest says {}",
                self.disk.statistics(),
                self.net.statistics(),
                self.shell.screen.text()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Pings, and returns how many answers come; what else is done meanwhile needs more time than a ping.
    fn pings(&self, count: u32, meanwhile: impl FnOnce()) -> String {
        let begin = format!("ping -A -c {count} -w 100 10.9.0.1 > /tmp/pings & echo begun");
        assert_eq!(self.shell.ask(&begin), "begun");
        meanwhile();
        self.shell.ask(
            "while pidof ping > /dev/null; do sleep 0.1; done; grep -c ' bytes from ' /tmp/pings",
        )
    }

    fn frames_wait_for_limits(&self) {
        let count = || self.net.statistics();
        assert_eq!(self.pings(3, || ()), "3");

        // What comes waits, and what goes does not.
        let before = count();
        self.net.set_receive_limits(operations(2));
        let answered = self.pings(5, || {
            self.wait("all are sent", || {
                count().sent_frames >= before.sent_frames + 5
            });
            assert_eq!(count().received_frames, before.received_frames + 2);
            let waited = (count().throttled_in, count().throttled_out);
            assert_eq!(waited, (before.throttled_in + 1, before.throttled_out));
            self.net.set_receive_limits(Limits::default());
        });
        assert_eq!(answered, "5");

        // And the other way round.
        let before = count();
        self.net.set_transmit_limits(operations(2));
        let answered = self.pings(5, || {
            self.wait("one waits", || {
                count().throttled_out == before.throttled_out + 1
            });
            let received = count().received_frames;
            self.peer.send(100);
            self.wait("frames come", || count().received_frames >= received + 100);
            assert_eq!(count().sent_frames, before.sent_frames + 2);
            self.net.set_transmit_limits(Limits::default());
        });
        assert_eq!(answered, "5");
    }

    fn requests_wait_for_limits(&self) {
        let count = || self.disk.statistics();
        let read = "dd if=/dev/vda of=/dev/null bs=4k count=16 iflag=direct 2>/dev/null";
        let bytes = Limits {
            bandwidth: only(3 * 4096),
            operations: None,
        };
        for (limits, reads) in [(operations(5), 5), (bytes, 3)] {
            let before = count();
            self.disk.set_limits(limits);
            assert_eq!(self.disk.limits(), limits);
            let begin = format!("{{ {read}; touch /tmp/done; }} > /dev/null & echo begun");
            assert_eq!(self.shell.ask(&begin), "begun");
            self.wait("one waits", || count().throttled == before.throttled + 1);
            assert_eq!(count().reads, before.reads + reads);
            // Nothing else waits with it.
            assert_eq!(self.pings(1, || ()), "1");
            self.disk.set_limits(Limits::default());
            self.shell
                .ask("until rm /tmp/done 2>/dev/null; do sleep 0.1; done");
            assert_eq!(count().reads, before.reads + 16);
        }
    }

    fn the_disk_has_another_size(&self) {
        let file = File::options().write(true).open(&self.file).unwrap();
        for (mib, good, bad) in [(32, 31, 32), (4, 3, 4), (16, 15, 16)] {
            file.set_len(mib * MIB).unwrap();
            assert_eq!(self.disk.refresh_size().unwrap(), mib * MIB);
            let sectors = (mib * MIB / 512).to_string();
            self.shell.ask(&format!(
                "until [ $(cat /sys/block/vda/size) = {sectors} ]; do sleep 0.1; done"
            ));
            // A sector, at a MiB.
            let write = |at| {
                format!(
                    "echo at {at} | dd of=/dev/vda bs=512 seek={} conv=sync oflag=direct 2>&1 \
                     | grep -c 'No space'",
                    at * MIB / 512
                )
            };
            assert_eq!(self.shell.ask(&write(good)), "0");
            assert_eq!(self.shell.ask(&write(bad)), "1");
            let bytes = std::fs::read(&self.file).unwrap();
            let said = format!("at {good}\n");
            assert!(bytes[(good * MIB) as usize..].starts_with(said.as_bytes()));
        }
        let told = self
            .shell
            .ask("dmesg | grep -c 'vda: detected capacity change'");
        assert_eq!(told, "3");
    }

    fn the_cable_is_pulled(&self) {
        let carrier = |value| {
            self.shell.ask(&format!(
                "until [ $(cat /sys/class/net/eth0/carrier) = {value} ]; do sleep 0.1; done"
            ))
        };
        let before = self.net.statistics();
        self.net.set_link(false);
        carrier(0);
        self.peer.send(7);
        self.wait("frames are lost", || {
            self.net.statistics().dropped_in == before.dropped_in + 7
        });
        assert_eq!(self.pings_once(), "0");
        self.net.set_link(true);
        carrier(1);
        assert_eq!(self.pings(2, || ()), "2");
    }

    fn pings_once(&self) -> String {
        self.shell
            .ask("ping -c 1 -W 1 10.9.0.1 | grep -c ' bytes from '")
    }
}

fn limits_size_and_cable_change_while_a_guest_runs(backend: &str) {
    let Some(guest) = Guest::boot(backend) else {
        return;
    };
    guest.frames_wait_for_limits();
    guest.requests_wait_for_limits();
    guest.the_cable_is_pulled();
    guest.the_disk_has_another_size();
    let complaints = "dmesg | grep -ciE 'virtio.*(error|fail|wrong|broken)|I/O error'";
    assert_eq!(guest.shell.ask(complaints), "0");
    guest.shell.power_off();
}

on_each_stock_backend! {
    limits_size_and_cable_change_while_a_guest_runs,
}
