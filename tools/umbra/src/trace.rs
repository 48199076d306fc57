//! `--trace mmu=FILE`: the MMU's events in the form that Perfetto (ui.perfetto.dev) and Chrome's
//! `about:tracing` open.
//!
//! The file is a JSON array of events (the Trace Event Format's array form), one a line. Each thread
//! has a track of its own, named like the thread, so each processor has (`vcpu0`). A walk of the
//! guest's tables is a slice with a duration, everything else an instant; a change of the map is an
//! instant across all tracks, named after its cause, with the generation that it began.
//!
//! A viewer wants no end of the array, so that a trace of a machine that was killed opens, too.

use std::cell::Cell;
use std::fmt::Debug;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer;
use tracing_subscriber::registry::LookupSpan;

/// What is traced, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    path: PathBuf,
}

/// Reads `mmu=FILE`.
pub fn parse(text: &str) -> Result<Request, String> {
    let Some((what, path)) = text.split_once('=') else {
        return Err(format!("{text:?} names no file; write mmu=FILE"));
    };
    if what != "mmu" {
        return Err(format!(
            "{what:?} cannot be traced; mmu can: write mmu=FILE"
        ));
    }
    if path.is_empty() {
        return Err("the name of the file is missing; write mmu=FILE".into());
    }
    let path = path.into();
    Ok(Request { path })
}

/// Tells whether something is part of the trace.
pub fn is_traced(metadata: &Metadata<'_>) -> bool {
    matches!(crate_of(metadata), "umbra_mmu" | "umbra_slots")
}

fn crate_of<'a>(metadata: &Metadata<'a>) -> &'a str {
    metadata.target().split("::").next().unwrap_or_default()
}

/// Writes the trace.
pub struct Trace {
    out: Arc<Out>,
    start: Instant,
}

/// The file. Errors are said once, and end the trace.
struct Out {
    path: PathBuf,
    file: Mutex<Option<BufWriter<File>>>,
}

/// Ends the trace when it is dropped.
#[must_use = "the trace ends when this is dropped"]
pub struct Ending(Arc<Out>);

impl Request {
    /// Creates the file.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn begin(&self) -> Result<(Trace, Ending)> {
        let file = File::create(&self.path)
            .with_context(|| format!("cannot create the trace {}", self.path.display()))?;
        let out = Arc::new(Out {
            path: self.path.clone(),
            file: Mutex::new(Some(BufWriter::new(file))),
        });
        out.line("[\n");
        let start = Instant::now();
        Ok((
            Trace {
                out: out.clone(),
                start,
            },
            Ending(out),
        ))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // The last event has no comma after it.
        let last = json!({"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "umbra"}});
        self.0.line(&format!("{last}\n]\n"));
        let file = self
            .0
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut file) = file
            && let Err(error) = file.flush()
        {
            self.0.give_up(&error);
        }
    }
}

impl Out {
    fn line(&self, text: &str) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = file.as_mut().map(|file| file.write_all(text.as_bytes()));
        if let Some(Err(error)) = written {
            *file = None;
            drop(file);
            self.give_up(&error);
        }
    }

    fn give_up(&self, error: &std::io::Error) {
        eprintln!(
            "umbra: the trace {} ends here: {error}",
            self.path.display()
        );
    }
}

thread_local!(static TRACK: Cell<u32> = const { Cell::new(0) });

impl Trace {
    /// The number of the thread's track; the first time its name is written, too.
    fn track(&self) -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        TRACK.with(|track| {
            if track.get() == 0 {
                track.set(NEXT.fetch_add(1, Ordering::Relaxed));
                let thread = std::thread::current();
                let name = thread.name().unwrap_or("thread").to_owned();
                let event = json!({
                    "name": "thread_name", "ph": "M", "pid": 1, "tid": track.get(),
                    "args": {"name": name},
                });
                self.out.line(&format!("{event},\n"));
            }
            track.get()
        })
    }

    fn write(&self, phase: &str, name: &str, scope: Option<&str>, arguments: Map<String, Value>) {
        let track = self.track();
        let microseconds = self.start.elapsed().as_nanos() as f64 / 1000.0;
        let mut event = json!({
            "name": name, "ph": phase, "ts": microseconds, "pid": 1, "tid": track,
        });
        if let Some(scope) = scope {
            event["s"] = scope.into();
        }
        if !arguments.is_empty() {
            event["args"] = arguments.into();
        }
        self.out.line(&format!("{event},\n"));
    }
}

/// The fields of an event; addresses as people read them.
#[derive(Default)]
struct Fields {
    message: String,
    all: Map<String, Value>,
}

/// Fields that are addresses or frames.
fn is_hexadecimal(name: &str) -> bool {
    matches!(name, "gva" | "gfn" | "gpa" | "error")
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        let value = if is_hexadecimal(field.name()) {
            format!("{value:#x}").into()
        } else {
            value.into()
        };
        self.all.insert(field.name().into(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.all.insert(field.name().into(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.all.insert(field.name().into(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.all.insert(field.name().into(), text.into());
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Trace {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if crate_of(event.metadata()) == "umbra_slots" {
            let Some(Value::String(cause)) = fields.all.remove("cause") else {
                return; // not a change of the map
            };
            return self.write("i", &cause, Some("g"), fields.all);
        }
        self.write("i", &fields.message, Some("t"), fields.all);
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: layer::Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields.all);
        }
    }

    fn on_enter(&self, id: &Id, context: layer::Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let arguments = span.extensions_mut().remove::<Map<String, Value>>();
            self.write("B", span.name(), None, arguments.unwrap_or_default());
        }
    }

    fn on_exit(&self, id: &Id, context: layer::Context<'_, S>) {
        if let Some(span) = context.span(id) {
            self.write("E", span.name(), None, Map::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn what_cannot_be_traced_is_refused_with_a_remedy() {
        for (text, culprit) in [
            ("mmu", "\"mmu\" names no file"),
            ("cpu=x", "\"cpu\" cannot be traced"),
            ("mmu=", "the name of the file is missing"),
        ] {
            let line = parse(text).unwrap_err();
            assert!(
                line.contains(culprit) && line.contains("mmu=FILE"),
                "{line}"
            );
        }
        assert_eq!(parse("mmu=a=b").unwrap().path, Path::new("a=b"));
    }

    #[test]
    fn a_trace_is_json_with_a_track_for_each_thread_and_instants_for_changes_of_the_map() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let (trace, ending) = Request { path: path.clone() }.begin().unwrap();
        let subscriber = tracing_subscriber::registry().with(trace);
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(target: "umbra_slots::space", cause = "a device moves", generation = 7u64, "published");
            let _walk =
                tracing::trace_span!(target: "umbra_mmu::vcpu", "slow fault", gva = 0xfee0_0000u64)
                    .entered();
            tracing::trace!(target: "umbra_mmu::fault", gfn = 0xfee00u64, valid = false, "check");
        });
        drop(ending);

        let events: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let named = |name: &str, phase: &str| {
            let found = events
                .iter()
                .find(|e| e["name"] == name && e["ph"] == phase);
            found.unwrap_or_else(|| panic!("no {name}: {events:?}"))
        };
        let bump = named("a device moves", "i");
        assert_eq!(
            (&bump["s"], &bump["args"]["generation"]),
            (&json!("g"), &json!(7))
        );
        let begin = named("slow fault", "B");
        assert_eq!(begin["args"]["gva"], "0xfee00000");
        let check = named("check", "i");
        assert_eq!(check["args"], json!({"gfn": "0xfee00", "valid": false}));
        assert!(named("slow fault", "E")["ts"].as_f64() >= check["ts"].as_f64());
        let track = &named("thread_name", "M")["tid"];
        assert!(
            [bump, begin, check]
                .iter()
                .all(|event| event["tid"] == *track)
        );
    }
}
