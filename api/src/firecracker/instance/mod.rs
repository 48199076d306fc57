//! A machine and its life: configured, started, changed, ended. One thread owns it, and does one thing at a time;
//! everybody else sends it messages.
//!
//! ```text
//!   Before ── Start ──> Running { Handle, paused } ── the machine has ended ──> Ended
//!     Config               Vm, on its threads
//! ```
//! Which action is possible in which state is [`policy`](super::policy); here it is done. What `/v1` wants of the owner
//! are orders, with a policy of their own ([`v1::policy`](crate::v1::policy)).

mod balloon;
mod devices;
mod memory;
mod orders;

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use umbra_vmm::{
    Builder, Console, Ended, EventLog, Handle, Metadata, MetadataError, RunError, Spec, Vm,
};

use super::VERSION;
use super::config::{self, Config, ConfigFile, Options};
use super::fault::{Fault, chain};
use super::metrics::Metrics;
use super::policy::{self, State};
use super::request::Action;
use super::resources::logger::LoggerConfig;
use super::resources::metrics::MetricsConfig;
use super::resources::serial::SerialDevice;
use super::resources::vm::{FirecrackerVersion, InstanceInfo, VmState};
use crate::v1::Problem;
use crate::v1::routes::{self, Order};
use orders::Said;

/// How often counters are written by themselves.
const METRICS_PERIOD: Duration = Duration::from_secs(60);

/// What a machine needs of the process that it is in.
pub trait Process: Send {
    /// Returns where the serial port's output goes.
    ///
    /// # Errors
    /// If that cannot be opened.
    fn console(&mut self, serial: &SerialDevice) -> io::Result<Console>;

    /// Changes where messages go.
    ///
    /// # Errors
    /// With what is wrong, and what to do.
    fn set_logger(&mut self, config: &LoggerConfig) -> Result<(), String>;

    /// Hears that the machine runs.
    fn started(&mut self, handle: &Handle);
}

/// What an action gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Nothing but that it was done.
    Done,
    /// This, as JSON.
    Json(String),
}

/// Who is told what became of an action. Called once.
pub type Reply = Box<dyn FnOnce(Result<Answer, Fault>) + Send>;

/// Who is told what became of an order. Called once.
pub type Given = Box<dyn FnOnce(Result<routes::Given, Problem>) + Send>;

/// What the owner of an instance hears.
pub enum Message {
    /// Somebody wants something, by Firecracker's interface.
    Wanted(Action, Reply),
    /// Somebody wants something, by `/v1`.
    Asked(Order, Given),
    /// The machine has ended.
    Ended(Result<Ended, RunError>),
    /// It shall end: a signal came.
    Stop,
}

/// A machine that runs.
struct Running {
    handle: Handle,
    /// Stopped, and waited for, when this is dropped.
    _vm: Vm,
    paused: bool,
    /// What it was when it began.
    spec: Spec,
    /// What executes the guest.
    backend: &'static str,
    /// Why KVM is not used, where it would have been preferred.
    fallback: Option<String>,
}

/// Why a machine does not begin.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    /// Its output has no place.
    #[error("the serial port's output cannot be opened")]
    Console(#[source] io::Error),
    /// It cannot be built.
    #[error(transparent)]
    Vm(#[from] umbra_vmm::Error),
    /// It has no thread.
    #[error("no thread for the machine")]
    Thread(#[source] io::Error),
}

enum Phase {
    Before,
    Running(Box<Running>),
    Ended,
}

/// A machine, from its first resource to its end.
pub struct Instance {
    options: Options,
    process: Box<dyn Process>,
    config: Config,
    metadata: Metadata,
    metrics: Option<Metrics>,
    phase: Phase,
    to_self: Sender<Message>,
    /// What was said by `/v1` before the start.
    said: Said,
    log: EventLog,
}

impl Instance {
    /// Makes one of which nothing was said yet. `to_self` is the other end of what [`run`](Self::run) gets.
    pub fn new(options: Options, process: Box<dyn Process>, to_self: Sender<Message>) -> Self {
        Self {
            metadata: Metadata::new(options.mmds_limit),
            options,
            process,
            config: Config::default(),
            metrics: None,
            phase: Phase::Before,
            to_self,
            said: Said::default(),
            log: EventLog::default(),
        }
    }

    /// Takes over what a file says, and starts the machine.
    ///
    /// # Errors
    /// If something in it cannot be, or the machine does not start.
    pub fn start_from(&mut self, file: ConfigFile) -> Result<(), Fault> {
        if let Some(logger) = &file.logger {
            self.set_logger(logger)?;
        }
        if let Some(metrics) = &file.metrics {
            self.set_metrics(metrics.clone())?;
        }
        self.config.load(file)?;
        self.start().map(drop)
    }

    /// Replaces the metadata, as `PUT /mmds`.
    ///
    /// # Errors
    /// If it is no object, or too large.
    pub fn set_metadata(&mut self, value: Value) -> Result<(), Fault> {
        self.metadata.put(value).map_err(metadata_fault)
    }

    /// Serves messages until the machine has ended, or was told to stop before it began; returns how it ended.
    ///
    /// # Errors
    /// If a processor failed.
    pub fn run(mut self, messages: &Receiver<Message>) -> Result<Option<Ended>, RunError> {
        let mut due = Instant::now() + METRICS_PERIOD;
        loop {
            match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Message::Wanted(action, reply)) => reply(self.carry_out(action)),
                Ok(Message::Asked(order, reply)) => reply(self.carry_out_order(order)),
                Ok(Message::Ended(result)) => return self.end(messages, result).map(Some),
                Ok(Message::Stop) => match &self.phase {
                    Phase::Running(running) => running.handle.stop(),
                    _ => return Ok(None),
                },
                Err(RecvTimeoutError::Timeout) => {
                    due = Instant::now() + METRICS_PERIOD;
                    // Nobody asked: the log has to do.
                    if let Err(fault) = self.flush_metrics() {
                        tracing::warn!("{fault}");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    fn end(
        &mut self,
        messages: &Receiver<Message>,
        result: Result<Ended, RunError>,
    ) -> Result<Ended, RunError> {
        self.phase = Phase::Ended;
        if let Err(fault) = self.flush_metrics() {
            tracing::warn!("{fault}");
        }
        // Who asked meanwhile is told.
        for message in messages.try_iter() {
            match message {
                Message::Wanted(action, reply) => reply(self.carry_out(action)),
                Message::Asked(order, reply) => reply(self.carry_out_order(order)),
                Message::Ended(_) | Message::Stop => {}
            }
        }
        result
    }

    /// Does one thing. Blocks as long as that takes.
    ///
    /// # Errors
    /// If it is not possible now, or not at all. Nothing has changed then.
    pub fn carry_out(&mut self, action: Action) -> Result<Answer, Fault> {
        policy::check(self.state(), self.options.pci, &action)?;
        match action {
            Action::GetInstanceInfo => json(&self.info()),
            Action::GetVersion => json(&FirecrackerVersion {
                firecracker_version: VERSION.into(),
            }),
            Action::GetFullConfig => json(&self.config.full()),
            Action::GetMachineConfig => json(&self.config.machine()),
            Action::GetMmds => json(&self.metadata.get()),
            Action::GetBalloon => self.balloon_config().and_then(|balloon| json(&balloon)),
            Action::GetBalloonStats => self.balloon_stats().and_then(|stats| json(&stats)),
            Action::GetHintingStatus => self.hinting_status().and_then(|status| json(&status)),
            Action::GetMemoryHotplug => self.memory_status().and_then(|status| json(&status)),
            Action::Start => self.start(),
            Action::Pause => self.pause(),
            Action::Resume => self.resume(),
            action => self.change(action).map(|()| Answer::Done),
        }
    }

    /// What answers with nothing.
    fn change(&mut self, action: Action) -> Result<(), Fault> {
        let config = &mut self.config;
        match action {
            Action::PutBootSource(boot_source) => config.set_boot_source(boot_source),
            Action::ChangeMachineConfig(change) => config.change_machine(&change),
            Action::PutCpuConfig(template) => {
                config.set_template(template);
                Ok(())
            }
            Action::PutDrive(drive) => self.put_drive(drive),
            Action::PatchDrive(change) => self.patch_drive(change),
            Action::DeleteDrive(id) => {
                self.remove(&config::drive_id(&id))?;
                self.config.remove_drive(&id);
                Ok(())
            }
            Action::PutPmem(pmem) => self.put_pmem(pmem),
            Action::PatchPmem(change) => self.patch_pmem(change),
            Action::DeletePmem(id) => {
                self.remove(&config::pmem_id(&id))?;
                self.config.remove_pmem(&id);
                Ok(())
            }
            Action::PutNet(net) => self.put_net(net),
            Action::PatchNet(change) => self.patch_net(change),
            Action::DeleteNet(id) => {
                self.remove(&config::net_id(&id))?;
                self.config.remove_net(&id);
                Ok(())
            }
            Action::PutVsock(vsock) => config.set_vsock(vsock),
            Action::PutEntropy(entropy) => {
                config.set_entropy(entropy);
                Ok(())
            }
            Action::PutSerial(serial) => {
                config.set_serial(serial);
                Ok(())
            }
            Action::PutBalloon(balloon) => config.set_balloon(balloon),
            Action::PatchBalloon(change) => self.resize_balloon(change.amount_mib),
            Action::PatchBalloonStats(change) => self.poll_balloon(change),
            Action::StartHinting(command) => self.start_hinting(command),
            Action::StopHinting => self.stop_hinting(),
            Action::PutMemoryHotplug(memory) => config.set_memory_hotplug(memory),
            Action::PatchMemoryHotplug(change) => self.resize_memory(change.requested_size_mib),
            Action::PutLogger(logger) => self.set_logger(&logger),
            Action::PutMetrics(metrics) => self.set_metrics(metrics),
            Action::PutMmds(value) => self.set_metadata(value),
            Action::PatchMmds(value) => self.metadata.patch(value).map_err(metadata_fault),
            Action::PutMmdsConfig(mmds) => config.set_mmds_config(mmds),
            Action::FlushMetrics => self.flush_metrics(),
            Action::SendCtrlAltDel => {
                // A guest that does not listen is no fault of who asked.
                if let Err(error) = self.handle()?.press_ctrl_alt_del() {
                    tracing::info!(%error, "nobody hears Ctrl-Alt-Delete");
                }
                Ok(())
            }
            Action::CreateSnapshot(_) => Err(self.no_snapshot()),
            Action::LoadSnapshot(_) => Err(self.no_restore()),
            Action::GetInstanceInfo
            | Action::GetVersion
            | Action::GetFullConfig
            | Action::GetMachineConfig
            | Action::GetMmds
            | Action::GetBalloon
            | Action::GetBalloonStats
            | Action::GetHintingStatus
            | Action::GetMemoryHotplug
            | Action::Start
            | Action::Pause
            | Action::Resume => unreachable!("they answer with something"),
        }
    }

    fn state(&self) -> State {
        match &self.phase {
            Phase::Before => State::Before,
            // Its last message may be under way, and somebody may have been told already, by the handle or by the log.
            Phase::Running(running) if running.handle.has_ended() => State::Ended,
            Phase::Running(running) if running.paused => State::Paused,
            Phase::Running(_) => State::Running,
            Phase::Ended => State::Ended,
        }
    }

    fn info(&self) -> InstanceInfo {
        InstanceInfo {
            id: self.options.id.clone(),
            state: match self.state() {
                State::Before => VmState::NotStarted,
                State::Paused => VmState::Paused,
                // One that ends just now was there when it was asked for.
                State::Running | State::Ended => VmState::Running,
            },
            vmm_version: VERSION.into(),
            app_name: "Firecracker".into(),
        }
    }

    fn handle(&self) -> Result<&Handle, Fault> {
        match &self.phase {
            Phase::Running(running) => Ok(&running.handle),
            Phase::Before => Err(Fault::BeforeStart),
            Phase::Ended => Err(Fault::Ended),
        }
    }

    /// The guest's driver has started the device.
    fn is_in_use(&self, id: &str) -> bool {
        let devices = self.handle().map(Handle::devices).unwrap_or_default();
        devices
            .iter()
            .any(|device| device.id == id && device.in_use)
    }

    fn start(&mut self) -> Result<Answer, Fault> {
        let spec = self.described()?;
        let launched = self.launch(spec);
        launched.map_err(|error| Fault::Start(chain(&error)))?;
        Ok(Answer::Done)
    }

    /// Builds the machine, and lets it begin on a thread of its own. If that fails it can be tried again.
    fn launch(&mut self, spec: Spec) -> Result<(), LaunchError> {
        let console = self.process.console(self.config.serial());
        let console = console.map_err(LaunchError::Console)?;
        let socket = self.config.vsock_path().filter(|path| !path.exists());
        let builder = Builder::new(spec).console(console).log(self.log.clone());
        let mut vm = builder.build().inspect_err(|_| {
            // It stays with a machine that runs; this one can be started again.
            let _ = socket.map(std::fs::remove_file);
        })?;
        let machine = vm.machine().expect("it has not begun");
        let (spec, backend) = (machine.spec().clone(), machine.backend().name());
        let fallback = machine.fallback().map(str::to_owned);
        if let Some(reason) = &fallback {
            tracing::info!("{reason}; the software processor is used");
        }
        let handle = vm.handle();
        let to_self = self.to_self.clone();
        let started = vm.start_then(move |ended| {
            // Who owned the instance may have gone.
            let _ = to_self.send(Message::Ended(ended));
        });
        started.map_err(LaunchError::Thread)?;
        self.process.started(&handle);
        self.options.pci = spec.pci;
        self.phase = Phase::Running(Box::new(Running {
            handle,
            _vm: vm,
            paused: false,
            spec,
            backend,
            fallback,
        }));
        Ok(())
    }

    fn pause(&mut self) -> Result<Answer, Fault> {
        if let Phase::Running(running) = &mut self.phase {
            running.handle.pause().map_err(|_| Fault::Ended)?;
            running.paused = true;
        }
        Ok(Answer::Done)
    }

    fn resume(&mut self) -> Result<Answer, Fault> {
        if let Phase::Running(running) = &mut self.phase {
            running.handle.resume();
            running.paused = false;
        }
        Ok(Answer::Done)
    }

    fn no_snapshot(&self) -> Fault {
        Fault::CreateSnapshot(match self.state() {
            State::Paused => "Cannot save the microVM state: this monitor does not save machines yet".into(),
            _ => "Cannot save the microVM state: Operation not allowed: save/restore unavailable while running".into(),
        })
    }

    fn no_restore(&self) -> Fault {
        Fault::LoadSnapshot(match self.config.is_touched() {
            true => {
                "Loading a microVM snapshot not allowed after configuring boot-specific resources."
                    .into()
            }
            false => {
                "Failed to restore from snapshot: this monitor does not restore machines yet".into()
            }
        })
    }

    fn set_logger(&mut self, config: &LoggerConfig) -> Result<(), Fault> {
        self.process.set_logger(config).map_err(Fault::Logger)
    }

    /// Says where counters go, as `PUT /metrics`.
    ///
    /// # Errors
    /// If that was said before, or cannot be written.
    pub fn set_metrics(&mut self, config: MetricsConfig) -> Result<(), Fault> {
        if self.metrics.is_some() {
            return Err(Fault::Metrics(
                "Cannot initialize the metrics system due to bad user input: Reinitialization of metrics not \
                 allowed."
                    .into(),
            ));
        }
        self.metrics = Some(Metrics::open(&self.options.id, config)?);
        Ok(())
    }

    /// Writes counters where they go, if they go anywhere.
    fn flush_metrics(&mut self) -> Result<(), Fault> {
        let handle = match &self.phase {
            Phase::Running(running) => Some(&running.handle),
            _ => None,
        };
        match &mut self.metrics {
            Some(metrics) => metrics.write(handle),
            None => Ok(()),
        }
    }
}

fn json(value: &impl Serialize) -> Result<Answer, Fault> {
    let text = serde_json::to_string(value);
    Ok(Answer::Json(
        text.expect("resources have string keys and finite numbers"),
    ))
}

fn metadata_fault(error: MetadataError) -> Fault {
    match error {
        MetadataError::TooLarge { .. } => Fault::MmdsLimit(error.to_string()),
        error => Fault::Mmds(error.to_string()),
    }
}
