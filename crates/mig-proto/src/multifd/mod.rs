//! Multifd: pages over N data channels beside the main one. docs/wire/ram.md §9.
//!
//! ```text
//!   data channel:   Hello │ header │ payload │ header │ payload │ …        source ──▶ destination
//!
//!   header, RAM      0  magic version flags │ alloc normal next_packet_size │ packet_num
//!   1344 bytes      32  zero │ reserved
//!                   64  block name, NUL padded
//!                  320  128 × be64: `normal` offsets, then `zero` offsets, the rest unused
//!   payload             `normal` pages, raw or compressed; zero pages have none
//!
//!   header, device   0  magic version flags │ idstr[256] │ instance_id │ n
//!   276 bytes, then n bytes
//! ```
//!
//! The happy path of a receiver, who reads by lengths and buffers nothing twice: the
//! [64 bytes](Hello::LEN) of the [`Hello`], which [`Hellos`] admits; then for each packet the
//! [12 bytes](COMMON_LEN) that [`head_kind`] needs to tell how long the header is, the header
//! ([`RamPacket`], [`DeviceStatePacket`]), and as many bytes of payload as it says. End of the
//! channel at a packet's boundary is the normal end. A sender collects offsets in
//! [`PacketPages`] and writes headers with [`encode`].
//!
//! Nothing on a channel orders its packets against those of another but the SYNC packets, whose
//! marks on the main channel depend on the machine type: [`Dialect`].
//!
//! Whatever breaks a rule is a [`MultifdError`]: which message, which of its bytes, what was found,
//! what was expected and who is to blame. Then all channels are to be aborted.
//!
//! Target pages are of 4096 bytes here. A machine with others has another header length and
//! other counts.

mod device_state;
mod dialect;
pub mod encode;
mod error;
mod header;
mod hello;
mod method;
mod packet;
mod pages;

pub use device_state::{DEVICE_STATE_HEADER_LEN, DeviceStatePacket};
pub use dialect::{Dialect, MachineVersion, SyncMode, ZeroPages};
pub use error::{MultifdError, MultifdErrorKind, MultifdMessage};
pub use header::{COMMON_LEN, HeadKind, head_kind};
pub use hello::{Hello, Hellos};
pub use method::{MAX_COMPRESSED_LEN, Method};
pub use packet::{HEADER_LEN, PACKET_PAGES, PAGE_LEN, RamPacket};
pub use pages::{PacketFull, PacketPages};
