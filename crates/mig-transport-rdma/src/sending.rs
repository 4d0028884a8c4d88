//! The end of a connection that sends when the other one says READY: the source's main connection, the destination's
//! return path.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use mig_transport::{Result, SendHalf};
use tokio::{
    io::AsyncWrite,
    time::{Sleep, sleep},
};

use crate::{
    counters::RdmaCounters,
    link::{Arrived, Link, Progress, RECVS, broken},
    protocol::{
        header::{Frame, Kind},
        message::Outgoing,
        ready::{Cleared, Sender},
        stream::StreamFill,
    },
    verbs::Buffer,
};

/// A link and who may send when.
pub(crate) struct SendingEnd {
    pub(crate) link: Link,
    pub(crate) rule: Sender,
    /// Responses that came.
    pub(crate) responses: VecDeque<Arrived>,
    /// ERROR came.
    refused: bool,
    filling: Option<Buffer>,
    fill: StreamFill,
    counters: Arc<RdmaCounters>,
}

/// What the stream half and the hooks share. Never contended: the engine uses one at a time.
pub(crate) type Shared<T> = Arc<Mutex<T>>;

pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SendingEnd {
    pub(crate) fn new(link: Link, counters: Arc<RdmaCounters>) -> Self {
        Self {
            link,
            rule: Sender::new(RECVS),
            responses: VecDeque::new(),
            refused: false,
            filling: None,
            fill: StreamFill::new(),
            counters,
        }
    }

    /// Waits until something came, and sorts it.
    pub(crate) fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match ready!(self.link.poll_progress(cx))? {
            Progress::Some => {}
            Progress::Ended => return Poll::Ready(Err(hung_up())),
        }
        while let Some(arrived) = self.link.inbox.pop_front() {
            let kind = Frame::decode(arrived.bytes())?.header.kind;
            self.refused |= kind == Kind::Error;
            match self.rule.received(kind)? {
                Cleared::Ready => self.repost(arrived)?,
                Cleared::Response(_) => self.responses.push_back(arrived),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Done with a message that came.
    pub(crate) fn repost(&mut self, arrived: Arrived) -> Result<()> {
        self.link.repost(arrived.buffer)?;
        self.rule.reposted();
        Ok(())
    }

    /// Waits until the other end has said READY, once.
    pub(crate) fn poll_may_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while !(self.rule.may_send() && self.link.has_spare()) {
            ready!(self.poll_progress(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Posts a message of which the rule has been told.
    pub(crate) fn post(&mut self, message: &Outgoing<'_>) -> Result<()> {
        self.counters.round_trip();
        self.link.post(message)
    }

    /// Sends a message as soon as it may be.
    pub(crate) fn poll_send_message(
        &mut self,
        cx: &mut Context<'_>,
        message: &Outgoing<'_>,
    ) -> Poll<Result<()>> {
        ready!(self.poll_may_send(cx))?;
        self.rule.send(message.kind())?;
        Poll::Ready(self.post(message))
    }

    /// Takes stream bytes; a message leaves when it is full.
    fn poll_take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.link.check()?;
        loop {
            let mut buffer = match self.filling.take() {
                Some(buffer) => buffer,
                None => match self.link.take_spare() {
                    Some(buffer) => buffer,
                    None => {
                        ready!(self.poll_progress(cx))?;
                        continue;
                    }
                },
            };
            let taken = self.fill.push(&mut buffer, bytes);
            self.filling = Some(buffer);
            if taken > 0 || bytes.is_empty() {
                return Poll::Ready(Ok(taken));
            }
            ready!(self.poll_stream(cx))?;
        }
    }

    /// Sends the stream bytes that were gathered, and waits until the other end's device has them.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_stream(cx))?;
        while !self.link.all_sent() {
            let progress = ready!(self.poll_progress(cx));
            if let Err(error) = progress {
                if !self.link.all_sent() {
                    return Poll::Ready(Err(error));
                }
                // It came behind the acknowledgement: the next one hears of it.
                self.link.fail(&error);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends the stream bytes that were gathered.
    pub(crate) fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.fill.filled() == 0 {
            return Poll::Ready(self.link.check());
        }
        while !self.rule.may_send() {
            ready!(self.poll_progress(cx))?;
        }
        let Some(mut buffer) = self.filling.take() else { return Poll::Ready(Ok(())) };
        if let Some(len) = self.fill.finish(&mut buffer) {
            self.rule.send(Kind::QemuFile)?;
            self.counters.round_trip();
            tracing::trace!(link = self.link.name(), len, "sending stream bytes");
            self.link.post_buffer(buffer, len)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until the other end hung up; fails if it said ERROR before.
    fn poll_hung_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            // A READY may come for what will not.
            while let Some(arrived) = self.link.inbox.pop_front() {
                self.refused |= Frame::decode(arrived.bytes())?.header.kind == Kind::Error;
            }
            if self.refused {
                // Perhaps together with the last acknowledgement, where a flush has no use for it.
                self.rule.received(Kind::Error)?;
            }
            if self.link.ended() {
                return Poll::Ready(Ok(()));
            }
            // That the link broke is no reason to think that what arrived was not read.
            match ready!(self.link.poll_progress(cx)) {
                Ok(Progress::Some) => {}
                Ok(Progress::Ended) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Drop for SendingEnd {
    fn drop(&mut self) {
        let say_error = !self.link.ended() && self.rule.give_up();
        self.link.farewell().say(say_error);
    }
}

/// The writing half of a channel.
pub(crate) struct RdmaSendHalf {
    end: Shared<SendingEnd>,
    closing_grace: Duration,
    closing: Option<Pin<Box<Sleep>>>,
}

impl RdmaSendHalf {
    pub(crate) fn new(end: Shared<SendingEnd>, closing_grace: Duration) -> Self {
        Self { end, closing_grace, closing: None }
    }
}

impl AsyncWrite for RdmaSendHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.end).poll_take(cx, bytes).map_err(mig_transport::Error::into_io)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.end).poll_flush(cx).map_err(mig_transport::Error::into_io)
    }

    /// Flushes, and waits for the other end to hang up: hanging up first may cost it what it has not read yet
    /// (docs/wire/rdma.md §12). There is nothing to wait for where it has answered. An ERROR meanwhile is the other end's last
    /// word: it has read what came, and will not run the guest.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut end = lock(&this.end);
        if this.closing.is_none() {
            ready!(end.poll_flush(cx)).map_err(mig_transport::Error::into_io)?;
            this.closing = Some(Box::pin(sleep(this.closing_grace)));
        }
        let hung_up = end.poll_hung_up(cx);
        let Some(grace) = &mut this.closing else { return Poll::Ready(Ok(())) };
        if hung_up.is_pending() {
            ready!(grace.as_mut().poll(cx));
            tracing::debug!("the other end did not hang up");
        }
        end.link.farewell().complete();
        match hung_up {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into_io())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl SendHalf for RdmaSendHalf {}

/// The other end is gone where something had to be sent.
fn hung_up() -> mig_transport::Error {
    broken("the other end hung up; its own log has the reason".into())
}
