//! The destination's end: strangers and sources connect, those that agree on TLS come out.
//!
//! ```text
//!   inner accept ─▶ handshake │ handshake │ … at most `max_handshakes` ─▶ channel
//!                      │ failed, refused, too late, one too many: logged, closed
//! ```
//! Handshakes run beside accepting, each with its deadline, so whoever is slow or silent delays nobody. When a new one
//! finds no place, the oldest that has not said a word makes room: a source speaks at once, so a flood of silent strangers
//! only drops itself. A failure is logged with its reason and listening goes on (docs/wire/transports.md §5.3); over a
//! transport that has one connection only (fd, exec) it is the answer.
//!
//! They run inside `accept` and nowhere else: no task is left behind, and while nobody accepts nothing happens.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use async_trait::async_trait;
use atomic_waker::AtomicWaker;
use mig_transport::{Channel, Error, Listener, LogLimit, Result};

use crate::{
    credentials::ServerCredentials,
    options::TlsOptions,
    session::{self, Role, Terms},
};

/// Accepts channels from another listener and puts TLS around each, with a handshake of its own.
pub struct TlsListener {
    inner: Box<dyn Listener>,
    credentials: ServerCredentials,
    options: TlsOptions,
    handshakes: Handshakes,
    /// The inner listener has given the only channel it has.
    had_only_one: bool,
    /// What the inner listener said when it gave no more; told when nobody is left who connected before.
    exhausted: Option<Error>,
}

impl TlsListener {
    /// TLS around the channels of `inner`.
    pub fn new(
        inner: Box<dyn Listener>,
        credentials: ServerCredentials,
        options: TlsOptions,
    ) -> Self {
        let handshakes = Handshakes::new(options.max_handshakes.max(1));
        Self { inner, credentials, options, handshakes, had_only_one: false, exhausted: None }
    }

    fn begin(&mut self, channel: Channel) {
        let peer = channel.endpoint().to_string();
        self.had_only_one = !channel.capabilities().several_channels;
        let heard = Arc::new(AtomicBool::new(false));
        let terms = Terms {
            role: Role::Destination,
            deadline: self.options.handshake,
            admit: self.options.admit(),
            heard: Arc::clone(&heard),
            key_update_after: self.options.key_update_after,
        };
        let credentials = self.credentials.clone();
        let begin = move |endpoint: &_| session::destination(&credentials, endpoint);
        let work = Box::pin(session::negotiate(channel, begin, terms));
        self.handshakes.add(Handshake { work, peer, heard, called: Called::new() });
    }
}

enum Event {
    Came(Result<Channel>),
    Agreed(Result<Channel>, String),
}

#[async_trait]
impl Listener for TlsListener {
    /// The next channel under TLS.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no channel: handshakes go on with the next call.
    async fn accept(&mut self) -> Result<Channel> {
        loop {
            let Self { inner, handshakes, .. } = self;
            if handshakes.is_empty()
                && let Some(error) = self.exhausted.take()
            {
                return Err(error);
            }
            let no_more = self.had_only_one || self.exhausted.is_some();
            let event = if no_more && !handshakes.is_empty() {
                let (outcome, peer) = poll_fn(|cx| handshakes.poll(cx)).await;
                Event::Agreed(outcome, peer)
            } else {
                let mut accepting = inner.accept();
                poll_fn(|cx| match handshakes.poll(cx) {
                    Poll::Ready((outcome, peer)) => Poll::Ready(Event::Agreed(outcome, peer)),
                    Poll::Pending => accepting.as_mut().poll(cx).map(Event::Came),
                })
                .await
            };
            match event {
                Event::Came(Ok(channel)) => self.begin(channel),
                Event::Came(Err(error)) => self.exhausted = Some(error),
                Event::Agreed(Ok(channel), _) => return Ok(channel),
                Event::Agreed(Err(error), _) if self.had_only_one => return Err(error),
                Event::Agreed(Err(error), peer) => {
                    let error = error.to_string();
                    // Most errors name the connection themselves.
                    let peer = (!error.contains(&peer)).then_some(peer);
                    tracing::warn!(peer, %error, "a connection was dropped");
                }
            }
        }
    }

    fn local_addresses(&self) -> Vec<String> {
        self.inner.local_addresses()
    }
}

/// One that is going on.
struct Handshake {
    work: Pin<Box<dyn Future<Output = Result<Channel>> + Send>>,
    peer: String,
    heard: Arc<AtomicBool>,
    called: Arc<Called>,
}

/// Those that are going on, the oldest first.
struct Handshakes {
    all: VecDeque<Handshake>,
    max: usize,
    /// A flood is a few lines.
    log: LogLimit,
}

impl Handshakes {
    fn new(max: usize) -> Self {
        Self { all: VecDeque::new(), max, log: LogLimit::default() }
    }

    fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn add(&mut self, handshake: Handshake) {
        while self.all.len() >= self.max {
            let silent = self.all.iter().position(|one| !one.heard.load(Ordering::Relaxed));
            let dropped = self.all.remove(silent.unwrap_or(0));
            if let (Some(dropped), Some(unsaid)) = (dropped, self.log.say()) {
                tracing::warn!(
                    peer = %dropped.peer,
                    said_something = silent.is_none(),
                    unsaid,
                    "a connection was dropped: {} others are in a TLS handshake, and it is the oldest",
                    self.max
                );
            }
        }
        self.all.push_back(handshake);
    }

    /// The first that is over. Only those that were called are looked at, however many there are.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Result<Channel>, String)> {
        for at in 0..self.all.len() {
            let one = &mut self.all[at];
            one.called.listener.register(cx.waker());
            if !one.called.now.swap(false, Ordering::AcqRel) {
                continue;
            }
            let waker = Waker::from(Arc::clone(&one.called));
            if let Poll::Ready(outcome) = one.work.as_mut().poll(&mut Context::from_waker(&waker)) {
                let peer = std::mem::take(&mut one.peer);
                self.all.remove(at);
                return Poll::Ready((outcome, peer));
            }
        }
        Poll::Pending
    }
}

/// Wakes whoever accepts, for one handshake.
struct Called {
    now: AtomicBool,
    listener: AtomicWaker,
}

impl Called {
    fn new() -> Arc<Self> {
        Arc::new(Self { now: AtomicBool::new(true), listener: AtomicWaker::new() })
    }
}

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.now.store(true, Ordering::Release);
        self.listener.wake();
    }
}
