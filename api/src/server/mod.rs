//! The server: who connects, how long they may take, how much they may say.
//!
//! One thread serves all connections. What it cannot know is asked of the machine's owner, and waited for; others are
//! served meanwhile. Requests of one connection are answered in their order.
//!
//! | bound | |
//! |---|---|
//! | [`Limits::connections`] | more wait until one goes |
//! | [`Limits::head`] | of a request's head: time, and 16 KiB |
//! | [`Limits::body`], [`Limits::body_time`] | of its body |
//! | [`Limits::answer`] | an answer that nobody takes ends its connection; a stream whose client takes nothing, too |
//! | [`v1::TASKS`], [`v1::STREAMS`] | more of either are refused |
//!
//! Idle connections stay as long as they like: clients keep them. When there is no room for another one, the one that
//! has been idle for longest goes.

mod connection;
mod socket;

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::firecracker::instance::Message;
use crate::v1::{self, Desk};

use connection::Guest;
pub use socket::BindError;

/// What a client may take of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// How long the head of a request may take to come, from its first byte or from the connection.
    pub head: Duration,
    /// Bytes of a request's body.
    pub body: usize,
    /// How long it may take to come.
    pub body_time: Duration,
    /// How long an answer may take to be taken.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            head: Duration::from_secs(10),
            body: 51200,
            body_time: Duration::from_secs(10),
            answer: Duration::from_secs(10),
        }
    }
}

/// A server that runs until it is dropped.
pub struct Server {
    path: PathBuf,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Makes the socket, with mode 0600, and serves on it. What is wanted goes to `owner`.
    ///
    /// # Errors
    /// If somebody listens there already, or the host refuses. A socket that nobody listens on any more is replaced.
    pub fn start(path: &Path, limits: Limits, owner: Sender<Message>) -> Result<Self, BindError> {
        let listener = socket::bind(path)?;
        let (stop, stopped) = watch::channel(false);
        let thread = thread::Builder::new()
            .name("api".into())
            .spawn(move || {
                if let Err(error) = serve(listener, limits, owner, stopped) {
                    tracing::error!(%error, "the API serves no longer");
                }
            })
            .map_err(|source| BindError::Thread { source })?;
        Ok(Self {
            path: path.into(),
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The thread may have ended.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Somebody may have taken it away.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// How long answers that were given may take to be taken when the server stops.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn serve(
    listener: StdListener,
    limits: Limits,
    owner: Sender<Message>,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(v1::TASKS)
        .thread_name("api-task")
        .build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let mut clients = Clients::default();
        let desk = Desk::new(owner, stopped.clone());
        loop {
            let accepted = tokio::select! {
                accepted = clients.accept(&listener, limits.connections) => accepted,
                _ = stopped.changed() => break,
            };
            match accepted {
                Ok(stream) => clients.serve(stream, limits, desk.clone(), stopped.clone()),
                Err(error) => {
                    // No descriptors, most likely: those that are there come back.
                    tracing::warn!(%error, "a client cannot be served; raise the limit of open files");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        // Who does not take his answer is not waited for.
        let rest = async { while clients.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_WORDS, rest).await;
        Ok(())
    })
}

/// Who is there.
#[derive(Default)]
struct Clients {
    tasks: JoinSet<()>,
    guests: Vec<Weak<Guest>>,
}

impl Clients {
    /// Waits for somebody to come, and until there is room.
    async fn accept(&mut self, listener: &UnixListener, most: usize) -> io::Result<UnixStream> {
        let (stream, _) = listener.accept().await?;
        // Those that have ended are forgotten.
        while self.tasks.try_join_next().is_some() {}
        self.guests.retain(|guest| guest.strong_count() > 0);
        if self.tasks.len() >= most {
            let idle = self.guests.iter().filter_map(Weak::upgrade);
            let idle = idle.filter_map(|guest| Some((guest.idle_since()?, guest)));
            if let Some((_, guest)) = idle.min_by_key(|(since, _)| *since) {
                guest.dismiss();
            }
            // If all are at work, this is not for long.
            self.tasks.join_next().await;
        }
        Ok(stream)
    }

    fn serve(
        &mut self,
        stream: UnixStream,
        limits: Limits,
        desk: Desk,
        stopped: watch::Receiver<bool>,
    ) {
        let guest = Guest::new();
        self.guests.push(Arc::downgrade(&guest));
        self.tasks
            .spawn(connection::serve(stream, guest, limits, desk, stopped));
    }
}
