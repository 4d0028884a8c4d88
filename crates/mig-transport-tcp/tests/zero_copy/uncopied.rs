//! Where the kernel really does not copy: a device that takes every packet and shows it to nobody, in a network namespace
//! of its own. The other end exists only as far as the test plays it: the connection is put up as established
//! (`TCP_REPAIR`), and acknowledgements are written by hand.
//!
//! ```text
//!   socket ── packets ──▶ mig0, a tun device without a reader ──▶ nothing
//!          ◀── acknowledgements ── raw socket, over loopback ──── the test
//! ```

#![expect(unsafe_code, reason = "socket options and counters that only libc has; see each block")]

use std::{
    future::poll_fn,
    io,
    mem::size_of_val,
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd,
    sync::atomic::{AtomicUsize, Ordering},
};

use mig_testkit::runs_inside;
use mig_transport::Gather;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncWriteExt;

use super::support::{Gone, channel, region, send};

const HERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 4000);
const THERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 5000);
/// Sequence numbers of the first byte, each way.
const SENT_FROM: u32 = 1_000_000;
const HEARD_FROM: u32 = 2_000_000;
/// What the other end has room for, which fits without scaling.
const WINDOW: u16 = 60_000;

/// Puts up the device, then runs what follows.
const NETWORK: [&str; 6] = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c"];
const DEVICE: &str = "ip link set lo up && ip tuntap add dev mig0 mode tun && ip addr add 192.0.2.1/24 dev mig0 && \
                      ip link set mig0 up && exec \"$0\" \"$@\"";

fn runs_in_a_network(name: &str) -> bool {
    runs_inside(name, &[&NETWORK[..], &[DEVICE]].concat())
}

#[test]
fn memory_is_lent_until_it_was_acknowledged() {
    if runs_in_a_network("uncopied::memory_is_lent_until_it_was_acknowledged") {
        acknowledged();
    }
}

#[test]
fn an_end_that_nobody_acknowledges_is_overdue() {
    if runs_in_a_network("uncopied::an_end_that_nobody_acknowledges_is_overdue") {
        overdue();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn overdue() {
    let mut channel = channel(established().unwrap());
    let mut sender = channel.take_sender().unwrap();
    assert!(sender.request_zero_copy().is_in_force());
    let gone = Gone::default();
    let mut gather = Gather::new();
    gather.push_page(&region(1, 32 * 1024, &gone), 0, 32 * 1024).unwrap().unwrap();
    send(&mut sender, &mut gather, &AtomicUsize::new(0)).await.unwrap();
    drop(gather);
    // Time that nobody waits for passes at once.
    tokio::time::pause();
    let error = sender.shutdown().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(error.to_string().contains("the last 32768 bytes"), "{error}");
    assert_eq!(gone.count(), 0, "it may be sent yet");
    drop(sender);
    assert_eq!(gone.count(), 0, "and until the socket is closed");
    drop(channel);
    assert_eq!(gone.count(), 1);
}

#[tokio::main(flavor = "current_thread")]
async fn acknowledged() {
    let socket = established().unwrap();
    let mut there = There::new(&socket);
    let mut channel = channel(socket);
    let mut sender = channel.take_sender().unwrap();
    let told = sender.request_zero_copy();
    let gone = Gone::default();

    // Not acknowledged, it is kept, whoever else lets it go.
    let mut gather = Gather::new();
    gather.push_head(b"head").unwrap();
    gather.push_page(&region(1, 32 * 1024, &gone), 0, 32 * 1024).unwrap().unwrap();
    let polls = AtomicUsize::new(0);
    send(&mut sender, &mut gather, &polls).await.unwrap();
    gather.clear();
    assert_eq!(gone.count(), 0, "{told:?}");
    assert_eq!(told.report().bytes_zero_copied, 0);
    there.written = 4 + 32 * 1024;
    while there.acknowledge() {}

    // The next send takes in what the kernel has said; far more than is looked at before zero copy is given up.
    let lists: usize = 40;
    let sending = async {
        for _ in 0..lists {
            gather.push_head(b"head").unwrap();
            gather.push_page(&region(2, 256 * 1024, &gone), 0, 256 * 1024).unwrap().unwrap();
            while !gather.is_empty() {
                gather.set_allowance(Some(64 * 1024));
                // Counted within the poll that sent it: what is acknowledged is always known to the last byte.
                let sent = poll_fn(|cx| sender.poll_send(cx, &mut gather)).await.unwrap();
                SENT.fetch_add(sent, Ordering::SeqCst);
            }
            gather.clear();
        }
        sender.shutdown().await.unwrap();
    };
    let mut sending = std::pin::pin!(sending);
    loop {
        tokio::select! {
            biased;
            () = &mut sending => break,
            () = tokio::task::yield_now() => {
                // One more for the end, which is acknowledged like a byte once everything before it was.
                there.written = 4 + 32 * 1024 + SENT.load(Ordering::SeqCst);
                let all = lists * (4 + 256 * 1024);
                there.written += usize::from(SENT.load(Ordering::SeqCst) == all);
                there.acknowledge();
            }
        }
    }
    assert_eq!(gone.count(), 1 + lists, "all completions were waited for: {told:?}");
    let report = told.report();
    assert!(report.in_force && report.reason.is_none(), "{report:?}");
    let pages = (32 * 1024 + lists * 256 * 1024) as u64;
    assert_eq!(report.bytes_copied_by_kernel, 0);
    assert_eq!(report.bytes_zero_copied + report.bytes_ordinary, pages);
    // Only the short ends of an allowance, unless others of this user have locked all that they may.
    assert!(report.bytes_ordinary < pages / 10 || report.enobufs > 0, "{report:?}");
}

static SENT: AtomicUsize = AtomicUsize::new(0);

/// A connection to nobody.
fn established() -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    let set = |name, value: &[u32]| {
        // SAFETY: the value lives during the call and has the length that is said.
        let answer = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                name,
                value.as_ptr().cast(),
                size_of_val(value) as libc::socklen_t,
            )
        };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // Of linux/tcp.h: no queue, that of what is received, that of what is sent.
    let (no_queue, receive, sent) = (0, 1, 2);
    set(libc::TCP_REPAIR, &[1])?;
    socket.bind(&HERE.into())?;
    // Little in flight: others of this user may have locked most of what they may.
    socket.set_send_buffer_size(128 * 1024)?;
    for (queue, first) in [(sent, SENT_FROM), (receive, HEARD_FROM)] {
        set(libc::TCP_REPAIR_QUEUE, &[queue])?;
        set(libc::TCP_QUEUE_SEQ, &[first])?;
    }
    socket.connect(&THERE.into())?;
    let window = u32::from(WINDOW);
    set(libc::TCP_REPAIR_WINDOW, &[HEARD_FROM, window, window, window, HEARD_FROM])?;
    set(libc::TCP_REPAIR_QUEUE, &[no_queue])?;
    set(libc::TCP_REPAIR, &[0])?;
    Ok(socket.into())
}

/// The other end.
struct There {
    socket: TcpStream,
    raw: Socket,
    written: usize,
}

impl There {
    fn new(socket: &TcpStream) -> Self {
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
        Self { socket: socket.try_clone().unwrap(), raw: raw.unwrap(), written: 0 }
    }

    /// Acknowledges all that has left; answers whether anything was unacknowledged.
    fn acknowledge(&mut self) -> bool {
        let (unacknowledged, unsent) = (self.count(libc::TIOCOUTQ), self.count(SIOCOUTQNSD));
        let number = SENT_FROM.wrapping_add((self.written - unsent.min(self.written)) as u32);
        self.raw.send_to(&acknowledgement(number), &HERE.into()).unwrap();
        unacknowledged > 0
    }

    fn count(&self, what: libc::c_ulong) -> usize {
        let mut count: libc::c_int = 0;
        // SAFETY: the kernel writes one number, which lives during the call.
        let answer = unsafe { libc::ioctl(self.socket.as_raw_fd(), what as _, &raw mut count) };
        assert_eq!(answer, 0, "{}", io::Error::last_os_error());
        usize::try_from(count).unwrap()
    }
}

/// Of linux/sockios.h: bytes that were written and have not left.
const SIOCOUTQNSD: libc::c_ulong = 0x894B;

/// An IPv4 packet with a TCP header and nothing else (RFC 791, RFC 9293).
fn acknowledgement(number: u32) -> Vec<u8> {
    let (from, to) = (THERE.ip().octets(), HERE.ip().octets());
    let mut tcp = Vec::new();
    tcp.extend_from_slice(&THERE.port().to_be_bytes());
    tcp.extend_from_slice(&HERE.port().to_be_bytes());
    tcp.extend_from_slice(&HEARD_FROM.to_be_bytes());
    tcp.extend_from_slice(&number.to_be_bytes());
    tcp.extend_from_slice(&[5 << 4, 0x10]);
    tcp.extend_from_slice(&WINDOW.to_be_bytes());
    tcp.extend_from_slice(&[0; 4]);
    let mut covered = [from, to].concat();
    covered.extend_from_slice(&[0, 6, 0, 20]);
    covered.extend_from_slice(&tcp);
    let mut sum: u32 =
        covered.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    tcp[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0];
    packet.extend_from_slice(&from);
    packet.extend_from_slice(&to);
    packet.extend_from_slice(&tcp);
    packet
}
