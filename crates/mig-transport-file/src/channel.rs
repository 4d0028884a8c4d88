//! One channel into a file, or out of one.

use std::{
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mig_transport::{
    Capabilities, Channel, ChannelParts, Connector, Endpoint, Error, Listener, Result,
};

use crate::{
    open::{self, FileTarget},
    reader::FileReceiveHalf,
    sets::DescriptorSets,
    writer::FileSendHalf,
};

/// An open can hang (a dead network filesystem); as long as the default deadline of a connection.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);

/// What both sides know.
#[derive(Debug)]
struct Once {
    target: FileTarget,
    sets: Arc<DescriptorSets>,
    taken: AtomicBool,
}

impl Once {
    fn new(target: FileTarget) -> Self {
        Self { target, sets: Arc::default(), taken: AtomicBool::new(false) }
    }

    /// Opens on a thread where waiting hurts nobody; once.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the call; its thread ends by itself, and closes what it opened. A file that is written to
    /// is created and cut by then.
    async fn open(&self, how: fn(&FileTarget, &DescriptorSets) -> Result<File>) -> Result<File> {
        if self.taken.load(Ordering::Acquire) {
            return Err(Error::Misuse {
                what: format!(
                    "{}: a file gives exactly one channel and it was taken; multifd and postcopy-preempt need a live \
                     transport (tcp:, unix:, vsock:)",
                    self.target
                ),
            });
        }
        let (target, sets) = (self.target.clone(), Arc::clone(&self.sets));
        let opening = tokio::task::spawn_blocking(move || how(&target, &sets));
        let doing = || format!("{}: opening it", self.target);
        let file = tokio::time::timeout(OPEN_DEADLINE, opening)
            .await
            .map_err(|_| Error::Deadline { doing: doing(), after: OPEN_DEADLINE })?
            .map_err(|failed| Error::io(doing(), std::io::Error::other(failed)))??;
        if self.taken.swap(true, Ordering::AcqRel) {
            return Err(Error::Misuse { what: format!("{}: opened twice at once", self.target) });
        }
        Ok(file)
    }

    fn channel(&self, parts: ChannelParts) -> Channel {
        let local = self.target.to_string();
        let local = local.strip_prefix("file:").unwrap_or(&local).to_owned();
        Channel::new(ChannelParts {
            capabilities: Capabilities::default().with(|known| known.storage = true),
            endpoint: Endpoint { transport: "file", local, peer: String::new() },
            ..parts
        })
    }

    fn started<T>(&self, thread: std::io::Result<T>) -> Result<T> {
        thread
            .map_err(|error| Error::io(format!("{}: starting a thread for it", self.target), error))
    }
}

/// The source's side of `file:`. The file is created with mode 0600 if it is missing and cut to the offset; ending the
/// writer makes it durable.
#[derive(Debug)]
pub struct FileConnector(Once);

impl FileConnector {
    /// A connector that will write `target`, once.
    pub fn new(target: FileTarget) -> Self {
        Self(Once::new(target))
    }

    /// The same with sets for `/dev/fdset/N`.
    pub fn with_sets(mut self, sets: Arc<DescriptorSets>) -> Self {
        self.0.sets = sets;
        self
    }
}

#[async_trait]
impl Connector for FileConnector {
    async fn connect(&self) -> Result<Channel> {
        let file = self.0.open(open::for_writing).await?;
        let target = &self.0.target;
        let folder = target.path.parent().map(|folder| {
            if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() }
        });
        // Names below /dev and /proc stand for something that is durable elsewhere.
        let folder = folder
            .filter(|_| !target.path.starts_with("/dev") && !target.path.starts_with("/proc"));
        let half = FileSendHalf::start(file, target.offset, target.to_string(), folder);
        let send = self.0.started(half)?;
        Ok(self.0.channel(ChannelParts { send: Some(Box::new(send)), ..ChannelParts::default() }))
    }

    fn is_two_way(&self) -> Option<bool> {
        Some(false)
    }
}

/// The destination's side of `file:`: reads from the offset to the end.
#[derive(Debug)]
pub struct FileListener(Once);

impl FileListener {
    /// A listener that will read `target`, once.
    pub fn new(target: FileTarget) -> Self {
        Self(Once::new(target))
    }

    /// The same with sets for `/dev/fdset/N`.
    pub fn with_sets(mut self, sets: Arc<DescriptorSets>) -> Self {
        self.0.sets = sets;
        self
    }
}

#[async_trait]
impl Listener for FileListener {
    async fn accept(&mut self) -> Result<Channel> {
        let file = self.0.open(open::for_reading).await?;
        let target = &self.0.target;
        let half = FileReceiveHalf::start(file, target.offset, target.to_string());
        let receive = self.0.started(half)?;
        let receive = Some(Box::new(receive) as _);
        Ok(self.0.channel(ChannelParts { receive, ..ChannelParts::default() }))
    }

    fn local_addresses(&self) -> Vec<String> {
        Vec::new()
    }
}
