//! The front ends before a [kernel](super::recorder) that is played: which calls it gets, in which order, and what
//! becomes of each that fails.
#![allow(clippy::unwrap_used, reason = "in a test it is the failure")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use umbra_net::{Mac, Offloads, Port, Sent};
use umbra_slots::{Flags, Gpa, HugePages, RamOptions, RamRegion, SlotError};
use umbra_virtio::Features;
use umbra_virtio::testing::{Driver, Memory, NEXT, RINGS, WRITE};

use super::recorder::{Kernel, Options, before, fill};
use super::*;
use crate::testing::descriptors;
use crate::{BackEndError, Hub};

const DATA: u64 = 0x7_0000;
/// Descriptors of each queue.
const SIZE: u16 = 8;
const MORE: u64 = 0x100_0000;
const CSUM: Features = Features::from_low(0b11 | 1 << 7);
const MQ: Features = Features::bit(22);

/// A queue of an interface, of which is known what it was told.
struct End {
    file: File,
    told: Arc<Mutex<Vec<String>>>,
    index: usize,
}

impl Port for End {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn can_offload(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let Offloads { checksum, tso4, .. } = offloads;
        self.told
            .lock()
            .push(format!("{} {checksum} {tso4}", self.index));
        Ok(())
    }

    fn enable(&mut self, on: bool) -> io::Result<()> {
        self.told.lock().push(format!("{} {on}", self.index));
        Ok(())
    }

    fn send(&mut self, _: &[u8]) -> io::Result<Sent> {
        unreachable!("the kernel does that")
    }

    fn receive(&mut self, _: &mut [u8]) -> io::Result<Option<usize>> {
        unreachable!("the kernel does that")
    }
}

/// A place with a file that is taken for a node.
struct Place {
    folder: tempfile::TempDir,
    memory: Arc<Memory>,
    hub: Arc<Hub>,
    told: Arc<Mutex<Vec<String>>>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("node")).unwrap();
        let memory = Memory::new();
        let hub = Hub::new(&memory.space).unwrap();
        Self {
            folder,
            memory,
            hub,
            told: Arc::default(),
        }
    }

    fn node(&self) -> PathBuf {
        self.folder.path().join("node")
    }

    fn net(&self, pairs: usize) -> Result<VhostKernel, BackEndError> {
        let end = |index| {
            let told = self.told.clone();
            let file = File::open("/dev/null").unwrap();
            Box::new(End { file, told, index }) as Box<dyn Port>
        };
        let options = VhostNetOptions {
            name: "test".into(),
            node: self.node(),
            ports: (0..pairs).map(end).collect(),
            mac: Mac([2, 0, 0, 0, 0, 7]),
            mtu: Some(9000),
        };
        VhostKernel::net(options, &self.hub)
    }

    fn vsock(&self) -> Result<VhostKernel, BackEndError> {
        let options = VhostVsockOptions {
            name: "test".into(),
            node: self.node(),
            cid: 7,
        };
        VhostKernel::vsock(options, &self.hub)
    }

    fn vdpa(&self) -> Result<VhostKernel, BackEndError> {
        let options = VdpaOptions {
            name: "test".into(),
            node: self.node(),
        };
        VhostKernel::vdpa(options, &self.hub)
    }

    fn driver(&self, device: VhostKernel) -> (Driver, VhostKernelControl) {
        let control = device.control();
        let driver = Driver::with_memory(self.memory.clone(), Box::new(device), SIZE);
        (driver, control)
    }

    fn add(&self) -> Result<(), SlotError> {
        let options = RamOptions {
            len: 0x4000,
            huge: HugePages::No,
            prefault: false,
        };
        let region = RamRegion::new(options).unwrap();
        let added = self.memory.space.update("test", |map| {
            map.add_ram(Gpa(MORE), region, 0, 0x4000, Flags::default())
        });
        added.map(|updated| {
            updated.wait();
        })
    }

    fn remove(&self) {
        let id = self.memory.space.load().slots().last().unwrap().id();
        let removed = self.memory.space.update("test", |map| map.remove(id));
        removed.unwrap().wait();
    }
}

fn calls(kernel: &Kernel) -> Vec<String> {
    kernel.0.lock().calls()
}

/// Waits until the kernel has been called so.
fn wait_for(driver: &Driver, kernel: &Kernel, call: &str) {
    driver.wait(|_| {
        kernel
            .0
            .lock()
            .calls
            .iter()
            .any(|seen| seen.ends_with(call))
    });
}

/// The calls for a ring of a node.
fn ring_calls(node: usize, index: u32) -> Vec<String> {
    ["NUM", "BASE", "ADDR", "KICK", "CALL", "ERR"]
        .map(|what| match what {
            "NUM" => format!("{node} SET_VRING_NUM {index} {SIZE}"),
            "BASE" => format!("{node} SET_VRING_BASE {index} 0"),
            _ => format!("{node} SET_VRING_{what} {index}"),
        })
        .into()
}

fn expect(calls: &[String], parts: &[Vec<String>]) {
    assert_eq!(calls, parts.concat(), "{calls:#?}");
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn an_interface_is_set_up_in_the_order_of_record_and_follows_the_map() {
    before(Options::default(), |kernel| {
        let place = Place::new();
        let (mut driver, _) = place.driver(place.net(1).unwrap());
        expect(
            &calls(&kernel),
            &[words(&["0 SET_OWNER", "0 GET_FEATURES"])],
        );
        driver.start(CSUM.with(Features::bit(15)).with(Features::EVENT_IDX));
        wait_for(&driver, &kernel, " NET_SET_BACKEND 1 an interface");
        // MRG_RXBUF, EVENT_IDX and INDIRECT_DESC of our rings, VERSION_1; neither offloads nor a header.
        expect(
            &calls(&kernel),
            &[
                words(&["0 SET_FEATURES 0x130008000", "0 SET_MEM_TABLE 2"]),
                ring_calls(0, 0),
                ring_calls(0, 1),
                words(&[
                    "0 NET_SET_BACKEND 0 an interface",
                    "0 NET_SET_BACKEND 1 an interface",
                ]),
            ],
        );
        assert_eq!(*place.told.lock(), ["0 true", "0 true true"]);
        // Guest memory is where it is in this process.
        let ram = kernel.0.lock().table[0];
        assert_eq!(ram[..2], [0, umbra_virtio::testing::RAM]);
        place.add().unwrap();
        place.remove();
        expect(
            &calls(&kernel),
            &[words(&["0 SET_MEM_TABLE 3", "0 SET_MEM_TABLE 2"])],
        );
        assert_eq!(kernel.0.lock().table[0], ram);
        driver.write(0x70, 0);
        let end = words(&[
            "0 NET_SET_BACKEND 0 none",
            "0 NET_SET_BACKEND 1 none",
            "0 GET_VRING_BASE 0 0",
            "0 GET_VRING_BASE 1 0",
        ]);
        expect(&calls(&kernel), &[end]);
    });
}

#[test]
fn pairs_have_nodes_of_their_own_and_commands_say_how_many_are_in_use() {
    before(Options::default(), |kernel| {
        let place = Place::new();
        let (mut driver, _) = place.driver(place.net(2).unwrap());
        driver.start(MQ.with(Features::bit(17)));
        wait_for(&driver, &kernel, "1 NET_SET_BACKEND 1 an interface");
        let (rings, first): (Vec<_>, _) = {
            let seen = kernel.0.lock();
            (seen.rings.keys().copied().collect(), seen.calls[4].clone())
        };
        assert_eq!(rings, [(0, 0), (0, 1), (1, 0), (1, 1)]);
        assert_eq!(first, "0 SET_FEATURES 0x130000000");
        for (command, answer) in [
            ([4, 0, 2, 0], 0),
            ([4, 0, 3, 0], 1),
            ([4, 0, 0, 0], 1),
            ([1, 1, 2, 0], 1),
        ] {
            place.told.lock().clear();
            driver.memory.put(DATA, &command);
            driver.memory.put(DATA + 0x100, &[0xff]);
            let table = RINGS[0] + 4 * 0x1_0000;
            driver.describe_at(table, (DATA, 4, NEXT, 1));
            driver.describe_at(table + 16, (DATA + 0x100, 1, WRITE, 0));
            let done = driver.used_in(4);
            driver.offer_in(4, 0);
            driver.write(0x50, 4);
            driver.wait(|d| d.used_in(4) == done + 1);
            assert_eq!(driver.memory.get(DATA + 0x100), [answer], "{command:?}");
            let told: &[&str] = if answer == 0 {
                &["0 true", "1 true"]
            } else {
                &[]
            };
            assert_eq!(*place.told.lock(), *told);
        }
        // They stay in use while the machine pauses.
        umbra_virtio::Transport::pause(&*driver.transport);
        umbra_virtio::Transport::resume(&*driver.transport);
        driver.wait(|_| place.told.lock().iter().any(|told| told == "0 false false"));
        assert!(!place.told.lock().contains(&"1 false".to_owned()));
    });
}

#[test]
fn a_frame_in_several_buffers_is_seen_whole_or_not_at_all() {
    before(Options::default(), |kernel| {
        let place = Place::new();
        let (mut driver, _) = place.driver(place.net(1).unwrap());
        driver.start(Features::bit(15));
        wait_for(&driver, &kernel, " NET_SET_BACKEND 1 an interface");
        let halves = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicBool::new(false));
        let (memory, saw, end) = (place.memory.clone(), halves.clone(), ended.clone());
        let watch = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if memory.get_u16(RINGS[2] + 2) % 2 == 1 {
                    saw.store(true, Ordering::Relaxed);
                }
            }
        });
        for round in 1..=50u16 {
            for head in [0, 1] {
                driver.describe(head, (DATA + 0x100 * u64::from(head), 64, WRITE, 0));
                driver.offer_in(0, head);
            }
            driver.write(0x50, 0);
            let mut used = Vec::new();
            driver.wait(|_| kernel.0.lock().index_is(0, 2 * round));
            let mut seen = kernel.0.lock();
            while let Some((head, buffers)) = seen.take((0, 0)) {
                fill(buffers[0], &[round as u8; 32]);
                used.push((head, 32));
            }
            assert_eq!(used.len(), 2);
            seen.give((0, 0), &used);
            drop(seen);
            driver.wait(|d| d.used_in(0) == 2 * round);
            assert_eq!(driver.memory.get(DATA + 0x100), [round as u8; 32]);
        }
        ended.store(true, Ordering::Relaxed);
        watch.join().unwrap();
        assert!(!halves.load(Ordering::Relaxed));
    });
}

#[test]
fn sockets_are_set_up_in_the_order_of_record_and_a_reset_ends_connections() {
    let options = Options {
        features: Options::default().features | 0b10,
        ..Options::default()
    };
    before(options, |kernel| {
        let place = Place::new();
        let (mut driver, _) = place.driver(place.vsock().unwrap());
        assert_eq!(driver.read(0x100), 7);
        let open = words(&["0 SET_OWNER", "0 GET_FEATURES", "0 VSOCK_SET_GUEST_CID 7"]);
        expect(&calls(&kernel), &[open]);
        driver.start(Features::bit(1));
        wait_for(&driver, &kernel, " VSOCK_SET_RUNNING 1");
        expect(
            &calls(&kernel),
            &[
                words(&["0 SET_FEATURES 0x130000002", "0 SET_MEM_TABLE 2"]),
                ring_calls(0, 0),
                ring_calls(0, 1),
                words(&["0 VSOCK_SET_RUNNING 1"]),
            ],
        );
        // A queue that is taken back stops both, and nothing is wrong with that.
        driver.write(0x30, 0);
        driver.write(0x44, 0);
        wait_for(&driver, &kernel, " SET_VRING_ERR 1");
        driver.start(Features::bit(1));
        wait_for(&driver, &kernel, " VSOCK_SET_RUNNING 1");
        let seen = calls(&kernel);
        let running = seen.iter().filter(|call| call.ends_with("SET_RUNNING 1"));
        assert_eq!((&*seen[0], running.count()), ("0 VSOCK_SET_RUNNING 0", 1));
        // Buffers for events stay where they are.
        driver.offer_in(2, 0);
        driver.write(0x50, 2);
        driver.write(0x70, 0);
        let end = words(&[
            "0 VSOCK_SET_RUNNING 0",
            "0 GET_VRING_BASE 0 0",
            "0 GET_VRING_BASE 1 0",
            "0 SET_OWNER",
            "0 VSOCK_SET_GUEST_CID 7",
        ]);
        expect(&calls(&kernel), &[end]);
        assert!(!driver.needs_reset());
    });
}

#[test]
fn a_context_identifier_of_another_guest_is_named() {
    let options = Options {
        fails: Some((2, libc::EADDRINUSE)),
        ..Options::default()
    };
    before(options, |_| {
        let refused = Place::new().vsock().err().unwrap();
        assert!(
            matches!(refused, BackEndError::CidInUse { cid: 7 }),
            "{refused}"
        );
    });
}

#[test]
fn a_vdpa_device_is_set_up_in_the_order_of_record_and_told_of_memory_by_pieces() {
    before(Options::default(), |kernel| {
        let place = Place::new();
        let (mut driver, _) = place.driver(place.vdpa().unwrap());
        assert_eq!(driver.read(0x8), 42);
        let open = words(&[
            "0 SET_OWNER",
            "0 GET_BACKEND_FEATURES",
            "0 SET_BACKEND_FEATURES 0x2",
            "0 GET_FEATURES",
            "0 VDPA_GET_DEVICE_ID",
            "0 VDPA_GET_VRING_NUM",
            "0 VDPA_GET_VQS_COUNT",
            "0 VDPA_GET_CONFIG_SIZE",
            "0 VDPA_GET_IOVA_RANGE",
            "0 VDPA_SET_CONFIG_CALL",
            "0 VDPA_GET_CONFIG 0 + 16",
        ]);
        expect(&calls(&kernel), &[open]);
        let begin = [
            words(&[
                "0 VDPA_SET_STATUS 0",
                "0 VDPA_SET_STATUS 1",
                "0 VDPA_SET_STATUS 3",
                // VERSION_1, ACCESS_PLATFORM, what is of our rings, and what the driver took.
                "0 SET_FEATURES 0x330008000",
                "0 VDPA_SET_STATUS 11",
                "0 VDPA_GET_STATUS",
            ]),
            words(&["0 IOTLB_UPDATE 0x0", "0 IOTLB_UPDATE 0xfff0000000000"]),
        ];
        let rings = [
            ring_calls(0, 0),
            ring_calls(0, 1),
            words(&[
                "0 VDPA_SET_VRING_ENABLE 0 1",
                "0 VDPA_SET_VRING_ENABLE 1 1",
                "0 VDPA_SET_STATUS 15",
            ]),
        ];
        driver.start(Features::bit(15));
        wait_for(&driver, &kernel, " VDPA_SET_STATUS 15");
        let seen = calls(&kernel);
        expect(
            &seen[seen
                .iter()
                .position(|c| c == "0 VDPA_SET_STATUS 1")
                .unwrap()
                - 1..],
            &[begin.concat(), rings.concat()],
        );
        place.add().unwrap();
        place.remove();
        let change = words(&["0 IOTLB_UPDATE 0x1000000", "0 IOTLB_INVALIDATE 0x1000000"]);
        expect(&calls(&kernel), &[change]);
        // It works, on rings that it finds by the guest's addresses.
        driver.memory.put(DATA, &[5; 4]);
        driver.describe(0, (DATA, 4, NEXT, 1));
        driver.describe(1, (DATA + 0x100, 4, WRITE, 0));
        driver.offer(0);
        driver.wait(|_| kernel.0.lock().index_is(0, 1));
        let mut seen = kernel.0.lock();
        let (head, buffers) = seen.take((0, 0)).unwrap();
        assert_eq!(buffers.len(), 2);
        fill(buffers[1], &[6; 4]);
        seen.give((0, 0), &[(head, 4)]);
        drop(seen);
        driver.wait(|d| d.used_in(0) == 1);
        assert_eq!(driver.memory.get(DATA + 0x100), [6; 4]);
        // Standing still is a reset, and memory is said anew after it.
        let _ = calls(&kernel);
        umbra_virtio::Transport::pause(&*driver.transport);
        umbra_virtio::Transport::resume(&*driver.transport);
        wait_for(&driver, &kernel, " VDPA_SET_STATUS 15");
        let seen = calls(&kernel);
        assert_eq!(seen[0], "0 VDPA_SET_STATUS 0");
        let again = words(&[
            "0 IOTLB_INVALIDATE 0x0",
            "0 IOTLB_UPDATE 0x0",
            "0 IOTLB_INVALIDATE 0xfff0000000000",
            "0 IOTLB_UPDATE 0xfff0000000000",
        ]);
        assert_eq!(seen[7..11], again);
    });
}

#[test]
fn a_vdpa_devices_configuration_is_its_own() {
    before(Options::default(), |kernel| {
        let place = Place::new();
        let (mut driver, _) = place.driver(place.vdpa().unwrap());
        driver.start(Features::NONE);
        assert_eq!(driver.read(0x100), 0x0403_0201);
        driver.write(0x104, 0xaabb_ccdd);
        assert_eq!(
            kernel.0.lock().options.config[4..8],
            [0xdd, 0xcc, 0xbb, 0xaa]
        );
        assert_eq!(driver.read(0x104), 0xaabb_ccdd);
        // Half outside.
        driver.write(0x100 + 14, 1);
        let generation = driver.read(0xfc);
        kernel.0.lock().change_config(&[9; 16]);
        driver.wait(|d| d.read(0xfc) != generation);
        assert_eq!(driver.read(0x100), 0x0909_0909);
        driver.wait(|d| d.read(0x60) & 2 != 0);
    });
}

/// Makes a device, starts it, has the map change, and resets it; returns what went wrong in words.
fn whole_life(
    make: fn(&Place) -> Result<VhostKernel, BackEndError>,
    kernel: &Kernel,
) -> Option<String> {
    let place = Place::new();
    let device = match make(&place) {
        Ok(device) => device,
        Err(error) => return Some(explain(&error)),
    };
    let queues = umbra_virtio::Device::queue_sizes(&device).len() as u32;
    let (mut driver, control) = place.driver(device);
    // As `Driver::start`, and the device may fail at once.
    driver.write(0x70, 0);
    assert!(driver.agree(Features::VERSION_1));
    (0..queues).for_each(|queue| driver.set_up(queue));
    driver.write(0x70, 15);
    let last = [
        " NET_SET_BACKEND 1 an interface",
        " VSOCK_SET_RUNNING 1",
        " VDPA_SET_STATUS 15",
    ];
    let is_last = |call: &String| last.iter().any(|last| call.ends_with(last));
    let runs = || kernel.0.lock().calls.iter().any(is_last);
    driver.wait(|d| d.needs_reset() || runs());
    let refused = place.add().err();
    driver.write(0x70, 0);
    let state = control.state();
    refused.map(|error| explain(&error)).or(state.error)
}

fn explain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(explain).unwrap_or_default();
    format!("{error}: {cause}")
}

#[test]
fn whichever_call_fails_is_named_and_no_descriptor_is_left() {
    let makes: [fn(&Place) -> _; 3] = [|p| p.net(1), Place::vsock, Place::vdpa];
    for make in makes {
        before(Options::default(), move |kernel| {
            assert_eq!(whole_life(make, &kernel), None);
            let all = kernel.0.lock().count;
            kernel.0.lock().forget();
            let left = descriptors();
            for turn in 0..all {
                {
                    let mut seen = kernel.0.lock();
                    (seen.count, seen.options.fails) = (0, Some((turn, libc::EIO)));
                    seen.calls.clear();
                }
                let wrong = whole_life(make, &kernel);
                let mut seen = kernel.0.lock();
                seen.forget();
                let failed = seen.calls.iter().find(|call| call.ends_with(" fails 5"));
                let failed = failed
                    .unwrap_or_else(|| panic!("turn {turn}: {:?}", seen.calls))
                    .clone();
                drop(seen);
                let name = failed.split(' ').nth(1).unwrap();
                let wrong = wrong.unwrap_or_else(|| panic!("{failed} is not told of"));
                let memory = ["SET_MEM_TABLE", "IOTLB_UPDATE"].contains(&name);
                let named = if memory { "pieces of memory" } else { name };
                assert!(wrong.contains(named), "{failed}: {wrong}");
                assert!(wrong.contains("os error 5"), "{failed}: {wrong}");
                assert_eq!(descriptors(), left, "{failed}");
            }
        });
    }
}

#[test]
fn a_kernel_that_takes_no_more_memory_has_the_change_taken_back() {
    before(Options::default(), |kernel| {
        let place = Place::new();
        let (mut driver, control) = place.driver(place.net(1).unwrap());
        driver.start(Features::NONE);
        wait_for(&driver, &kernel, " NET_SET_BACKEND 1 an interface");
        let slots = place.memory.space.load().slots().len();
        {
            let mut seen = kernel.0.lock();
            seen.options.fails = Some((seen.count, libc::E2BIG));
        }
        let refused = place.add().unwrap_err();
        assert!(matches!(refused, SlotError::Follower { .. }), "{refused}");
        assert_eq!(place.memory.space.load().slots().len(), slots);
        assert!(control.state().connected && !driver.needs_reset());
        place.add().unwrap();
    });
}

#[test]
fn one_that_cannot_go_on_needs_a_reset_and_works_after_it() {
    before(Options::default(), |kernel| {
        let place = Place::new();
        let (mut driver, control) = place.driver(place.net(1).unwrap());
        driver.start(Features::NONE);
        wait_for(&driver, &kernel, " NET_SET_BACKEND 1 an interface");
        kernel.0.lock().fault((0, 1));
        driver.wait(Driver::needs_reset);
        let state = control.state();
        assert!(!state.connected && state.error.unwrap().contains("cannot go on"));
        let _ = calls(&kernel);
        driver.start(Features::NONE);
        wait_for(&driver, &kernel, " NET_SET_BACKEND 1 an interface");
        assert!(calls(&kernel)[0].ends_with(" SET_OWNER"));
        assert!(control.state().connected && !driver.needs_reset());
    });
}

#[test]
fn a_node_that_is_not_there_is_named_with_its_module_and_a_way_out() {
    let memory = Memory::new();
    let hub = Hub::new(&memory.space).unwrap();
    let node: PathBuf = "/dev/vhost-of-nobody".into();
    let net = VhostNetOptions {
        name: "test".into(),
        node: node.clone(),
        ports: vec![Box::new(End {
            file: File::open("/dev/null").unwrap(),
            told: Arc::default(),
            index: 0,
        })],
        mac: Mac([2; 6]),
        mtu: None,
    };
    let vsock = VhostVsockOptions {
        name: "test".into(),
        node: node.clone(),
        cid: 3,
    };
    let vdpa = VdpaOptions {
        name: "test".into(),
        node,
    };
    let table = [
        (
            VhostKernel::net(net, &hub),
            "modprobe vhost_net",
            "',vhost' away",
        ),
        (
            VhostKernel::vsock(vsock, &hub),
            "modprobe vhost_vsock",
            "'path='",
        ),
        (
            VhostKernel::vdpa(vdpa, &hub),
            "modprobe vhost_vdpa",
            "vdpa dev show",
        ),
    ];
    for (made, module, instead) in table {
        let refused = made.err().unwrap().to_string();
        for part in ["/dev/vhost-of-nobody", module, instead] {
            assert!(refused.contains(part), "{refused}");
        }
    }
}
