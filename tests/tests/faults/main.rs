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
mod kills;
mod leaks;
mod live;
mod rounds;
mod stored;
mod table;
mod tls;
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
    exec_plain: Exec Plain;
    exec_return_path: Exec ReturnPath;
    file_plain: File Plain;
    vsock_plain: Vsock Plain;
    vsock_return_path: Vsock ReturnPath;
    vsock_multifd: Vsock Multifd;
    rdma_plain: Rdma Plain;
    rdma_return_path: Rdma ReturnPath;
    tcp_tls: Tcp Tls;
    tcp_tls_multifd: Tcp TlsMultifd;
    tcp_stored: Tcp Stored;
    tcp_stored_multifd: Tcp StoredMultifd;
}

#[test]
fn killed_tools() {
    let _beside = leaks::beside_no_batch();
    kills::the_tool();
}

#[test]
fn killed_live_ends() {
    let _beside = leaks::beside_no_batch();
    kills::live_ends();
}

/// What `killed_live_ends` starts; by itself it is nothing.
#[test]
fn an_end_in_a_process_of_its_own() {
    let Some(end) = std::env::var(kills::END).ok() else { return };
    let (which, uri) = end.split_once(' ').expect("which end, and where");
    live::end(which, uri);
}

#[test]
fn full_disks() {
    let _beside = leaks::beside_no_batch();
    kills::a_full_disk();
}
