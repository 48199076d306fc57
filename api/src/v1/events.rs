//! What happens, as Server-Sent Events (HTML, 9.2): an entry is an event with its number, its name, and the whole of it
//! as JSON.
//!
//! A comment every fifteen seconds shows both sides that the other one is there. Who is slow waits for nobody and is
//! waited for by nobody: what is dropped before it was taken is told by an event `missed`, which has no number.

use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Interval;
use umbra_vmm::{Events, News, Taken};

use super::types::EventEntry;

/// The type of the body.
pub const MEDIA: &str = "text/event-stream";

/// How often somebody is told that there is nothing to tell.
const ALIVE: Duration = Duration::from_secs(15);
/// How many entries are written at once.
const BATCH: usize = 64;

/// A body that goes on until the machine has ended, or the server does.
pub struct Stream {
    events: Events,
    /// Whom to wake.
    waker: Arc<Mutex<Option<Waker>>>,
    alive: Interval,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    last: bool,
    /// Somebody else can follow when this one has gone.
    _place: OwnedSemaphorePermit,
}

impl Stream {
    /// Begins to follow.
    pub fn new(
        events: Events,
        mut stopped: watch::Receiver<bool>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let waker = Arc::new(Mutex::new(None::<Waker>));
        let whom = waker.clone();
        events.on_news(move || {
            let waker = whom.lock().take();
            waker.into_iter().for_each(Waker::wake);
        });
        Self {
            events,
            waker,
            alive: tokio::time::interval(ALIVE),
            stopped: Box::pin(async move { drop(stopped.changed().await) }),
            last: false,
            _place: place,
        }
    }

    /// Writes down what there is; `None` if there is nothing.
    fn take(&mut self) -> Option<String> {
        let Taken { missed, entries } = self.events.take(BATCH);
        let mut text = String::new();
        if missed > 0 {
            text.push_str(&format!("event: missed\ndata: {{\"missed\":{missed}}}\n\n"));
        }
        for entry in entries {
            self.last |= matches!(entry.news, News::Ended { .. });
            write_entry(&mut text, &entry.into());
        }
        (!text.is_empty()).then_some(text)
    }
}

fn write_entry(text: &mut String, entry: &EventEntry) {
    let value = serde_json::to_value(entry).unwrap_or_default();
    let name = value["event"].as_str().unwrap_or("message");
    // Writing to a string does not fail. JSON has no line breaks of its own.
    let _ = write!(
        text,
        "id: {}\nevent: {name}\ndata: {value}\n\n",
        entry.number
    );
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let frame = |text: String| Poll::Ready(Some(Ok(Frame::data(text.into()))));
        if this.last {
            return Poll::Ready(None);
        }
        // First: what is noted after it was looked wakes.
        *this.waker.lock() = Some(context.waker().clone());
        if let Some(text) = this.take() {
            return frame(text);
        }
        if this.stopped.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        match this.alive.poll_tick(context) {
            Poll::Ready(_) => frame(": here\n\n".into()),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_number_a_name_and_the_whole_of_it() {
        let mut text = String::new();
        let news = News::DeviceRemoved { id: "a\nb".into() };
        write_entry(
            &mut text,
            &EventEntry {
                number: 7,
                at_ms: 1,
                news,
            },
        );
        assert_eq!(
            text,
            "id: 7\nevent: device_removed\ndata: {\"at_ms\":1,\"event\":\"device_removed\",\"id\":\"a\\nb\",\
             \"number\":7}\n\n"
        );
    }
}
