//! Sending without a copy: the kernel hands guest memory to the network device itself (Linux, `MSG_ZEROCOPY`, TCP).
//!
//! ```text
//!   list:    head │ pages ……… │ head │ pages ………
//!   calls:   send │ MSG_ZEROCOPY│ send │ MSG_ZEROCOPY        a head lives in a buffer that is used again: it is copied
//!                     │ 0                  │ 1               numbered by the kernel
//!                     ▼                    ▼
//!            in flight: region 0 ……… region 1                kept alive
//!                     ▲
//!   error queue:  "0 to 1 are done", perhaps "and I copied them"
//! ```
//!
//! Asked for, a half first looks at the [limits](ZeroCopyLimits) that would make the kernel refuse, then sends long runs
//! of pages this way (docs/wire/transports.md §4, `zero-copy-send`). The kernel says of each send when it is done with
//! the memory, and whether it copied after all: loopback, veth and devices that cannot gather always do, and then asking
//! costs time and gains none. So a half that is told so for some MiB on end stops asking, and its [`ZeroCopy`] says why.
//! Nothing here ever ends a channel: what cannot be sent without a copy is sent with one.
//!
//! **What the owner of the memory has to know.** Pages are read when the device sends them, and again when they have to
//! be sent again: what the guest writes meanwhile may go out in their place, torn even. That is right for a migration,
//! where such a page is dirty and sent again later, and for nothing else. A region is kept alive until the kernel is done
//! with it. The orderly end of the half waits for that; a half that is dropped before makes the connection be reset when
//! it is closed, so that memory that is used for something else by then does not reach the other end as guest memory.

mod completion;
mod error_queue;
mod events;
mod flight;
mod limits;
mod report;
mod sending;

pub(crate) use self::{events::SendEvents, sending::ZeroCopySending};
pub use self::{
    limits::ZeroCopyLimits,
    report::{ZeroCopy, ZeroCopyReport},
};
