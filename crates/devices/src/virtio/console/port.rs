//! One port.

use std::io::{Read, Write};

use umbra_slots::DmaMemory;
use umbra_virtio::{Chain, Fault, Interrupt, Queue, QueueError, Served};

use super::message::Say;
use super::{PortHost, PortOptions, Wants};

/// Bytes that are moved at a time.
const PIECE: usize = 0x4000;
/// Bytes after which another port has its turn.
const TURN: usize = 16 * PIECE;

/// What is yet to be said of a port, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pending {
    add: bool,
    console: bool,
    name: bool,
    open: bool,
    resize: bool,
}

/// The port.
pub struct Port {
    name: Option<String>,
    is_console: bool,
    host: Box<dyn PortHost>,
    pub receive: Option<Queue>,
    pub transmit: Option<Queue>,
    /// Somebody in the guest has it open.
    pub is_open: bool,
    /// The driver has added it.
    is_ready: bool,
    /// Whether the driver believes that somebody is at the host's end.
    said_open: bool,
    pending: Pending,
    /// Bytes of the chain that is next to be sent that have gone already.
    sent: usize,
    wants: Wants,
}

impl Port {
    pub fn new(options: PortOptions) -> Self {
        let name = options.name;
        let long = |name: &String| name.len() > super::Console::NAME_MAX;
        assert!(
            !name.as_ref().is_some_and(long),
            "a name of 128 bytes at most"
        );
        Self {
            name,
            is_console: options.is_console,
            host: options.host,
            receive: None,
            transmit: None,
            is_open: false,
            is_ready: false,
            said_open: false,
            pending: Pending::default(),
            sent: 0,
            wants: Wants::default(),
        }
    }

    pub fn reset(&mut self) {
        self.is_open = false;
        self.is_ready = false;
        self.said_open = false;
        self.pending = Pending::default();
        self.sent = 0;
    }

    /// Returns the host's end, and what it is wanted for.
    pub fn host(&self) -> (&dyn PortHost, Wants) {
        (&*self.host, self.wants)
    }

    /// Looks who is at the host's end.
    pub fn tend(&mut self) {
        self.host.tend();
        if self.is_ready && self.host.is_open() != self.said_open {
            self.pending.open = true;
        }
    }

    /// Writes what cannot wait; what the host does not take is lost.
    pub fn cry(&mut self, bytes: &[u8]) {
        self.host.tend();
        let _ = self.host.write(bytes);
    }

    /// The driver wants to know of it.
    pub fn announce(&mut self) {
        self.pending.add = true;
    }

    /// The driver has added it, or cannot.
    pub fn set_ready(&mut self, ready: bool) {
        self.is_ready = ready;
        self.said_open = false;
        self.pending.console = ready && self.is_console;
        self.pending.name = ready && self.name.is_some();
        self.pending.open = ready && self.host.is_open();
        self.pending.resize = ready && self.is_console;
    }

    /// The terminal has another size.
    pub fn resized(&mut self) {
        self.pending.resize = self.is_ready && self.is_console;
    }

    /// Takes what is to be said next; a size only if there is one.
    pub fn next_message(&mut self, size: Option<(u16, u16)>) -> Option<Say<'_>> {
        let take = std::mem::take::<bool>;
        let Pending {
            add,
            console,
            name,
            open,
            resize,
        } = &mut self.pending;
        if take(add) {
            return Some(Say::Add);
        }
        if take(console) {
            return Some(Say::Console);
        }
        if take(name) {
            return self.name.as_deref().map(Say::Name);
        }
        if take(open) {
            self.said_open = self.host.is_open();
            return Some(Say::Open(self.said_open));
        }
        if take(resize) {
            return size.map(|(columns, rows)| Say::Resize(columns, rows));
        }
        None
    }

    /// Moves bytes both ways; tells whether there may be more at once.
    pub fn work(
        &mut self,
        memory: &DmaMemory,
        interrupt: &Interrupt,
        piece: &mut Vec<u8>,
    ) -> Result<bool, Fault> {
        piece.resize(PIECE, 0);
        self.wants = Wants::default();
        let mut again = false;
        if let Some(mut queue) = self.transmit.take() {
            let result = self.send_all(&mut queue, (memory, interrupt), piece);
            self.transmit = Some(queue);
            again |= result?;
        }
        if self.is_open
            && let Some(mut queue) = self.receive.take()
        {
            let result = self.receive_all(&mut queue, (memory, interrupt), piece);
            self.receive = Some(queue);
            again |= result?;
        }
        Ok(again)
    }

    fn send_all(
        &mut self,
        queue: &mut Queue,
        (memory, interrupt): (&DmaMemory, &Interrupt),
        piece: &mut [u8],
    ) -> Result<bool, Fault> {
        let mut left = TURN;
        let served = queue.serve(memory, interrupt, |chain| {
            let done = self.send(chain, &mut left, piece)?;
            Ok::<_, Fault>(done.then_some(0))
        })?;
        let blocked = self.wants.output;
        Ok(served == Served::More || served == Served::Kept && !blocked)
    }

    /// Sends a chain; `false` if some of it is left.
    fn send(
        &mut self,
        chain: &Chain<'_>,
        left: &mut usize,
        piece: &mut [u8],
    ) -> Result<bool, Fault> {
        let mut reader = chain.reader()?;
        // The driver may have changed it meanwhile into a shorter one.
        let skip = self.sent.min(reader.available_bytes());
        let mut reader = match skip {
            0 => reader,
            _ => reader
                .split_at(skip)
                .map_err(|_| QueueError::Short { head: chain.head() })?,
        };
        while reader.available_bytes() > 0 {
            if *left == 0 {
                return Ok(false);
            }
            let len = reader.available_bytes().min(piece.len());
            reader.read_exact(&mut piece[..len])?;
            let taken = self.host.write(&piece[..len]).min(len);
            self.sent += taken;
            *left = left.saturating_sub(taken);
            if taken < len {
                self.wants.output = true;
                return Ok(false);
            }
        }
        self.sent = 0;
        Ok(true)
    }

    fn receive_all(
        &mut self,
        queue: &mut Queue,
        (memory, interrupt): (&DmaMemory, &Interrupt),
        piece: &mut [u8],
    ) -> Result<bool, Fault> {
        let mut left = TURN;
        let served = queue.serve(memory, interrupt, |chain| {
            if left == 0 {
                return Ok::<_, Fault>(None);
            }
            let mut writer = chain.writer()?;
            let room = writer.available_bytes().min(piece.len());
            if room == 0 {
                return Err(QueueError::Short { head: chain.head() }.into());
            }
            let len = self.host.read(&mut piece[..room]).min(room);
            if len == 0 {
                self.wants.input = true;
                return Ok(None);
            }
            writer.write_all(&piece[..len])?;
            left = left.saturating_sub(len);
            Ok(Some(len as u32))
        })?;
        let waits = self.wants.input;
        Ok(served == Served::More || served == Served::Kept && !waits)
    }
}
