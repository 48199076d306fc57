//! Where requests are answered: asks the owner, or has a task done.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use umbra_vmm::{Handle, Inspection, VirtioSpec};

use super::events::Stream;
use super::routes::{self, Call, Given, Order, Reply, Request};
use super::tasks::{self, Patience};
use super::types::{Device, EventPage, RemovalState};
use super::{Code, Problem, STREAMS, TASKS, prometheus};
use crate::firecracker::instance::Message;

/// What is answered.
pub enum Served {
    /// This.
    Reply(Reply),
    /// What happens.
    Stream(Stream),
}

/// What all connections of a server have in common.
#[derive(Clone)]
pub struct Desk {
    owner: Sender<Message>,
    tasks: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
}

impl Desk {
    /// Makes one before the machine's owner.
    pub fn new(owner: Sender<Message>, stopped: watch::Receiver<bool>) -> Self {
        Self {
            owner,
            tasks: Arc::new(Semaphore::new(TASKS)),
            streams: Arc::new(Semaphore::new(STREAMS)),
            stopped,
        }
    }

    /// Returns who owns the machine.
    pub fn owner(&self) -> &Sender<Message> {
        &self.owner
    }

    /// Answers a request. A stream begins where `last_seen` says, if the request does not.
    pub async fn answer(&self, request: Request<'_>, last_seen: Option<u64>) -> Served {
        let answered = match routes::parse(request) {
            Ok(Call::Events(since)) => self.follow(since.or(last_seen)).await,
            Ok(call) => self.carry_out(call).await.map(Served::Reply),
            Err(problem) => Err(problem),
        };
        answered.unwrap_or_else(|problem| {
            tracing::warn!(path = request.path, code = ?problem.code, %problem, "a request was refused");
            Served::Reply((&problem).into())
        })
    }

    async fn carry_out(&self, call: Call) -> Result<Reply, Problem> {
        match call {
            Call::Reply(reply) => Ok(reply),
            Call::Made(make) => self.task(move || Ok(make())).await,
            Call::Order(order) => Ok(self.order(order).await?.into()),
            Call::Task(task) => {
                let handle = self.handle().await?;
                self.task(move || task(&handle)).await
            }
            Call::Devices(id) => self.devices(id).await,
            Call::Remove(id, patience) => self.remove(id, patience).await,
            Call::Metrics => self.metrics().await,
            Call::EventPage(since, limit, wait) => {
                let mut events = self.events(Some(since)).await?;
                self.task(move || {
                    let waited = match wait.is_zero() {
                        true => events.take(limit),
                        false => events.wait(wait, limit),
                    };
                    Ok(Reply::json(
                        200,
                        &EventPage {
                            missed: waited.missed,
                            next_since: events.seen(),
                            events: waited.entries.into_iter().map(Into::into).collect(),
                        },
                    ))
                })
                .await
            }
            // Not here.
            Call::Events(_) => Err(Problem::new(Code::Internal, "a stream is no answer")),
        }
    }

    /// Asks the owner.
    async fn order(&self, order: Order) -> Result<Given, Problem> {
        let (reply, answer) = oneshot::channel();
        // Who asked may have gone when the answer comes.
        let reply = Box::new(move |given| drop(reply.send(given)));
        let ending = || {
            Problem::new(
                Code::Ending,
                "the machine has ended, and the server ends with it",
            )
        };
        let sent = self.owner.send(Message::Asked(order, reply));
        sent.map_err(|_| ending())?;
        answer.await.unwrap_or_else(|_| Err(ending()))
    }

    async fn handle(&self) -> Result<Handle, Problem> {
        match self.order(Order::Handle).await? {
            Given::Handle(handle) => Ok(handle),
            _ => Err(Problem::new(Code::Internal, "the owner gave no handle")),
        }
    }

    /// Takes a place, or tells that there is none.
    fn place(
        places: &Arc<Semaphore>,
        what: &str,
        most: usize,
    ) -> Result<OwnedSemaphorePermit, Problem> {
        places.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{most} {what} at a time are as many as there can be");
            Problem::new(Code::TooMany, message)
        })
    }

    /// Does what may take its time, on a thread of its own.
    async fn task<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let place = Self::place(&self.tasks, "requests that wait for the guest", TASKS)?;
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            task()
        });
        let panicked = |_| Err(Problem::new(Code::Internal, "the monitor made a mistake"));
        done.await.unwrap_or_else(panicked)
    }

    async fn devices(&self, id: Option<String>) -> Result<Reply, Problem> {
        match (self.order(Order::Devices).await?, id) {
            (Given::Handle(handle), None) => self.task(move || tasks::devices(&handle)).await,
            (Given::Handle(handle), Some(id)) => {
                self.task(move || tasks::device(&handle, &id)).await
            }
            (Given::Devices(specs), None) => {
                let all = specs.into_iter().map(described);
                Ok(Reply::json(200, &all.collect::<Vec<_>>()))
            }
            (Given::Devices(specs), Some(id)) => {
                let found = specs.into_iter().find(|spec| spec.id == id);
                let spec = found.ok_or_else(|| tasks::no_such_device(&id))?;
                Ok(Reply::json(200, &described(spec)))
            }
            _ => Err(Problem::new(Code::Internal, "the owner gave no devices")),
        }
    }

    /// Asks the guest for a device, and waits. It goes on when the client has gone: what the guest does is remembered.
    async fn remove(&self, id: String, patience: Patience) -> Result<Reply, Problem> {
        // Before the guest is asked: who cannot wait has asked for nothing.
        let place = Self::place(&self.tasks, "requests that wait for the guest", TASKS)?;
        let handle = match self.order(Order::Remove(id.clone())).await? {
            Given::Handle(handle) => handle,
            _ => return Ok(Reply::json(200, &tasks::never_there(&id))),
        };
        let owner = self.owner.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            let removal = tasks::wait_removed(&handle, &id, patience)?;
            if removal.state == RemovalState::Asked {
                return Ok(Reply::json(202, &removal));
            }
            // An owner that has gone has nothing to forget.
            let _ = owner.send(Message::Asked(Order::Forget(id), Box::new(drop)));
            Ok(Reply::json(200, &removal))
        });
        let panicked = |_| Err(Problem::new(Code::Internal, "the monitor made a mistake"));
        done.await.unwrap_or_else(panicked)
    }

    async fn metrics(&self) -> Result<Reply, Problem> {
        let Given::Info(info) = self.order(Order::Info).await? else {
            return Err(Problem::new(Code::Internal, "the owner gave no state"));
        };
        let handle = self.handle().await.ok();
        let inside = match handle {
            None => None,
            Some(handle) => {
                self.task(move || Ok::<Option<Inspection>, _>(handle.inspect().ok()))
                    .await?
            }
        };
        let text = prometheus::text(&info, inside.as_ref());
        Ok(Reply::text(prometheus::MEDIA, text))
    }

    async fn events(&self, since: Option<u64>) -> Result<umbra_vmm::Events, Problem> {
        let Given::Log(log) = self.order(Order::Log).await? else {
            return Err(Problem::new(Code::Internal, "the owner gave no log"));
        };
        log.follow(since).map_err(|error| no_descriptor(&error))
    }

    async fn follow(&self, since: Option<u64>) -> Result<Served, Problem> {
        let place = Self::place(&self.streams, "streams of events", STREAMS)?;
        let events = self.events(since).await?;
        Ok(Served::Stream(Stream::new(
            events,
            self.stopped.clone(),
            place,
        )))
    }
}

fn no_descriptor(error: &std::io::Error) -> Problem {
    Problem::new(
        Code::HostRefused,
        format!("no descriptor for events: {error}"),
    )
}

fn described(spec: VirtioSpec) -> Device {
    Device {
        id: spec.id,
        device: spec.kind,
        status: None,
    }
}
