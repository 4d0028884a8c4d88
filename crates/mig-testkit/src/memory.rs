//! Channels without a kernel: a double for tests of everything above a transport.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use mig_transport::{Capabilities, Channel, ChannelParts, Endpoint, ReceiveHalf, SendHalf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Two ends of a connection in memory; each direction holds at most `buffer_bytes` on the way. Works under paused time.
/// A shutdown stops its own end only (the capability says so); the other end learns when the halves are dropped.
pub fn memory_pair(buffer_bytes: usize) -> (Channel, Channel) {
    // Two one-way pipes, so that each half can be dropped on its own.
    let (there, from_first) = tokio::io::duplex(buffer_bytes);
    let (back, from_second) = tokio::io::duplex(buffer_bytes);
    let first = stream_channel(Some(from_second), Some(there), named("first", "second"));
    let second = stream_channel(Some(from_first), Some(back), named("second", "first"));
    (first, second)
}

/// A channel over tokio's own traits, sent and received through the default, copying, page methods. `None` leaves out
/// a direction.
pub fn stream_channel<R, W>(reader: Option<R>, writer: Option<W>, endpoint: Endpoint) -> Channel
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    Channel::new(stream_parts(reader, writer, endpoint))
}

/// The parts of a [`stream_channel`], for who wants other facts about it.
pub fn stream_parts<R, W>(reader: Option<R>, writer: Option<W>, endpoint: Endpoint) -> ChannelParts
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    ChannelParts {
        receive: reader.map(|reader| Box::new(Reading(reader)) as Box<dyn ReceiveHalf>),
        send: writer.map(|writer| Box::new(Writing(writer)) as Box<dyn SendHalf>),
        capabilities: Capabilities::default().with(|can| {
            can.return_path = true;
            can.several_channels = true;
        }),
        endpoint,
        ..ChannelParts::default()
    }
}

pub(crate) fn named(local: &str, peer: &str) -> Endpoint {
    Endpoint { transport: "memory", local: local.to_owned(), peer: peer.to_owned() }
}

struct Reading<R>(R);

impl<R: AsyncRead + Unpin> AsyncRead for Reading<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<R: AsyncRead + Send + Unpin> ReceiveHalf for Reading<R> {}

struct Writing<W>(W);

impl<W: AsyncWrite + Unpin> AsyncWrite for Writing<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl<W: AsyncWrite + Send + Unpin> SendHalf for Writing<W> {}
