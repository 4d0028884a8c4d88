//! What a channel can do beyond carrying bytes one way.

/// Facts about a channel that do not change while it lives. The default is the poorest channel there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The channel carries bytes both ways, so the destination can answer (docs/wire/stream.md §7).
    pub return_path: bool,
    /// A shutdown reaches the kernel, so the far end learns of it as soon as a packet can reach it.
    pub forced_shutdown: bool,
    /// More channels of the same kind can be opened to the same address (multifd, preempt).
    pub several_channels: bool,
    /// Open descriptors can travel with the bytes.
    pub fd_passing: bool,
    /// The kernel can send from guest memory without copying it.
    pub zero_copy: bool,
    /// Pages can be placed in the other end's memory without passing through the stream.
    pub direct_ram_writes: bool,
    /// What is written is durable once the writer was shut down: a file, not a peer that answers.
    pub storage: bool,
    /// Between the ends somebody carries the bytes who may lose some of them and still end the channel in order: a command, a
    /// pipe. That it ended is then no word of the other end.
    pub relayed: bool,
    /// The channel ends for its reader only when the other end has said so itself, in a way that nobody else can, and that
    /// arrives behind everything it had said before (TLS: close_notify). Without, an end of input that follows an error of
    /// writing may be what is left of a broken connection.
    pub announced_ends: bool,
    /// So many bytes go one way, about, and then it fails: keys that wear out and cannot be changed. `None` if there is no such bound.
    pub most_bytes: Option<u64>,
}

impl Capabilities {
    /// A stream socket that was connected by address: two ways, can be shut down, can be opened again.
    pub const fn socket() -> Self {
        Self {
            return_path: true,
            forced_shutdown: true,
            several_channels: true,
            fd_passing: false,
            zero_copy: false,
            direct_ram_writes: false,
            storage: false,
            relayed: false,
            announced_ends: false,
            most_bytes: None,
        }
    }

    /// The same with one capability set by `change`; for backends outside this crate.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}
