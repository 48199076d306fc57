//! What the host presses: Ctrl-Alt-Del, the power button, and the button that sends an NMI; in stock guests.

use std::time::{Duration, Instant};

use umbra_vmm::{HandleError, Outcome, Spec};

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::LINUX_6_1;
use crate::support::shell::Shell;

/// Asks until the guest says something, and something good.
fn wait(shell: &Shell, commands: &str, good: impl Fn(&str) -> bool) -> String {
    let begin = Instant::now();
    loop {
        let answer = shell.ask(commands);
        if good(&answer) {
            return answer;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ctrl_alt_del_restarts(backend: &str, more: &str) {
    let Some(shell) = Shell::boot(backend, LINUX_6_1, more, Spec::keyboard) else {
        return;
    };
    let keyboards = "grep -c 'AT .*keyboard' /proc/bus/input/devices";
    wait(&shell, keyboards, |count| count == "1");
    let waited =
        "dmesg | grep -ciE 'i8042.*(no controller|timeout|fail|unable)|atkbd.*(unknown|fail)'";
    assert_eq!(shell.ask(waited), "0", "{}", shell.screen.text());
    let handle = shell.handle.clone();
    handle.press_ctrl_alt_del().unwrap();
    shell.expect(&Outcome::Reset);
    assert_eq!(handle.press_ctrl_alt_del(), Err(HandleError::Ended));
    assert_eq!(handle.press_power_button(), Err(HandleError::Ended));
    assert_eq!(handle.inject_nmi(None), Err(HandleError::Ended));
}

fn ctrl_alt_del_restarts_a_guest_with_a_keyboard(backend: &str) {
    ctrl_alt_del_restarts(backend, "");
}

/// As Firecracker's guests are started.
fn ctrl_alt_del_restarts_a_guest_that_asks_its_keyboard_nothing(backend: &str) {
    let quiet = "i8042.noaux i8042.nomux i8042.dumbkbd reboot=k";
    ctrl_alt_del_restarts(backend, quiet);
}

fn a_machine_without_a_keyboard_says_so_and_its_guest_looks_for_none(backend: &str) {
    let Some(shell) = Shell::boot(backend, LINUX_6_1, "", |spec| spec) else {
        return;
    };
    let refused = shell.handle.press_ctrl_alt_del();
    assert_eq!(refused, Err(HandleError::NoKeyboard));
    assert_eq!(shell.ask("grep -ci keyboard /proc/bus/input/devices"), "0");
    shell.power_off();
}

/// The event that a program reads of the button: EV_KEY, KEY_POWER, pressed.
fn the_power_button_is_a_key(backend: &str, change: fn(Spec) -> Spec) {
    let Some(shell) = Shell::boot(backend, LINUX_6_1, "", change) else {
        return;
    };
    shell.ask("modprobe -a button evdev");
    let find = "sed -n '/Power Button/,/^$/ s/.*Handlers=.*\\(event[0-9]*\\).*/\\1/p' \
                /proc/bus/input/devices";
    let device = wait(&shell, find, |name| name.starts_with("event"));
    for pressed in 1..=2 {
        // A press, and the event that ends it; then what it is when it is let go.
        shell.ask(&format!(
            "rm -f /key; dd if=/dev/input/{device} bs=24 count=4 of=/key >/dev/null 2>&1 & \
             until ls -l /proc/$!/fd | grep -q {device}; do :; done"
        ));
        shell.handle.press_power_button().unwrap();
        let words = "dd if=/key bs=1 skip=16 count=8 2>/dev/null | hexdump -e '8/1 \"%02x\"'";
        wait(&shell, words, |words| words == "0100740001000000");
        let complaints = "dmesg | grep -ciE 'acpi.*(error|exception)'";
        assert_eq!(shell.ask(complaints), "0", "{pressed}");
    }
    shell.power_off();
}

fn the_power_button_is_a_key_of_the_guest(backend: &str) {
    the_power_button_is_a_key(backend, |spec| spec);
}

fn the_power_button_is_a_key_beside_pci_hot_plug(backend: &str) {
    the_power_button_is_a_key(backend, Spec::pci);
}

fn an_nmi_reaches_one_processor_or_all(backend: &str) {
    let Some(shell) = Shell::boot(backend, LINUX_6_1, "", |spec| spec.cpus(2)) else {
        return;
    };
    let counts = "awk '/NMI:/ { print $2, $3 }' /proc/interrupts";
    assert_eq!(shell.ask(counts), "0 0");
    shell.handle.inject_nmi(Some(1)).unwrap();
    wait(&shell, counts, |counts| counts == "0 1");
    shell.handle.inject_nmi(None).unwrap();
    wait(&shell, counts, |counts| counts == "1 2");
    let refused = shell.handle.inject_nmi(Some(2));
    assert_eq!(refused, Err(HandleError::NoSuchCpu { cpu: 2, last: 1 }));
    shell.power_off();
}

on_each_stock_backend! {
    ctrl_alt_del_restarts_a_guest_with_a_keyboard,
    ctrl_alt_del_restarts_a_guest_that_asks_its_keyboard_nothing,
    a_machine_without_a_keyboard_says_so_and_its_guest_looks_for_none,
    the_power_button_is_a_key_of_the_guest,
    the_power_button_is_a_key_beside_pci_hot_plug,
    an_nmi_reaches_one_processor_or_all,
}
