//! The loaders on random and broken kernels, initrds and modules: no panic, no huge allocation, no
//! write outside guest memory, and nothing put where something else is.
#![no_main]

mod allocator;
mod images;
mod machine;

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use umbra_boot::{
    Image, KeyboardController, Loaded, Module, PciRoot, Platform, Protocol, Request, Role,
    VirtioMmio, layout, load,
};
use umbra_fuzz::Source;

use machine::Memory;

fn platform(source: &mut Source<'_>) -> Platform {
    let (bits, virtio, devices) = (source.u8(), source.u8(), source.u8());
    Platform {
        cpus: 1 + u32::from(bits & 63),
        local_apic: 0xfee0_0000,
        ioapic: 0xfec0_0000,
        serial: (bits & 64 != 0).then_some((0x3f8, 4)),
        cmos: (bits & 128 != 0).then_some(0x70),
        virtio_mmio: (0..u32::from(virtio & 63))
            .map(|n| VirtioMmio {
                address: 0xfeb0_0000 + 0x1000 * n,
                len: 0x1000,
                interrupt: 16 + n % 8,
            })
            .collect(),
        keyboard: (devices & 2 != 0).then_some(KeyboardController {
            data: 0x60,
            command: 0x64,
            interrupt: 1,
        }),
        pci: (devices & 1 != 0).then_some(PciRoot {
            ecam: 0xe000_0000,
            window: (0xc000_0000, 0xdfff_ffff),
            hotplug: 0x620,
        }),
        power_button: (devices & 4 != 0).then_some(0x610),
        panic_port: (devices & 8 != 0).then_some(0x505),
        event_interrupt: 9,
        sleep_control: 0x600,
        timer: 0x608,
        reset: (0x602, 1),
    }
}

/// Makes a file of bytes that a loader reads; `None` if it is refused.
fn image(role: Role, name: &str, bytes: &[u8]) -> Option<Image> {
    Image::from_file(role, Path::new(name), machine::file(bytes)).ok()
}

fuzz_target!(init: umbra_fuzz::write_seeds(images::seeds()), |input: &[u8]| {
    let mut source = Source::new(input);
    let memory = Memory::new(&mut source);
    let platform = platform(&mut source);
    let line = usize::from(source.u16() & 0xfff);
    let command_line = "x".repeat(line);
    let modules = (0..source.u8() & 3)
        .filter_map(|number| {
            let bytes = vec![number; usize::from(source.u16())];
            Some(Module {
                image: image(Role::Module, "module", &bytes)?,
                command_line: "m".repeat(source.u8().into()),
            })
        })
        .collect();
    let initrd = images::initrd(&mut source);
    let initrd = initrd.and_then(|bytes| image(Role::Initrd, "initrd", &bytes));
    let Some(kernel) = image(Role::Kernel, "kernel", &images::kernel(&mut source)) else {
        return;
    };
    let request = Request {
        kernel,
        initrd,
        modules,
        command_line: &command_line,
        platform,
    };
    let loaded = allocator::limited(|| load(&memory.guest, request));
    memory.check();
    match loaded {
        Ok(loaded) => check(&loaded, memory.low),
        Err(error) => {
            let message = error.to_string();
            assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
        }
    }
});

/// What must be true of everything that was loaded.
fn check(loaded: &Loaded, ram: u64) {
    let (start, len) = loaded.kernel;
    let end = start + len;
    assert!(end <= ram, "{loaded:x?}");
    let lowest = match loaded.protocol {
        Protocol::Multiboot => 0x1000,
        _ => layout::HIGH_RAM,
    };
    assert!(start >= lowest, "{loaded:x?}");
    assert_eq!(loaded.rsdp, layout::ACPI);
    if let Some((initrd, len)) = loaded.initrd {
        assert!(initrd >= end && initrd + len <= ram, "{loaded:x?}");
    }
}
