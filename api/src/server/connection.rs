//! One client: its requests, one after the other.
//!
//! A connection is idle, or a head comes, or it is served, or an answer goes. Its stream notices the first and the last
//! ([`Watched`]); a watch beside it ends it when a head or an answer takes too long. Bodies have a clock of their own.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot, watch};

use super::Limits;
use crate::firecracker::fault::{Fault, Unreadable};
use crate::firecracker::instance::{Answer, Message};
use crate::firecracker::request::{self, Method};
use crate::v1::events::Stream;
use crate::v1::{self, Code, Desk, Problem, Served};

/// Bytes of a request's head.
const HEAD_MAX: usize = 16 << 10;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// It waits for a request.
    Nothing,
    /// A request has begun to come.
    Head,
    /// It is served.
    Work,
    /// Its answer goes.
    Answer,
    /// An answer goes that has no end.
    Stream,
    /// The client takes nothing of it.
    Stuck,
}

/// What others know of a connection.
#[derive(Debug)]
pub struct Guest {
    doing: Mutex<(Doing, Instant)>,
    leave: Notify,
}

impl Guest {
    /// Makes one that has just come.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            // A client that says nothing from the beginning is as one that says half a head.
            doing: Mutex::new((Doing::Nothing, Instant::now())),
            leave: Notify::new(),
        })
    }

    /// Since when it has done nothing, if it does nothing.
    pub fn idle_since(&self) -> Option<Instant> {
        let (doing, since) = *self.doing.lock();
        (doing == Doing::Nothing).then_some(since)
    }

    /// Makes it go.
    pub fn dismiss(&self) {
        self.leave.notify_one();
    }

    fn enter(&self, doing: Doing) {
        *self.doing.lock() = (doing, Instant::now());
    }

    /// Goes from one to another, if it is there.
    fn pass(&self, from: Doing, to: Doing) {
        let mut now = self.doing.lock();
        if now.0 == from {
            *now = (to, Instant::now());
        }
    }

    /// Returns when it has done one thing for too long.
    async fn watch(&self, limits: &Limits) {
        loop {
            let (doing, since) = *self.doing.lock();
            let limit = match doing {
                Doing::Head => limits.head,
                Doing::Answer | Doing::Stuck => limits.answer,
                Doing::Nothing | Doing::Work | Doing::Stream => Duration::MAX,
            };
            let left = limit.saturating_sub(since.elapsed());
            if left.is_zero() {
                return;
            }
            // What begins meanwhile is looked at then: nothing is limited to less.
            tokio::time::sleep(left.min(limits.head).min(limits.answer)).await;
        }
    }
}

/// A stream that tells what is going on.
struct Watched {
    stream: UnixStream,
    guest: Arc<Guest>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_ready() && buffer.filled().len() > before {
            self.guest.pass(Doing::Nothing, Doing::Head);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        match polled.is_ready() {
            true => self.guest.pass(Doing::Stuck, Doing::Stream),
            false => self.guest.pass(Doing::Stream, Doing::Stuck),
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        if polled.is_ready() {
            self.guest.pass(Doing::Answer, Doing::Nothing);
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Serves a client until it goes, or has to.
pub async fn serve(
    stream: UnixStream,
    guest: Arc<Guest>,
    limits: Limits,
    desk: Desk,
    mut stopped: watch::Receiver<bool>,
) {
    let stream = Watched {
        stream,
        guest: guest.clone(),
    };
    let service = service_fn(|request| {
        let (guest, desk) = (guest.clone(), desk.clone());
        async move {
            guest.enter(Doing::Work);
            let answer = answer(request, &limits, &desk).await;
            guest.enter(match answer.body() {
                Either::Left(_) => Doing::Answer,
                Either::Right(_) => Doing::Stream,
            });
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut closing = false;
    loop {
        let stop = async {
            match closing {
                true => pending().await,
                false => drop(stopped.changed().await),
            }
        };
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a client of the API went");
                }
                return;
            }
            () = guest.watch(&limits) => {
                tracing::debug!("a client of the API takes too long");
                return;
            }
            () = guest.leave.notified() => {
                tracing::debug!("an idle client of the API makes room");
                return;
            }
            () = stop => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// A body that is there, or one that goes on.
type AnyBody = Either<Full<Bytes>, Stream>;

/// Serves one request, of either interface.
async fn answer(request: Request<Incoming>, limits: &Limits, desk: &Desk) -> Response<AnyBody> {
    match v1::is_ours(request.uri().path()) {
        true => answer_v1(request, limits, desk).await,
        false => answer_firecracker(request, limits, desk.owner())
            .await
            .map(Either::Left),
    }
}

async fn answer_v1(request: Request<Incoming>, limits: &Limits, desk: &Desk) -> Response<AnyBody> {
    let (parts, body) = request.into_parts();
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    tracing::info!(method, path, "a request");
    let body = match read(body, limits).await {
        Ok(body) => body,
        Err(unread) => {
            let problem = Problem::from(unread);
            let mut response = reply((&problem).into(), path);
            close(&mut response);
            return response.map(Either::Left);
        }
    };
    let request = v1::Request {
        method,
        path,
        query: parts.uri.query().unwrap_or_default(),
        body: &body,
    };
    let last_seen = parts.headers.get("last-event-id");
    let last_seen = last_seen.and_then(|value| value.to_str().ok()?.parse().ok());
    match desk.answer(request, last_seen).await {
        Served::Reply(answer) => reply(answer, path).map(Either::Left),
        Served::Stream(stream) => {
            let mut response = Response::new(Either::Right(stream));
            let headers = response.headers_mut();
            let media = HeaderValue::from_static(v1::events::MEDIA);
            headers.insert(header::CONTENT_TYPE, media);
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
    }
}

/// An answer of `/v1`.
fn reply(reply: v1::Reply, path: &str) -> Response<Full<Bytes>> {
    let (media, text) = reply.body.unzip();
    let mut response = Response::new(Full::new(Bytes::from(text.unwrap_or_default())));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    if let Some(media) = media {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    }
    if reply.status == 405
        && let Ok(allowed) = HeaderValue::from_str(&v1::routes::allowed(path))
    {
        headers.insert(header::ALLOW, allowed);
    }
    response
}

/// Why a body was not read.
enum Unread {
    TooLarge(usize),
    TooSlow,
    Broken(String),
}

impl From<Unread> for Problem {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::TooLarge(limit) => {
                let message = format!("the body is larger than {limit} bytes");
                Self::new(Code::TooLarge, message)
            }
            Unread::TooSlow => Self::new(Code::BadBody, "the body takes too long"),
            Unread::Broken(why) => Self::new(Code::BadBody, format!("the body breaks off: {why}")),
        }
    }
}

/// Reads a body, of a size and in a time.
async fn read(body: Incoming, limits: &Limits) -> Result<Bytes, Unread> {
    // Who says how much it is need not send it.
    if body.size_hint().lower() > limits.body as u64 {
        return Err(Unread::TooLarge(limits.body));
    }
    let body = Limited::new(body, limits.body).collect();
    match tokio::time::timeout(limits.body_time, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Unread::TooLarge(limits.body)),
        Ok(Err(error)) => Err(Unread::Broken(error.to_string())),
        Err(_) => Err(Unread::TooSlow),
    }
}

/// What comes behind a body that was not read may be the rest of it.
fn close(response: &mut Response<Full<Bytes>>) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

/// Serves one request of Firecracker's interface.
async fn answer_firecracker(
    request: Request<Incoming>,
    limits: &Limits,
    owner: &Sender<Message>,
) -> Response<Full<Bytes>> {
    let Some(method) = Method::parse(request.method().as_str()) else {
        let text = format!(
            "Invalid HTTP Method: Unsupported HTTP method: {}",
            request.method()
        );
        return refusal(&text);
    };
    let path = request.uri().path().to_owned();
    tracing::info!(method = method.name(), path, "a request");
    let body = match read(request.into_body(), limits).await {
        Ok(body) => body,
        Err(Unread::TooLarge(limit)) => {
            return refusal(&format!(
                "Request payload is larger than the limit of {limit} allowed by server."
            ));
        }
        Err(Unread::Broken(why)) => {
            return refusal(&format!("The request's body cannot be read: {why}"));
        }
        Err(Unread::TooSlow) => return refusal("The request's body takes too long."),
    };
    let parsed = request::parse(method, &path, &body);
    let result = match parsed.action {
        Ok(action) => ask(action, owner).await,
        Err(fault) => Err(fault),
    };
    let mut response = match result {
        Ok(Answer::Done) => empty(),
        Ok(Answer::Json(text)) => json(StatusCode::OK, text),
        Err(fault) => {
            tracing::warn!(path, %fault, "a request was refused");
            fault_response(&fault)
        }
    };
    if parsed.deprecated {
        let yes = HeaderValue::from_static("true");
        response.headers_mut().insert("Deprecation", yes);
    }
    response
}

/// Has the machine's owner do something.
async fn ask(action: request::Action, owner: &Sender<Message>) -> Result<Answer, Fault> {
    let (reply, answer) = oneshot::channel();
    // Who asked may have gone when the answer comes.
    let reply = Box::new(move |result| drop(reply.send(result)));
    let sent = owner.send(Message::Wanted(action, reply));
    sent.map_err(|_| Fault::Ended)?;
    answer.await.unwrap_or(Err(Fault::Ended))
}

/// What is no request as HTTP knows it.
fn refusal(error: &str) -> Response<Full<Bytes>> {
    let error = error.to_owned();
    let mut response = json(StatusCode::BAD_REQUEST, text(&Unreadable { error }));
    close(&mut response);
    response
}

fn text(body: &impl serde::Serialize) -> String {
    serde_json::to_string(body).expect("keys are strings, and there are no numbers")
}

fn fault_response(fault: &Fault) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(fault.status()).unwrap_or(StatusCode::BAD_REQUEST);
    json(status, text(&fault.body()))
}

fn empty() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    named(response)
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    named(response)
}

/// What clients of Firecracker expect of every answer.
fn named(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    let headers = response.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static("Firecracker API"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
    response
}
