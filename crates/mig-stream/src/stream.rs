//! A channel opened for streaming: owned halves for each direction, and what the halves share.

use std::sync::Arc;

use mig_transport::{Capabilities, Channel, Endpoint, Identity, Peer, RamHooks, ShutdownHandle};

use crate::{
    counters::StreamCounters,
    error::{Error, Result},
    idle::IdleClock,
    rate_limiter::RateLimiter,
    reader::StreamReader,
    writer::StreamWriter,
};

/// How the halves of a stream behave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StreamOptions {
    /// Bytes the reader of the main direction buffers, allocated once. Default 1 MiB: below 256 KiB costs speed, above
    /// brings none.
    pub buffer_bytes: usize,
    /// The rate of the main writer, shared with the other channels of the migration. Default: unlimited.
    pub limiter: Option<Arc<RateLimiter>>,
    /// The deadline on silence, shared with the other channels of the migration. Default: none.
    pub idle: Option<Arc<IdleClock>>,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self { buffer_bytes: StreamReader::BUFFER_BYTES, limiter: None, idle: None }
    }
}

impl StreamOptions {
    /// Paces the main writer.
    pub fn limiter(mut self, limiter: Arc<RateLimiter>) -> Self {
        self.limiter = Some(limiter);
        self
    }

    /// Bounds silence.
    pub fn idle(mut self, idle: Arc<IdleClock>) -> Self {
        self.idle = Some(idle);
        self
    }

    /// Sets the size of the main reader's buffer.
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes;
        self
    }
}

/// A channel whose halves are taken as they are needed.
///
/// ```text
///   source:       writer()  ═══ main ══▶  reader()         destination
///          return_reader()  ◀── back ───  return_writer()
/// ```
///
/// The halves are owned and `Send`, and outlive this value. A half that nobody took is dropped with it, which ends that
/// direction: keep the stream for as long as the channel should stay whole.
#[derive(Debug)]
pub struct Stream {
    channel: Channel,
    name: Arc<str>,
    options: StreamOptions,
    counters: Arc<StreamCounters>,
}

impl Stream {
    /// Opens a channel. Nothing is sent or received yet.
    pub fn open(channel: Channel, options: StreamOptions) -> Self {
        let name = channel.endpoint().to_string().into();
        Self { channel, name, options, counters: Arc::default() }
    }

    /// Takes the main writer (source); it is paced. [`Error::Misuse`] if nothing can be sent, or it was taken.
    pub fn writer(&mut self) -> Result<StreamWriter> {
        let limiter = self.options.limiter.clone();
        self.make_writer(limiter)
    }

    /// Takes the main reader (destination). [`Error::Misuse`] if nothing can be received, or it was taken.
    pub fn reader(&mut self) -> Result<StreamReader> {
        self.make_reader(self.options.buffer_bytes)
    }

    /// Takes the reader of the way back (source). [`Error::Misuse`] on a one-way channel, before anything was sent.
    pub fn return_reader(&mut self) -> Result<StreamReader> {
        self.check_return_path()?;
        self.make_reader(StreamReader::RETURN_PATH_BUFFER_BYTES.min(self.options.buffer_bytes))
    }

    /// Takes the writer of the way back (destination); it is not paced. [`Error::Misuse`] on a one-way channel.
    pub fn return_writer(&mut self) -> Result<StreamWriter> {
        self.check_return_path()?;
        self.make_writer(None)
    }

    /// Takes the transport's RAM hooks; one without any answers [`NoRamHooks`](mig_transport::NoRamHooks).
    pub fn take_ram_hooks(&mut self) -> Box<dyn RamHooks> {
        self.channel.take_ram_hooks()
    }

    /// The deadline on silence, for waits that are not for bytes of this channel.
    pub fn idle(&self) -> Option<Arc<IdleClock>> {
        self.options.idle.clone()
    }

    /// Bounds silence from here on, for halves that are taken after this.
    pub fn set_idle(&mut self, idle: Option<Arc<IdleClock>>) {
        self.options.idle = idle;
    }

    /// A handle that stops the channel from any task and wakes whoever waits in either half.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.channel.shutdown_handle()
    }

    /// What both directions have carried, readable any time.
    pub fn counters(&self) -> Arc<StreamCounters> {
        Arc::clone(&self.counters)
    }

    /// What the channel can do.
    pub fn capabilities(&self) -> Capabilities {
        self.channel.capabilities()
    }

    /// What the two ends are called.
    pub fn endpoint(&self) -> &Endpoint {
        self.channel.endpoint()
    }

    /// Who is at the other end, as far as the kernel vouches for it.
    pub fn peer(&self) -> Peer {
        self.channel.peer()
    }

    /// Who the other end has proven to be.
    pub fn identity(&self) -> Option<&Identity> {
        self.channel.identity()
    }

    fn check_return_path(&self) -> Result<()> {
        if self.channel.capabilities().return_path {
            return Ok(());
        }
        Err(Error::misuse(format!(
            "{}: this channel carries bytes one way only, so there is no return path; use a two-way transport or \
             migrate without return path",
            self.name
        )))
    }

    fn make_writer(&mut self, limiter: Option<Arc<RateLimiter>>) -> Result<StreamWriter> {
        let sender = self.channel.take_sender().map_err(misuse)?;
        let (name, counters) = (Arc::clone(&self.name), self.counters());
        Ok(StreamWriter::new(sender, name, limiter, self.options.idle.clone(), counters))
    }

    fn make_reader(&mut self, buffer_bytes: usize) -> Result<StreamReader> {
        let receiver = self.channel.take_receiver().map_err(misuse)?;
        let (name, counters) = (Arc::clone(&self.name), self.counters());
        Ok(StreamReader::new(receiver, name, buffer_bytes, self.options.idle.clone(), counters))
    }
}

/// The channel's own words: taking a half fails in this one way.
fn misuse(error: mig_transport::Error) -> Error {
    Error::misuse(error.to_string())
}
