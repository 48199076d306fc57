//! All ports of a device at work, on one thread.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use umbra_slots::{DmaMemory, DmaSpace};
use umbra_virtio::{Alarm, Chain, Event, Fault, Interrupt, Queue, QueueError, Served};

use super::message::{Hear, LEN};
use super::port::Port;
use super::shared::Shared;

/// The control queues (5.3.2), as far as the driver has set them up.
#[derive(Default)]
pub struct Sorted {
    /// What the device says.
    say: Option<Queue>,
    /// What the driver says.
    hear: Option<Queue>,
}

impl Sorted {
    /// Gives each port its queues, and returns those of control.
    pub fn sort(queues: Vec<Queue>, ports: &mut [Port], has_control: bool) -> Self {
        let mut control = Self::default();
        for queue in queues {
            let index = usize::from(queue.index());
            let port = match index / 2 {
                0 => 0,
                1 if has_control => {
                    match index % 2 {
                        0 => control.say = Some(queue),
                        _ => control.hear = Some(queue),
                    }
                    continue;
                }
                pair if has_control => pair - 1,
                // Nothing was agreed on that would be there.
                _ => continue,
            };
            if let Some(port) = ports.get_mut(port) {
                match index % 2 {
                    0 => port.receive = Some(queue),
                    _ => port.transmit = Some(queue),
                }
            }
        }
        control
    }
}

/// The ports.
pub struct Ports {
    shared: Arc<Shared>,
    ports: Vec<Port>,
    control: Sorted,
    /// The driver reads the size in the configuration.
    sized: bool,
    /// Which size it was told of.
    generation: u32,
    memory: DmaSpace,
    interrupt: Arc<Interrupt>,
    piece: Vec<u8>,
}

impl Ports {
    pub fn new(
        shared: Arc<Shared>,
        (ports, control): (Vec<Port>, Sorted),
        sized: bool,
        memory: DmaSpace,
        interrupt: Arc<Interrupt>,
    ) -> Self {
        Self {
            generation: shared.generation(),
            shared,
            ports,
            control,
            sized,
            memory,
            interrupt,
            piece: Vec::new(),
        }
    }

    /// Gives back what it was made of.
    pub fn dismantle(mut self) -> (Vec<Port>, Vec<Queue>) {
        let mut queues: Vec<_> = [self.control.say, self.control.hear]
            .into_iter()
            .flatten()
            .collect();
        for port in &mut self.ports {
            queues.extend(port.receive.take());
            queues.extend(port.transmit.take());
        }
        queues.sort_by_key(Queue::index);
        (self.ports, queues)
    }

    /// Works until it is stopped, or the driver breaks the rules.
    pub fn run(mut self, stop: &Event) -> Self {
        let _alarm = Alarm(self.interrupt.clone());
        let mut busy = true;
        loop {
            match self.wait(stop, busy) {
                Ok(true) => {}
                Ok(false) => return self,
                Err(error) => {
                    Fault::from(error).tell(&self.shared.name, &self.interrupt);
                    return self;
                }
            }
            match self.work() {
                Ok(again) => busy = again,
                Err(fault) => {
                    fault.tell(&self.shared.name, &self.interrupt);
                    return self;
                }
            }
        }
    }

    /// Waits for something to do; `false` if it is time to stop.
    fn wait(&self, stop: &Event, busy: bool) -> io::Result<bool> {
        let events: Vec<_> = self.queues().map(Queue::event).collect();
        let mut watched = vec![
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(&self.shared.wake, PollFlags::IN),
        ];
        let fds = events
            .iter()
            .map(|event| PollFd::new(&***event, PollFlags::IN));
        watched.extend(fds);
        for port in &self.ports {
            let (host, wants) = port.host();
            host.watch(wants, &mut watched);
        }
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut watched, busy.then_some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if stop.take() {
            return Ok(false);
        }
        self.shared.wake.take();
        for event in events {
            event.take();
        }
        Ok(true)
    }

    fn queues(&self) -> impl Iterator<Item = &Queue> {
        let of_ports = self
            .ports
            .iter()
            .flat_map(|port| [&port.receive, &port.transmit]);
        let control = [&self.control.say, &self.control.hear];
        of_ports.chain(control).flatten()
    }

    /// Does what there is to do; tells whether there may be more at once.
    fn work(&mut self) -> Result<bool, Fault> {
        // Dropped before the next wait.
        let memory = self.memory.memory();
        let cries = self.shared.cries();
        if !cries.is_empty() {
            self.ports[0].cry(&cries);
        }
        self.ports.iter_mut().for_each(Port::tend);
        self.resize();
        let mut again = self.hear(&memory)?;
        again |= self.say(&memory)?;
        for port in &mut self.ports {
            again |= port.work(&memory, &self.interrupt, &mut self.piece)?;
        }
        Ok(again)
    }

    fn resize(&mut self) {
        let generation = self.shared.generation();
        if std::mem::replace(&mut self.generation, generation) == generation {
            return;
        }
        self.ports[0].resized();
        if self.sized {
            self.interrupt.config_changed();
        }
    }

    fn hear(&mut self, memory: &DmaMemory) -> Result<bool, Fault> {
        let Some(queue) = &mut self.control.hear else {
            return Ok(false);
        };
        let ports = &mut self.ports;
        let served = queue.serve(memory, &self.interrupt, |chain| {
            obey(ports, chain).map(|()| Some(0))
        })?;
        Ok(served == Served::More)
    }

    fn say(&mut self, memory: &DmaMemory) -> Result<bool, Fault> {
        let Some(queue) = &mut self.control.say else {
            return Ok(false);
        };
        let (ports, size) = (&mut self.ports, self.shared.size());
        let served = queue.serve(memory, &self.interrupt, |chain| {
            let mut writer = chain.writer()?;
            let Some(bytes) = next_message(ports, size) else {
                return Ok(None);
            };
            if writer.available_bytes() < bytes.len() {
                return Err(Fault::from(QueueError::Short { head: chain.head() }));
            }
            writer.write_all(&bytes)?;
            Ok(Some(bytes.len() as u32))
        })?;
        Ok(served == Served::More)
    }
}

fn next_message(ports: &mut [Port], size: Option<(u16, u16)>) -> Option<Vec<u8>> {
    let mut all = (0..).zip(ports);
    all.find_map(|(number, port)| Some(port.next_message(size)?.bytes(number)))
}

/// Does what a message of the driver's says. One that is none, or about no port, is nothing.
fn obey(ports: &mut [Port], chain: &Chain<'_>) -> Result<(), Fault> {
    let mut bytes = [0; LEN];
    if chain.reader()?.read_exact(&mut bytes).is_err() {
        return Ok(());
    }
    let place = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    match Hear::read(bytes) {
        Some(Hear::DeviceReady(true)) => ports.iter_mut().for_each(Port::announce),
        Some(Hear::PortReady(number, ready)) => {
            if let Some(port) = ports.get_mut(place(number)) {
                port.set_ready(ready);
            }
        }
        Some(Hear::PortOpen(number, open)) => {
            if let Some(port) = ports.get_mut(place(number)) {
                port.is_open = open;
            }
        }
        Some(Hear::DeviceReady(false)) | None => {}
    }
    Ok(())
}
