//! Who owns the machine that is asked about: a real one, whose guest halts. When it has ended there is another one.

use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use umbra_api::firecracker::fault::Fault;
use umbra_api::firecracker::instance::Message;
use umbra_api::v1::routes::{Given, Order};
use umbra_api::v1::types::{VmInfo, VmState};
use umbra_api::v1::{Code, Problem};
use umbra_vmm::{
    Backend, BalloonSpec, Builder, EventLog, Handle, Plan, RngSpec, Spec, VirtioKind, Vm,
};

/// A machine, and what happens to it.
struct Machine {
    handle: Handle,
    log: EventLog,
    _vm: Vm,
}

/// Writes a multiboot kernel that halts for ever.
fn kernel() -> PathBuf {
    let (magic, flags, load, entry) = (0x1bad_b002u32, 1u32 << 16, 0x10_0000u32, 0x10_0020u32);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let end = entry + 4;
    let words = [magic, flags, checksum, load, load, end, end, entry];
    let mut file: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    // cli; hlt; jmp
    file.extend([0xfa, 0xf4, 0xeb, 0xfc]);
    let path = std::env::temp_dir().join(format!("umbra-fuzz-kernel-{}", std::process::id()));
    std::fs::write(&path, file).expect("a file in a place of its own");
    path
}

fn machine(kernel: &Path) -> Machine {
    let spec = Spec::new(kernel)
        .memory(16 << 20)
        .backend(Backend::Soft)
        .cpus(2)
        .keyboard()
        .pci()
        .virtio("r", VirtioKind::Rng(RngSpec::default()))
        .virtio("b", VirtioKind::Balloon(BalloonSpec::default()));
    let log = EventLog::default();
    let vm = Builder::new(spec).log(log.clone()).build();
    let mut vm = vm.expect("the host has room for a small machine");
    vm.start().expect("the host has a thread for it");
    Machine {
        handle: vm.handle(),
        log,
        _vm: vm,
    }
}

/// Answers until nobody asks any more.
pub fn serve(messages: Receiver<Message>) {
    let kernel = kernel();
    let mut now = machine(&kernel);
    for message in messages {
        match message {
            Message::Wanted(_, reply) => reply(Err(Fault::BeforeStart)),
            Message::Asked(order, reply) => {
                // A stray interrupt is enough: it has no handler.
                if now.handle.cpus().is_err() {
                    now = machine(&kernel);
                }
                reply(answer(&now, order));
            }
            Message::Ended(_) | Message::Stop => {}
        }
    }
}

fn answer(machine: &Machine, order: Order) -> Result<Given, Problem> {
    let Machine { handle, log, .. } = machine;
    match order {
        Order::Info => {}
        Order::Log => return Ok(Given::Log(log.clone())),
        Order::Handle | Order::Devices => return Ok(Given::Handle(handle.clone())),
        Order::Spec => return Ok(Given::Spec(Box::new(Spec::new("k")))),
        Order::PutSpec(spec) => {
            let _checked = Plan::new(*spec).map_err(umbra_vmm::Error::Plan)?;
            return Ok(Given::Done);
        }
        Order::Pause => drop(handle.pause()?),
        Order::Resume => handle.resume(),
        Order::Reset => handle.reset()?,
        Order::Stop => handle.stop(),
        // A guest that never lets it go would be waited for.
        Order::Remove(_) | Order::Forget(_) => return Ok(Given::Done),
        // Who makes devices opens files of the host.
        Order::Start | Order::PutDevice(_) => {
            return Err(Problem::new(Code::NotSupported, "not here"));
        }
    }
    Ok(Given::Info(VmInfo {
        id: "fuzz".into(),
        state: VmState::Running,
        boots: handle.boots(),
        backend: None,
        fallback: None,
    }))
}
