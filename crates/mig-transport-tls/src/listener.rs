//! The destination's end: strangers and sources connect, those that agree on TLS come out.
//!
//! ```text
//!   inner accept ─▶ handshake │ handshake │ … at most `max_handshakes` ─▶ channel
//!                      │ failed, refused, too late, one too many: logged, closed
//! ```
//! Handshakes run beside accepting, each with its deadline, so whoever is slow or silent delays nobody; see
//! [`handshakes`] for who goes when there is one too many, and when nobody is accepted because half are too new to go. A failure is logged with its reason and listening goes on
//! (docs/wire/transports.md §5.3); over a transport that has one connection only (fd, exec) it is the answer.
//!
//! They run inside `accept` and nowhere else: no task is left behind, and while nobody accepts nothing happens. What accepts
//! beside a running migration does so in the migration's own task, so others of that task get a turn after each few steps.

mod handshakes;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use async_trait::async_trait;
use mig_transport::{Channel, Error, Listener, LogLimit, Result};

use self::handshakes::{Handshake, Handshakes};
use crate::{
    credentials::ServerCredentials,
    options::TlsOptions,
    session::{self, Events, Role, Terms},
};

/// Accepts channels from another listener and puts TLS around each, with a handshake of its own.
pub struct TlsListener {
    inner: Box<dyn Listener>,
    credentials: ServerCredentials,
    options: TlsOptions,
    handshakes: Handshakes,
    /// What happened in them, to tell who got on last.
    events: Events,
    /// A flood is a few lines.
    log: LogLimit,
    last_dropped: Option<Error>,
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
        let handshakes = Handshakes::new(options.max_handshakes);
        Self {
            inner,
            credentials,
            options,
            handshakes,
            events: Events::default(),
            log: LogLimit::default(),
            last_dropped: None,
            had_only_one: false,
            exhausted: None,
        }
    }

    fn begin(&mut self, channel: Channel) {
        let peer = channel.endpoint().to_string();
        self.had_only_one = !channel.capabilities().several_channels;
        let from = channel.peer().neighbourhood();
        let progress = self.events.connected();
        let terms = Terms {
            role: Role::Destination,
            deadline: self.options.handshake,
            admit: self.options.admit(),
            // Whoever comes next is somebody else.
            heard: Arc::default(),
            progress: progress.clone(),
            key_update_after: self.options.key_update_after,
        };
        let credentials = self.credentials.clone();
        let begin = move |endpoint: &_| session::destination(&credentials, endpoint);
        let work = Box::pin(session::negotiate(channel, begin, terms));
        self.handshakes.add(Handshake::new(work, peer, from, progress));
    }

    fn tell_of(&mut self, error: Error, peer: String) {
        if let Some(unsaid) = self.log.say() {
            let error = error.to_string();
            // Most errors name the connection themselves.
            let peer = (!error.contains(&peer)).then_some(peer);
            tracing::warn!(peer, %error, unsaid, "a connection was dropped");
        }
        self.last_dropped = Some(error);
    }
}

/// What `accept` goes on with.
enum Event {
    Came(Result<Channel>),
    /// There is room again.
    Room,
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
            } else if let Some(until) = handshakes.full_until() {
                let mut room = pin!(tokio::time::sleep_until(until));
                poll_fn(|cx| match handshakes.poll(cx) {
                    Poll::Ready((outcome, peer)) => Poll::Ready(Event::Agreed(outcome, peer)),
                    Poll::Pending => room.as_mut().poll(cx).map(|()| Event::Room),
                })
                .await
            } else {
                let mut accepting = inner.accept();
                poll_fn(|cx| match handshakes.poll(cx) {
                    Poll::Ready((outcome, peer)) => Poll::Ready(Event::Agreed(outcome, peer)),
                    Poll::Pending => accepting.as_mut().poll(cx).map(Event::Came),
                })
                .await
            };
            match event {
                Event::Came(Ok(channel)) => {
                    self.begin(channel);
                    tokio::task::yield_now().await;
                }
                Event::Came(Err(error)) => self.exhausted = Some(error),
                Event::Room => {}
                Event::Agreed(Ok(channel), _) => return Ok(channel),
                Event::Agreed(Err(error), _) if self.had_only_one => return Err(error),
                Event::Agreed(Err(error), peer) => {
                    self.tell_of(error, peer);
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn local_addresses(&self) -> Vec<String> {
        self.inner.local_addresses()
    }

    fn nobody_is_missing(&mut self, nobody: bool) {
        self.handshakes.nobody_is_missing(nobody);
        self.inner.nobody_is_missing(nobody);
    }

    fn last_dropped(&mut self) -> Option<Error> {
        self.last_dropped.take().or_else(|| self.inner.last_dropped())
    }
}
