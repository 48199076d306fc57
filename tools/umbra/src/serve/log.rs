//! The log of a served machine: lines as Firecracker writes them, to a place and of a level that can change.
//!
//! ```text
//! 2026-11-27T21:00:00.123456Z [my-vm:api:INFO:src/server/connection.rs:180] a request method="PUT" path="/actions"
//! ```

use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::Context;
use umbra_api::firecracker::resources::logger::{LogLevel, LoggerConfig};

/// Whose messages are of the monitor itself.
const OURS: &str = "umbra";

struct State {
    id: String,
    level: LevelFilter,
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
    to: Box<dyn Write + Send>,
}

/// The log. Cheap to clone.
#[derive(Clone)]
pub struct Log(Arc<Mutex<State>>);

impl Log {
    /// Makes the log of a machine named `id`, which goes to standard output until something else is said.
    pub fn new(id: &str) -> Self {
        Self(Arc::new(Mutex::new(State {
            id: id.into(),
            level: LevelFilter::INFO,
            show_level: false,
            show_origin: false,
            module: None,
            to: Box::new(std::io::stdout()),
        })))
    }

    /// Changes what is said.
    ///
    /// # Errors
    /// If the file cannot be opened; nothing has changed then.
    pub fn change(&self, config: &LoggerConfig) -> Result<(), String> {
        let to = config.log_path.as_ref().map(|path| {
            // A pipe that nobody reads must not stop the machine.
            OpenOptions::new()
                .create(true)
                .read(true)
                .append(true)
                .custom_flags(OFlags::NONBLOCK.bits() as i32)
                .open(path)
                .map_err(|error| format!("cannot write the log {}: {error}", path.display()))
        });
        let to = to.transpose()?;
        let mut state = self.state();
        if let Some(file) = to {
            state.to = Box::new(file);
        }
        if let Some(level) = config.level {
            state.level = filter(level);
        }
        if let Some(show) = config.show_level {
            state.show_level = show;
        }
        if let Some(show) = config.show_log_origin {
            state.show_origin = show;
        }
        if config.module.is_some() {
            state.module = config.module.clone();
        }
        drop(state);
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A line is written or not: there is nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

impl State {
    fn takes(&self, metadata: &Metadata<'_>) -> bool {
        let wanted = self.module.as_deref().unwrap_or(OURS);
        *metadata.level() <= self.level && metadata.target().starts_with(wanted)
    }

    fn line(&self, event: &Event<'_>) -> Result<String, fmt::Error> {
        let mut line = String::new();
        SystemTime.format_time(&mut Writer::new(&mut line))?;
        let thread = std::thread::current();
        write!(line, " [{}:{}", self.id, thread.name().unwrap_or("-"))?;
        let metadata = event.metadata();
        if self.show_level {
            write!(line, ":{}", metadata.level())?;
        }
        if let (true, Some(file)) = (self.show_origin, metadata.file()) {
            write!(line, ":{file}:{}", metadata.line().unwrap_or_default())?;
        }
        line.push(']');
        event.record(&mut Text(&mut line));
        line.push('\n');
        Ok(line)
    }
}

/// An event's fields in a line: the message as it is, the others by name.
struct Text<'a>(&'a mut String);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Text that came from a guest or a client stays in its line.
        let value = format!("{value:?}").replace(['\n', '\r'], " ");
        self.0.push(' ');
        if field.name() != "message" {
            self.0.push_str(field.name());
            self.0.push('=');
        }
        self.0.push_str(&value);
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Asked again when the level changes.
        match self.state().takes(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.state().takes(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut state = self.state();
        if let Ok(line) = state.line(event) {
            // A log that cannot be written is no reason to stop a machine, and there is nobody to tell.
            let _ = state.to.write_all(line.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn lines_say_what_was_asked_for_and_stay_one() {
        let place = tempfile::tempdir().unwrap();
        let log = Log::new("vm-1");
        let first = place.path().join("first");
        let change = |text: &str| log.change(&serde_json::from_str(text).unwrap());
        change(&format!(r#"{{"log_path": {first:?}, "level": "Warning"}}"#)).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log.clone()), || {
            tracing::info!("too quiet");
            tracing::warn!(path = "a\nb", "heard");
            change(r#"{"level": "Info", "show_level": true, "show_log_origin": true}"#).unwrap();
            tracing::info!("loud");
            change(r#"{"module": "nothing"}"#).unwrap();
            tracing::error!("of somebody else");
        });
        let text = std::fs::read_to_string(&first).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].contains("Z [vm-1:") && lines[0].ends_with("] heard path=\"a\\nb\""),
            "{text}"
        );
        assert!(
            lines[1].contains(":INFO:") && lines[1].contains("log.rs:"),
            "{text}"
        );
        assert!(change(r#"{"log_path": "/no/such/folder/log"}"#).is_err());
    }
}
