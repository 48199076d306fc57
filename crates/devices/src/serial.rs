//! A 16550 serial port on `vm-superio`, with a queue before its receiver.
//!
//! Input is never lost to the guest's start-up: a driver that initialises a port reads and throws
//! away what it finds there (PC16550D, 8.6; Linux `serial8250_do_startup`), so input waits in the
//! queue until the guest shows that it listens. It does so by enabling the receive interrupt together with
//! OUT2, which connects the interrupt on a PC (a driver that only looks which chip this is writes the
//! interrupt enable register, too), or, a guest that polls, by reading the line status over and over
//! and nothing else.
//!
//! Output may have a limit. A byte over it is dropped and counted, and the guest goes on: a processor that waited for
//! tokens in the middle of a store would stop all that it does, not only its console.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use umbra_irq::Line;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, SerialState};

use crate::virtio::limiter::{Bucket, Limiter, Limits};

/// Registers.
const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_IDENTIFICATION: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;

/// Interrupt enable: received data, transmitter empty.
const RECEIVE: u8 = 1;
const TRANSMIT: u8 = 1 << 1;
/// Interrupt identification: nothing, received data.
const NOTHING: u8 = 1;
const RECEIVED: u8 = 1 << 2;
/// Line status: there is received data.
const DATA_READY: u8 = 1;
/// Line control: registers 0 and 1 are the divisor.
const DIVISOR_ACCESS: u8 = 1 << 7;

/// Modem control: the interrupt output is connected.
const OUT2: u8 = 1 << 3;

/// Readings of the line status in a row, with no other access between them, that mean "I poll". A
/// driver that sends or initialises reads it once or twice and then does something else.
const POLLS: u32 = 32;

/// Bytes sent without an interrupt that mean "I send by polling".
const SENT: u32 = 64;

/// How many bytes of input wait for the guest.
const QUEUE: usize = 4096;

type SpaceListener = Box<dyn Fn() + Send + Sync>;
type OutputListener = Box<dyn FnOnce() + Send + Sync>;
type Uart = vm_superio::Serial<Interrupt, NoEvents, Box<dyn Write + Send>>;

/// Output with a limit, over which bytes are dropped.
struct Limited {
    output: Box<dyn Write + Send>,
    limiter: Limiter,
    dropped: Arc<AtomicU64>,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len() as u64;
        if self.limiter.take(len, Instant::now()).is_err() {
            self.dropped.fetch_add(len, Ordering::Relaxed);
            return Ok(bytes.len());
        }
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// The interrupt output as `vm-superio` drives it: a pulse an event.
struct Interrupt(Arc<dyn Line>);

impl Trigger for Interrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

struct Inner {
    uart: Uart,
    queue: VecDeque<u8>,
    polls: u32,
    lost: u64,
    on_space: SpaceListener,
    polled: Option<Polled>,
}

/// Who hears how the guest sends.
struct Polled {
    /// Bytes that were sent without the transmitter's interrupt.
    sent: u32,
    /// Hears when they are many; then `None`.
    begins: Option<OutputListener>,
    /// Hears when the guest takes the interrupt after all.
    ends: OutputListener,
}

/// A serial port.
pub struct Serial {
    inner: Mutex<Inner>,
    dropped: Arc<AtomicU64>,
}

impl Serial {
    /// How many ports the device takes.
    pub const PORTS: u16 = 8;

    /// Makes a port that pulses `line` and sends to `output`, byte by byte, on the processor's
    /// thread and with the port's lock held: `output` must not block for long.
    pub fn new(line: Arc<dyn Line>, output: Box<dyn Write + Send>) -> Self {
        Self::limited(line, output, None)
    }

    /// Makes a port as [`new`](Self::new) does, with a limit for the bytes that are sent. The bucket is full.
    pub fn limited(
        line: Arc<dyn Line>,
        output: Box<dyn Write + Send>,
        limit: Option<Bucket>,
    ) -> Self {
        let limits = Limits {
            bandwidth: limit,
            operations: None,
        };
        let dropped = Arc::new(AtomicU64::new(0));
        let output = Box::new(Limited {
            output,
            limiter: Limiter::new(limits, Instant::now()),
            dropped: dropped.clone(),
        });
        // After a reset OUT2 is off (PC16550D, table 1).
        let reset = SerialState {
            modem_control: 0,
            ..SerialState::default()
        };
        let uart = Uart::from_state(&reset, Interrupt(line), NoEvents, output)
            .expect("the state holds no input, so it fits, and raises no interrupt");
        Self {
            inner: Mutex::new(Inner {
                uart,
                queue: VecDeque::new(),
                polls: 0,
                lost: 0,
                on_space: Box::new(|| {}),
                polled: None,
            }),
            dropped,
        }
    }

    /// Sets what is called when input was refused and there is room again. It is called with the
    /// port's lock held: it may set a flag or wake a thread, and nothing else.
    pub fn on_space(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.inner.lock().on_space = Box::new(listener);
    }

    /// Sets what is called, once each: when the guest has sent many bytes without the transmitter's
    /// interrupt, so that nobody waits for what a write to the data register does; and before it
    /// enables that interrupt after all. Both are called on a processor's thread with the port's lock
    /// held.
    pub fn on_polled_output(
        &self,
        begins: impl FnOnce() + Send + Sync + 'static,
        ends: impl FnOnce() + Send + Sync + 'static,
    ) {
        self.inner.lock().polled = Some(Polled {
            sent: 0,
            begins: Some(Box::new(begins)),
            ends: Box::new(ends),
        });
    }

    /// Takes input for the guest; returns how many bytes there was room for. Never blocks.
    #[must_use = "bytes that were not taken have to be offered again"]
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut inner = self.inner.lock();
        let taken = bytes.len().min(QUEUE - inner.queue.len());
        inner.queue.extend(&bytes[..taken]);
        inner.feed();
        taken
    }

    /// Returns how many bytes of input the guest has not got yet.
    pub fn waiting(&self) -> usize {
        self.inner.lock().queue.len()
    }

    /// Returns how many bytes were dropped because they were over the limit.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns how many bytes the output refused.
    pub fn lost(&self) -> u64 {
        self.inner.lock().lost
    }
}

impl Inner {
    fn receive_enabled(&mut self) -> bool {
        // While the divisor is accessed register 1 is not the interrupt enable register. Reading
        // these three has no side effect.
        self.uart.read(LINE_CONTROL) & DIVISOR_ACCESS == 0
            && self.uart.read(INTERRUPT_ENABLE) & RECEIVE != 0
            && self.uart.read(MODEM_CONTROL) & OUT2 != 0
    }

    /// Tells whether there is received data that the guest wants to be interrupted for.
    fn has_received(&mut self) -> bool {
        self.uart.read(LINE_STATUS) & DATA_READY != 0
            && self.uart.read(INTERRUPT_ENABLE) & RECEIVE != 0
            && self.uart.read(LINE_CONTROL) & DIVISOR_ACCESS == 0
    }

    /// Moves input from the queue into the receiver, if the guest listens.
    fn feed(&mut self) {
        let listens = self.polls >= POLLS || self.receive_enabled();
        if self.queue.is_empty() || !listens {
            return;
        }
        let room = self.uart.fifo_capacity().min(self.queue.len());
        let bytes: Vec<u8> = self.queue.iter().copied().take(room).collect();
        // In loop mode nothing is taken; a full receiver has no room. Neither loses anything.
        let taken = if room == 0 {
            0
        } else {
            self.uart.enqueue_raw_bytes(&bytes).unwrap_or(0)
        };
        let was_full = self.queue.len() == QUEUE;
        self.queue.drain(..taken);
        if was_full && taken > 0 {
            (self.on_space)();
        }
    }

    fn read(&mut self, register: u8) -> u8 {
        if register == LINE_STATUS {
            self.polls = self.polls.saturating_add(1);
            self.feed();
        } else if register != DATA {
            self.polls = 0;
        }
        let value = self.uart.read(register);
        if register == INTERRUPT_IDENTIFICATION && self.has_received() {
            // `vm-superio` names a byte once, when it comes. The chip names what is there until all of it was
            // read (PC16550D, 8.3), and a driver that reads so much at a time and no more (Linux: 256 bytes)
            // goes by that.
            return value & !NOTHING | RECEIVED;
        }
        if register == DATA {
            // A guest that polls goes on to do so: it gets the rest without waiting again.
            self.feed();
        }
        value
    }

    /// Notices how the guest sends.
    fn watch_output(&mut self, register: u8, value: u8) {
        match (register, &mut self.polled) {
            (DATA, Some(polled)) => {
                polled.sent = polled.sent.saturating_add(1);
                if polled.sent == SENT
                    && let Some(begins) = polled.begins.take()
                {
                    begins();
                }
            }
            (INTERRUPT_ENABLE, polled) if value & TRANSMIT != 0 => {
                // Who never heard of a beginning hears of no end.
                if let Some(Polled {
                    begins: None, ends, ..
                }) = polled.take()
                {
                    ends();
                }
            }
            _ => {}
        }
    }

    fn write(&mut self, register: u8, value: u8) {
        self.polls = 0;
        if self.polled.is_some() && self.uart.read(LINE_CONTROL) & DIVISOR_ACCESS == 0 {
            self.watch_output(register, value);
        }
        if let Err(error) = self.uart.write(register, value) {
            self.lost += 1;
            tracing::trace!(?error, "console output was refused");
        }
        if matches!(register, INTERRUPT_ENABLE | LINE_CONTROL | MODEM_CONTROL) {
            self.feed();
        }
    }
}

impl DevicePio for Serial {
    /// The chip is eight bits wide: each byte of a wider access is a register of its own.
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let mut inner = self.inner.lock();
        for (register, byte) in (offset..).zip(data) {
            *byte = inner.read(register as u8);
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut inner = self.inner.lock();
        for (register, byte) in (offset..).zip(data) {
            inner.write(register as u8, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[derive(Default)]
    struct Pulses(AtomicU32);

    impl Line for Pulses {
        fn set(&self, high: bool) {
            self.0.fetch_add(u32::from(high), Ordering::Relaxed);
        }
    }

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Bench {
        serial: Serial,
        line: Arc<Pulses>,
        screen: Screen,
    }

    fn bench() -> Bench {
        let (line, screen) = (Arc::new(Pulses::default()), Screen::default());
        let serial = Serial::new(line.clone(), Box::new(screen.clone()));
        Bench {
            serial,
            line,
            screen,
        }
    }

    impl Bench {
        fn get(&self, register: u8) -> u8 {
            let mut data = [0];
            self.serial
                .pio_read(PioAddress(0x3f8), register.into(), &mut data);
            data[0]
        }

        fn set(&self, register: u8, value: u8) {
            self.serial
                .pio_write(PioAddress(0x3f8), register.into(), &[value]);
        }

        fn pulses(&self) -> u32 {
            self.line.0.load(Ordering::Relaxed)
        }

        /// Reads as a driver's interrupt handler does: while there is data.
        fn drain(&self) -> Vec<u8> {
            std::iter::from_fn(|| (self.get(LINE_STATUS) & 1 != 0).then(|| self.get(DATA)))
                .collect()
        }
    }

    #[test]
    fn what_the_guest_sends_comes_out() {
        let bench = bench();
        b"hello".iter().for_each(|byte| bench.set(DATA, *byte));
        assert_eq!(*bench.screen.0.lock(), b"hello");
    }

    #[test]
    fn input_survives_the_start_up_of_a_driver() {
        let bench = bench();
        assert_eq!(bench.serial.input(b"ls\n"), 3);
        // autoconfig: which chip is this? Then serial8250_do_startup: clear the FIFOs, then read everything "for luck".
        bench.set(INTERRUPT_ENABLE, 0xf);
        bench.get(INTERRUPT_ENABLE);
        bench.set(INTERRUPT_ENABLE, 0);
        for value in [1, 7, 0] {
            bench.set(2, value);
        }
        bench.set(MODEM_CONTROL, OUT2);
        for register in [LINE_STATUS, DATA, 2, 6].repeat(20) {
            bench.get(register);
        }
        bench.set(LINE_CONTROL, 0x83);
        bench.set(1, 1); // the divisor's high byte, not the interrupt enable register
        assert_eq!(bench.serial.waiting(), 3);
        bench.set(LINE_CONTROL, 3);
        let before = bench.pulses();
        bench.set(INTERRUPT_ENABLE, 5);
        assert_eq!(bench.pulses(), before + 1);
        assert_eq!(bench.drain(), b"ls\n");
    }

    #[test]
    fn a_guest_that_polls_gets_input_without_interrupts() {
        let bench = bench();
        assert_eq!(bench.serial.input(b"x"), 1);
        bench.set(DATA, b'>');
        let polls = (0..100).position(|_| bench.get(LINE_STATUS) & 1 != 0);
        assert_eq!(polls, Some(POLLS as usize - 1));
        assert_eq!((bench.get(DATA), bench.pulses()), (b'x', 0));
    }

    #[test]
    fn a_long_paste_arrives_whole_and_in_order() {
        let bench = bench();
        bench.set(MODEM_CONTROL, OUT2);
        bench.set(INTERRUPT_ENABLE, 1);
        let room = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&room);
        bench.serial.on_space(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let paste: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let (mut sent, mut got) = (0, Vec::new());
        while got.len() < paste.len() {
            sent += bench.serial.input(&paste[sent..]);
            got.extend(bench.drain());
        }
        assert_eq!(got, paste);
        assert!(
            room.load(Ordering::Relaxed) > 0,
            "the sender was told to go on"
        );
    }

    /// As Linux's handler does: at most 256 bytes at a time, as long as the chip names a reason.
    #[test]
    fn a_driver_that_reads_so_much_and_no_more_is_told_that_there_is_more() {
        for len in [1, 255, 256, 257, 300, 320, 1000] {
            let bench = bench();
            bench.set(MODEM_CONTROL, OUT2);
            bench.set(INTERRUPT_ENABLE, RECEIVE);
            let text: Vec<u8> = (0..len).map(|n| n as u8).collect();
            assert_eq!(bench.serial.input(&text), text.len());
            assert!(bench.pulses() > 0);
            let mut got = Vec::new();
            while bench.get(INTERRUPT_IDENTIFICATION) & NOTHING == 0 {
                let ready = |_: &usize| bench.get(LINE_STATUS) & DATA_READY != 0;
                got.extend((0..256).take_while(ready).map(|_| bench.get(DATA)));
            }
            assert!(got == text, "{} of {len}", got.len());
        }
    }

    #[test]
    fn each_refill_of_the_receiver_interrupts() {
        let bench = bench();
        bench.set(MODEM_CONTROL, OUT2);
        bench.set(INTERRUPT_ENABLE, 1);
        assert_eq!(bench.serial.input(&[7; 100]), 100);
        let first = bench.pulses();
        assert_eq!(first, 1);
        let got: Vec<u8> = (0..64).map(|_| bench.get(DATA)).collect();
        assert_eq!(got.len() + bench.drain().len(), 100);
    }

    #[test]
    fn a_broken_output_is_counted_and_does_not_stop_the_guest() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let serial = Serial::new(Arc::new(Pulses::default()), Box::new(Broken));
        serial.pio_write(PioAddress(0x3f8), 0, b"a");
        assert_eq!(serial.lost(), 1);
    }

    #[test]
    fn what_is_over_the_limit_is_dropped_and_counted_and_later_bytes_pass_again() {
        let screen = Screen::default();
        let limit = Bucket {
            size: 3,
            one_time_burst: 2,
            refill_time: std::time::Duration::from_millis(300),
        };
        let line = Arc::new(Pulses::default());
        let serial = Serial::limited(line, Box::new(screen.clone()), Some(limit));
        let send = |byte| serial.pio_write(PioAddress(0x3f8), DATA.into(), &[byte]);
        (b'a'..b'k').for_each(send);
        let sent = screen.0.lock().clone();
        assert!(sent.starts_with(b"abcde"), "{sent:?}");
        assert_eq!(serial.dropped() + sent.len() as u64, 10);
        assert!(serial.dropped() >= 4, "{sent:?}");
        std::thread::sleep(std::time::Duration::from_millis(310));
        send(b'z');
        assert_eq!(screen.0.lock().last(), Some(&b'z'));
        assert_eq!(serial.lost(), 0);
    }
}
