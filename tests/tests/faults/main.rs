//! Every operation of a small migration fails once, over every transport and in every mode: bounded time, one owner of
//! the guest, nothing left behind, no file that looks complete and is not, and a cause in the error.
//!
//! ```text
//!   counting run ──▶ cases: each operation fails or stalls, bytes are cut, turned, lost, sockets are reset
//!                      │ a batch, some dozens at a time
//!                      ▼
//!   scene ── both ends in this process, over a way's real kernel objects ──▶ judge ──▶ docs/faults.md
//! ```
//! `MIG_FAULTS=all` tries every byte instead of a sample; `MIG_FAULTS_ONLY=WORDS` only cases whose names have these words.

mod cases;
mod judge;
mod leaks;
mod live;
mod table;
mod way;

use crate::{
    live::{Mode, batch},
    way::Way,
};

macro_rules! live {
    ($($name:ident: $way:ident $mode:ident;)*) => { $(
        #[test]
        fn $name() {
            batch(Way::$way, Mode::$mode);
        }
    )* };
}

live! {
    tcp_plain: Tcp Plain;
    tcp_return_path: Tcp ReturnPath;
    tcp_multifd: Tcp Multifd;
    tcp_multifd_zlib: Tcp MultifdZlib;
    unix_plain: Unix Plain;
    unix_return_path: Unix ReturnPath;
    unix_multifd: Unix Multifd;
    fd_socket_plain: FdSocket Plain;
    fd_socket_return_path: FdSocket ReturnPath;
    fd_pipe_plain: FdPipe Plain;
    fd_pipes_return_path: FdPipes ReturnPath;
}
