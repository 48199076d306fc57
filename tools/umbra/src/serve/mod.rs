//! A machine behind an interface: `umbra serve`, and Firecracker's command line.
//!
//! ```text
//!   main thread   Instance::run ── owns the machine
//!   api           Server                         vm        Machine::run
//!   signals       SIGTERM … -> Message::Stop     console-… standard input
//! ```

pub mod firecracker;
mod log;
mod process;
mod signals;

use std::path::PathBuf;
use std::sync::mpsc::channel;

use anyhow::{Context, Result};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use umbra_api::firecracker::config::{ConfigFile, Options};
use umbra_api::firecracker::fault::Fault;
use umbra_api::firecracker::instance::Instance;
use umbra_api::firecracker::resources::logger::LoggerConfig;
use umbra_api::server::{Limits, Server};
use umbra_api::v1::routes::Order;
use umbra_vmm::{Ended, Spec};

use crate::args::ServeArgs;
use crate::console::Escapes;
use crate::limits;
use crate::report::{self, BadInput};
use crate::status::Status;
use log::Log;
use process::ThisProcess;
use signals::{Signals, die_by};

/// Everything that a command line can say of a served machine.
pub struct Service {
    /// What is served, for the log.
    pub name: String,
    /// What is the same for every machine of this process.
    pub options: Options,
    /// Where the interface is; `None` for no interface.
    pub socket: Option<PathBuf>,
    /// Bytes of a request's body.
    pub body_max: usize,
    /// A configuration of a machine that starts at once.
    pub config: Option<PathBuf>,
    /// Its metadata.
    pub metadata: Option<PathBuf>,
    /// The log.
    pub logger: LoggerConfig,
    /// Where counters go.
    pub metrics: Option<PathBuf>,
    /// Whether Ctrl-A x ends the machine.
    pub escapes: Escapes,
}

/// How serving ended.
pub enum Served {
    /// The machine has.
    Machine(Ended),
    /// A signal has ended it, or came before there was one.
    Signal(i32),
    /// There was none.
    Nothing,
}

impl Service {
    /// Serves until the machine has ended, or a signal comes.
    pub fn run(self) -> Result<Served> {
        let log = Log::new(&self.options.id);
        log.change(&self.logger).map_err(BadInput)?;
        tracing_subscriber::registry().with(log.clone()).init();
        tracing::info!("Running {}", self.name);
        limits::survive();
        limits::raise_all();
        let (owner, messages) = channel();
        let signals = Signals::start(owner.clone()).context("cannot handle signals")?;
        let process = Box::new(ThisProcess::new(log, self.escapes));
        let mut instance = Instance::new(self.options, process, owner.clone());
        if let Some(path) = self.metrics {
            let config = umbra_api::firecracker::resources::metrics::MetricsConfig::to(path);
            instance.set_metrics(config)?;
        }
        if let Some(path) = &self.metadata {
            instance.set_metadata(read_json(path)?)?;
        }
        let limits = Limits {
            body: self.body_max,
            ..Limits::default()
        };
        let server = self
            .socket
            .as_ref()
            .map(|path| Server::start(path, limits, owner));
        let server = server.transpose()?;
        if let Some(path) = &self.config {
            let started = start(&mut instance, &read(path)?);
            started.map_err(|why| BadInput(format!("{}: {why}", path.display())))?;
        }
        let ended = instance.run(&messages);
        tracing::info!("Vmm is stopping.");
        drop(server);
        if let Some(signal) = signals.received() {
            return Ok(Served::Signal(signal));
        }
        Ok(ended?.map_or(Served::Nothing, Served::Machine))
    }
}

/// Starts what a file says: a machine in the form of `/v1/vm/spec`, which names a kernel in its outermost braces, or
/// in Firecracker's.
fn start(instance: &mut Instance, text: &str) -> Result<(), String> {
    let value = serde_json::from_str::<serde_json::Value>(text);
    if !value.is_ok_and(|value| value.get("kernel").is_some()) {
        let file = ConfigFile::parse(text);
        let started = file.and_then(|file| instance.start_from(file));
        return started.map_err(|fault: Fault| fault.to_string());
    }
    let spec: Spec = serde_json::from_str(text).map_err(|error| error.to_string())?;
    [Order::PutSpec(Box::new(spec)), Order::Start]
        .into_iter()
        .try_for_each(|order| instance.carry_out_order(order).map(drop))
        .map_err(|problem| problem.to_string())
}

fn read(path: &PathBuf) -> Result<String> {
    let text = std::fs::read_to_string(path);
    text.map_err(|error| BadInput(format!("cannot read {}: {error}", path.display())).into())
}

fn read_json(path: &PathBuf) -> Result<serde_json::Value> {
    let value = serde_json::from_str(&read(path)?);
    value.map_err(|error| BadInput(format!("{} is no JSON: {error}", path.display())).into())
}

/// `umbra serve`.
pub fn run(arguments: &ServeArgs) -> Result<Status> {
    match arguments.service().run()? {
        Served::Nothing => Ok(Status::Success),
        Served::Signal(signal) => {
            die_by(signal);
            Ok(Status::Signal(signal))
        }
        Served::Machine(ended) => {
            report::crash_of(&ended.outcome);
            Ok(Status::from(&ended.outcome))
        }
    }
}
