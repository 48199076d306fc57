//! `umbra top`: what machines do, by the second.
//!
//! ```text
//!   each interval:  sockets ── GET /v1/vm, /v1/inspect ──> samples ── rates ── view ──> the terminal's other screen,
//!                   (a thread each)                        (two looks)                  or one table after the other
//! ```

mod rates;
mod sample;
mod view;
mod wait;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::termios::{isatty, tcgetwinsize};

use crate::args::Top;
use crate::client::Client;
use crate::console::terminal::{self, RawMode, Screen};
use crate::out;
use crate::status::Status;
use rates::Rates;
use sample::{Sample, Seen};
use view::Row;
use wait::{Came, Waiter};

/// Shows machines until somebody has seen enough.
pub fn run(arguments: &Top) -> Result<Status> {
    let mut waiter = Waiter::new().context("cannot handle signals")?;
    let mut machines = arguments
        .api_sock
        .iter()
        .map(|path| Machine::new(path))
        .collect::<Result<Vec<_>>>()?;
    look(&mut machines);
    match isatty(std::io::stdout()) {
        true => watch(&mut machines, arguments, &mut waiter),
        false => print(&mut machines, arguments, &mut waiter),
    }
}

/// A machine that is watched.
struct Machine {
    socket: PathBuf,
    client: Client,
    name: Option<String>,
    sample: Sample,
    rates: Option<Rates>,
}

impl Machine {
    fn new(socket: &Path) -> Result<Self> {
        Ok(Self {
            socket: socket.to_owned(),
            client: Client::new(socket)?,
            name: None,
            sample: Sample {
                at: Instant::now(),
                seen: Seen::Gone,
            },
            rates: None,
        })
    }

    fn look(&mut self) {
        let sample = Sample::take(&self.client);
        self.rates = rates::between(&self.sample, &sample);
        if let Seen::There(info, _) = &sample.seen {
            self.name = Some(info.id.clone());
        }
        self.sample = sample;
    }
}

/// Looks at all of them, at the same time: none has to wait for one that does not answer.
fn look(machines: &mut [Machine]) {
    std::thread::scope(|scope| {
        for machine in machines {
            scope.spawn(|| machine.look());
        }
    });
}

fn lines(machines: &[Machine]) -> Vec<String> {
    let sockets: Vec<_> = machines
        .iter()
        .map(|machine| machine.socket.to_string_lossy())
        .collect();
    let rows = machines.iter().zip(&sockets).map(|(machine, socket)| Row {
        socket,
        name: machine.name.as_deref(),
        sample: &machine.sample,
        rates: machine.rates.as_ref(),
    });
    view::lines(&rows.collect::<Vec<_>>())
}

/// One table after the other.
fn print(machines: &mut [Machine], arguments: &Top, waiter: &mut Waiter) -> Result<Status> {
    let mut done = 0;
    let mut due = Instant::now() + arguments.interval;
    loop {
        match waiter.until(due)? {
            Came::Signal(signal) => return Ok(Status::Signal(signal)),
            Came::Quit => return Ok(Status::Success),
            Came::Redraw => continue,
            Came::Time => {}
        }
        look(machines);
        if done > 0 {
            out::line("")?;
        }
        out::line(&lines(machines).join("\n"))?;
        done += 1;
        if arguments.iterations == Some(done) {
            return Ok(Status::Success);
        }
        due = next(due, arguments.interval);
    }
}

/// One table on the screen.
fn watch(machines: &mut [Machine], arguments: &Top, waiter: &mut Waiter) -> Result<Status> {
    let raw = RawMode::enter().context("cannot put the terminal into raw mode")?;
    if raw.is_some() {
        waiter.keys();
    }
    let screen = Screen::enter();
    let mut done = 0;
    let mut due = Instant::now() + arguments.interval;
    let status = loop {
        draw(machines, arguments.interval)?;
        match waiter.until(due)? {
            Came::Signal(signal) => break Status::Signal(signal),
            Came::Quit => break Status::Success,
            // It may have been stopped, and the shell has had the terminal.
            Came::Redraw => {
                let _ = terminal::reenter();
                continue;
            }
            Came::Time => {}
        }
        look(machines);
        done += 1;
        if arguments.iterations == Some(done) {
            break Status::Success;
        }
        due = next(due, arguments.interval);
    };
    drop(screen);
    drop(raw);
    // What was seen last stays.
    out::line(&lines(machines).join("\n"))?;
    Ok(status)
}

/// When to look again; what was missed is left out.
fn next(due: Instant, interval: Duration) -> Instant {
    (due + interval).max(Instant::now())
}

/// Draws over what is there, and erases the rest.
fn draw(machines: &[Machine], interval: Duration) -> Result<()> {
    let size = tcgetwinsize(std::io::stdout()).ok();
    let size = size.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
    // A terminal that does not know how large it is says 0.
    let (columns, rows) = size
        .filter(|(columns, rows)| *columns > 0 && *rows > 0)
        .unwrap_or((80, 24));
    let title = format!("umbra top, every {} s; q ends", interval.as_secs_f64());
    let all = [title, String::new()].into_iter().chain(lines(machines));
    let all = all
        .take(rows)
        .map(|line| line.chars().take(columns).collect::<String>());
    let text = all
        .map(|line| format!("{line}\x1b[K"))
        .collect::<Vec<_>>()
        .join("\r\n");
    out::print(&format!("\x1b[H{text}\x1b[J"))
}
