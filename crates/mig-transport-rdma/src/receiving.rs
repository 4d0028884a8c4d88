//! The end of a connection that says READY and takes what comes: the destination's main connection, the source's return
//! path.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use mig_transport::{Error, ReceiveHalf, Result};
use tokio::io::{AsyncRead, ReadBuf};

use crate::{
    counters::RdmaCounters,
    link::{Arrived, Link, Progress, RECVS},
    protocol::{
        header::{Frame, Kind},
        message::Outgoing,
        ready::Receiver,
        stream::StreamDrain,
    },
    sending::{Shared, lock},
};

/// A link and when READY may be said.
pub(crate) struct ReceivingEnd {
    pub(crate) link: Link,
    rule: Receiver,
    /// Stream bytes that were not read yet.
    current: Option<(Arrived, StreamDrain)>,
    counters: Arc<RdmaCounters>,
    /// The other end is ours and waits for us to hang up.
    hangs_up_first: bool,
    is_return_path: bool,
}

impl ReceivingEnd {
    /// The destination's main connection.
    pub(crate) fn main(link: Link, hangs_up_first: bool, counters: Arc<RdmaCounters>) -> Self {
        let rule = Receiver::new(RECVS);
        Self { link, rule, current: None, counters, hangs_up_first, is_return_path: false }
    }

    /// The source's return path. Whoever fails says so on the main connection: an ERROR here could overtake the verdict.
    pub(crate) fn return_path(link: Link, counters: Arc<RdmaCounters>) -> Self {
        link.farewell().complete();
        let rule = Receiver::return_path(RECVS);
        Self { link, rule, current: None, counters, hangs_up_first: false, is_return_path: true }
    }

    /// Says READY if that is possible: early, since the other end may then send while what came is being read. Not while a
    /// message waits that has come already: it would make one lawful that was sent without READY.
    fn say_ready(&mut self) -> Result<()> {
        let none_waits = self.link.inbox.is_empty() && !self.link.ended();
        if none_waits && self.rule.may_ready() && self.link.has_spare() {
            self.rule.ready()?;
            self.counters.round_trip();
            self.link.post(&Outgoing::Ready)?;
        }
        Ok(())
    }

    /// The next message; `None` when the other end hung up.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Arrived>>> {
        loop {
            if let Some(arrived) = self.link.inbox.pop_front() {
                let frame = Frame::decode(arrived.bytes())?;
                if self.is_return_path && frame.header.kind == Kind::Ready {
                    return Poll::Ready(Err(not_a_return_path()));
                }
                self.rule.received(frame.header.kind)?;
                return Poll::Ready(Ok(Some(arrived)));
            }
            if self.hangs_up_first && self.link.farewell().is_complete() {
                return Poll::Ready(Ok(None));
            }
            self.say_ready()?;
            if ready!(self.link.poll_progress(cx))? == Progress::Ended {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// The next command inside a hook window.
    pub(crate) fn poll_command(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Arrived>>> {
        self.poll_message(cx)
    }

    /// Answers the command that came last.
    pub(crate) fn poll_respond(
        &mut self,
        cx: &mut Context<'_>,
        response: &Outgoing<'_>,
    ) -> Poll<Result<()>> {
        while !self.link.has_spare() {
            if ready!(self.link.poll_progress(cx))? == Progress::Ended {
                return Poll::Ready(Ok(()));
            }
        }
        self.rule.respond(response.kind())?;
        Poll::Ready(self.link.post(response))
    }

    /// The command that came last has had its effect.
    pub(crate) fn done(&mut self, arrived: Arrived) -> Result<()> {
        self.rule.done()?;
        self.repost(arrived)
    }

    fn repost(&mut self, arrived: Arrived) -> Result<()> {
        self.link.repost(arrived.buffer)?;
        self.rule.reposted();
        Ok(())
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if self.current.is_none() {
            let Some(arrived) = ready!(self.poll_message(cx))? else {
                return Poll::Ready(Ok(()));
            };
            let drain = StreamDrain::of(&Frame::decode(arrived.bytes())?)?;
            self.current = Some((arrived, drain));
            self.say_ready()?;
        }
        if let Some((arrived, drain)) = &mut self.current {
            let taken = drain.read(&arrived.buffer, into.initialize_unfilled());
            into.advance(taken);
        }
        if let Some((arrived, _)) = self.current.take_if(|(_, drain)| drain.unread() == 0) {
            self.repost(arrived)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for ReceivingEnd {
    fn drop(&mut self) {
        let say_error = !self.link.ended() && self.rule.give_up();
        self.link.farewell().say(say_error);
    }
}

/// The destination waits for stream bytes on what was to be the way back.
fn not_a_return_path() -> Error {
    Error::PeerIncompatible {
        what: "the destination takes the second connection for another migration: it wants no return path, and both ends \
               must agree on it"
            .into(),
    }
}

/// The reading half of a channel.
pub(crate) struct RdmaReceiveHalf(pub(crate) Shared<ReceivingEnd>);

impl AsyncRead for RdmaReceiveHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        lock(&self.0).poll_stream(cx, into).map_err(mig_transport::Error::into_io)
    }
}

impl ReceiveHalf for RdmaReceiveHalf {}
