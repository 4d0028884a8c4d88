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
mod guest;
mod judge;
mod kills;
mod leaks;
mod live;
mod mode;
mod product;
mod rounds;
mod stored;
mod table;
mod tls;
mod way;

use mig_tests::lab;

use crate::{live::batch, mode::Mode, way::Way};

macro_rules! batches {
    ($($name:ident: $way:ident $mode:ident;)*) => {
        /// What has a test of its own.
        const BATCHES: &[(Way, Mode)] = &[$((Way::$way, Mode::$mode)),*];

        $(
            #[test]
            fn $name() {
                batch(Way::$way, Mode::$mode);
            }
        )*
    };
}

batches! {
    tcp_plain: Tcp Plain;
    tcp_return_path: Tcp ReturnPath;
    tcp_multifd: Tcp Multifd;
    tcp_multifd_zlib: Tcp MultifdZlib;
    tcp_tls: Tcp Tls;
    tcp_tls_multifd: Tcp TlsMultifd;
    tcp_stored: Tcp Stored;
    tcp_stored_multifd: Tcp StoredMultifd;
    unix_plain: Unix Plain;
    unix_return_path: Unix ReturnPath;
    unix_multifd: Unix Multifd;
    unix_tls: Unix Tls;
    unix_tls_multifd: Unix TlsMultifd;
    fd_socket_plain: FdSocket Plain;
    fd_socket_return_path: FdSocket ReturnPath;
    fd_socket_tls: FdSocket Tls;
    fd_pipe_plain: FdPipe Plain;
    fd_pipes_return_path: FdPipes ReturnPath;
    fd_pipes_tls: FdPipes Tls;
    exec_plain: Exec Plain;
    exec_return_path: Exec ReturnPath;
    exec_tls: Exec Tls;
    file_plain: File Plain;
    vsock_plain: Vsock Plain;
    vsock_return_path: Vsock ReturnPath;
    vsock_multifd: Vsock Multifd;
    rdma_plain: Rdma Plain;
    rdma_return_path: Rdma ReturnPath;
}

/// Whose ends are killed here, and in the lab.
const KILLED_HERE: [Way; 7] =
    [Way::Tcp, Way::Unix, Way::FdSocket, Way::FdPipe, Way::FdPipes, Way::Exec, Way::File];
const KILLED_IN_THE_LAB: [Way; 2] = [Way::Vsock, Way::Rdma];

#[test]
fn every_combination_is_tried_or_has_a_reason() {
    let killed = [&KILLED_HERE[..], &KILLED_IN_THE_LAB].concat();
    product::complete(BATCHES, &killed, &kills::FULL_DISKS);
}

#[test]
fn killed_live_ends() {
    let _beside = leaks::beside_no_batch();
    kills::every(&KILLED_HERE, false);
}

#[test]
fn killed_tools() {
    let _beside = leaks::beside_no_batch();
    kills::every(&KILLED_HERE, true);
}

#[test]
fn killed_over_vsock() {
    killed_in_the_lab(Way::Vsock);
}

#[test]
fn killed_over_rdma() {
    killed_in_the_lab(Way::Rdma);
}

fn killed_in_the_lab(way: Way) {
    let _beside = leaks::beside_no_batch();
    if !way.is_here() {
        return;
    }
    let device = (way == Way::Rdma).then(lab::given_out);
    kills::every(&[way], false);
    kills::every(&[way], true);
    if let Some(before) = device {
        lab::wait_until_given_back(&before);
    }
}

/// What `killed_live_ends` starts; by itself it is nothing.
#[test]
fn an_end_in_a_process_of_its_own() {
    if std::env::var_os(kills::END).is_some() {
        kills::end();
    }
}

#[test]
fn full_disks() {
    let _beside = leaks::beside_no_batch();
    kills::a_full_disk();
}
