//! Who may send what when: the READY rule (docs/wire/rdma.md §4), one machine for each direction.
//!
//! ```text
//!   sender                                       receiver
//!   expecting READY ◀────────── READY ─────────── a RECV is posted, nothing owed, no READY ahead
//!   may send        ─────────── one message ────▶ consume it; answer it if it wants an answer
//!   (awaiting)      ◀────────── response ─────── answered, before the next READY
//! ```
//!
//! Both count the RECVs this end has posted: [`Sender::reposted`] and [`Receiver::reposted`] put one back after each arrival.
//! ERROR is the one message that may come at any time, and it ends everything ([`Error::PeerFailed`]).

use super::{
    error::{Error, Result},
    header::Kind,
};

/// What a message received by a [`Sender`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleared {
    /// One message may be sent; all earlier ones have had their effect.
    Ready,
    /// The response that was waited for.
    Response(Kind),
}

/// The end that sends messages when the other one says READY: the source on the main connection, the destination on the
/// return path (where we wait for READY even for the first message, docs/wire/rdma.md §11).
#[derive(Clone, Debug)]
pub struct Sender {
    expecting_ready: bool,
    awaiting: Option<Kind>,
    posted: usize,
    sent: u64,
    handled: u64,
    over: bool,
}

impl Sender {
    /// A connection on which nothing has come yet and `posted` RECVs are posted.
    pub fn new(posted: usize) -> Self {
        Self { expecting_ready: true, awaiting: None, posted, sent: 0, handled: 0, over: false }
    }

    /// Whether one message may be sent now.
    pub fn may_send(&self) -> bool {
        !self.expecting_ready && self.awaiting.is_none() && !self.over
    }

    /// The response that is being waited for.
    pub fn awaiting(&self) -> Option<Kind> {
        self.awaiting
    }

    /// How many messages were sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// How many of them the other end has finished with, as a READY or a response that came later proves.
    pub fn handled(&self) -> u64 {
        self.handled
    }

    /// A RECV of ours was posted again.
    pub fn reposted(&mut self) {
        self.posted += 1;
    }

    /// We have failed: whether to try to SEND ERROR, which needs no READY. Once, and not to an end that said it itself
    /// (docs/wire/rdma.md §12). Nothing else may be sent afterwards.
    pub fn give_up(&mut self) -> bool {
        !std::mem::replace(&mut self.over, true)
    }

    /// Call right before posting the SEND of a `kind`; an `Err` means it must not be posted. For ERROR
    /// there is [`Self::give_up`].
    ///
    /// # Errors
    ///
    /// No READY has come since the last message, or a response is outstanding; `kind` is not for senders; fewer RECVs are
    /// posted than what must come back (the response, then READY). All are mistakes of the caller.
    pub fn send(&mut self, kind: Kind) -> Result<()> {
        if !kind.needs_ready() {
            return Err(Error::misuse(format!("{kind} is not sent by the sending side")));
        }
        if self.over {
            return Err(Error::misuse(format!("{kind} after ERROR")));
        }
        if let Some(awaited) = self.awaiting {
            return Err(Error::misuse(format!("{kind} before {awaited} has come")));
        }
        if self.expecting_ready {
            return Err(Error::misuse(format!("{kind} before the other end said READY")));
        }
        let coming = 1 + usize::from(kind.response().is_some());
        if self.posted < coming {
            return Err(Error::misuse(format!(
                "{kind} needs {coming} RECVs posted for what comes back, there are {}",
                self.posted
            )));
        }
        self.expecting_ready = true;
        self.awaiting = kind.response();
        self.sent += 1;
        Ok(())
    }

    /// A message came; it used up one RECV.
    ///
    /// # Errors
    ///
    /// ERROR; READY before the response that is owed, or a second one; a response nobody asked for; anything else.
    pub fn received(&mut self, kind: Kind) -> Result<Cleared> {
        self.posted = self.posted.saturating_sub(1);
        match (kind, self.awaiting) {
            (Kind::Error, _) => {
                self.over = true;
                Err(Error::PeerFailed)
            }
            (kind, Some(awaited)) if kind == awaited => {
                self.awaiting = None;
                self.handled = self.sent;
                Ok(Cleared::Response(kind))
            }
            (kind, Some(awaited)) => {
                Err(Error::unexpected(kind, format!("where {awaited} is due")))
            }
            (Kind::Ready, None) if self.expecting_ready => {
                self.expecting_ready = false;
                self.handled = self.sent;
                Ok(Cleared::Ready)
            }
            (Kind::Ready, None) => Err(Error::unexpected(kind, "twice for one message")),
            (kind, None) => Err(Error::unexpected(kind, "where only READY may come")),
        }
    }
}

/// The end that says READY and takes messages: the destination on the main connection, the source on the return path.
#[derive(Clone, Debug)]
pub struct Receiver {
    posted: usize,
    /// READYs sent less messages received.
    ahead: i64,
    /// How many messages may come without READY.
    unprompted: i64,
    owed: Option<Kind>,
    /// A command was received whose effect is not complete.
    busy: Option<Kind>,
    over: bool,
}

impl Receiver {
    /// The destination's main connection, with `posted` RECVs posted.
    pub fn new(posted: usize) -> Self {
        Self { posted, ahead: 0, unprompted: 0, owed: None, busy: None, over: false }
    }

    /// The source's return path. A QEMU destination sends its first message unprompted and stays one ahead for ever
    /// (docs/wire/rdma.md §11), so that two may be under way: post at least three RECVs.
    pub fn return_path(posted: usize) -> Self {
        Self { unprompted: 1, ..Self::new(posted) }
    }

    /// Whether READY may be sent, early or not (docs/wire/rdma.md §4, end): a RECV is posted for each message that may then be
    /// under way, no response is owed, the last command has had its effect, and no READY is ahead of the messages received.
    ///
    /// The last condition also holds back on the return path, where it is what a QEMU can take: it has posted one RECV more
    /// than it has sent messages.
    pub fn may_ready(&self) -> bool {
        !self.over
            && self.ahead < 1
            && self.owed.is_none()
            && self.busy.is_none()
            && i64::try_from(self.posted).unwrap_or(i64::MAX) > self.ahead + self.unprompted
    }

    /// We have failed: whether to try to SEND ERROR; see [`Sender::give_up`].
    pub fn give_up(&mut self) -> bool {
        !std::mem::replace(&mut self.over, true)
    }

    /// Call right before posting the SEND of READY.
    ///
    /// # Errors
    ///
    /// It [may not](Self::may_ready) be sent: a mistake of the caller.
    pub fn ready(&mut self) -> Result<()> {
        if !self.may_ready() {
            return Err(Error::misuse(format!("READY must not be sent now: {self:?}")));
        }
        self.ahead += 1;
        Ok(())
    }

    /// A RECV of ours was posted again.
    pub fn reposted(&mut self) {
        self.posted += 1;
    }

    /// A message came; it used up one RECV. Commands must be reported [`done`](Self::done) when they have had their effect,
    /// after the response, if they want one, was [sent](Self::respond). Stream bytes need no report: they may wait in their
    /// buffer while READY is said early, as long as other RECVs are posted.
    ///
    /// # Errors
    ///
    /// ERROR; a message without READY; READY or a response, which receivers never get.
    pub fn received(&mut self, kind: Kind) -> Result<()> {
        self.posted = self.posted.saturating_sub(1);
        if kind == Kind::Error {
            self.over = true;
            return Err(Error::PeerFailed);
        }
        if kind == Kind::None {
            return Err(Error::unexpected(kind, "which is never sent"));
        }
        if !kind.needs_ready() {
            let mut moment = "to the receiving side, which never gets one".to_owned();
            if kind == Kind::Ready {
                moment += "; a source that wants a return path says it on a second connection, and both ends must agree on that";
            }
            return Err(Error::unexpected(kind, moment));
        }
        if self.ahead <= -self.unprompted || self.owed.is_some() || self.busy.is_some() {
            return Err(Error::unexpected(kind, "without having been told READY"));
        }
        self.ahead -= 1;
        self.owed = kind.response();
        self.busy = (kind != Kind::QemuFile).then_some(kind);
        Ok(())
    }

    /// Call right before posting the SEND of a response.
    ///
    /// # Errors
    ///
    /// Not the response that is owed: a mistake of the caller.
    pub fn respond(&mut self, kind: Kind) -> Result<()> {
        if self.owed != Some(kind) {
            return Err(Error::misuse(format!("{kind} is not owed: {self:?}")));
        }
        self.owed = None;
        Ok(())
    }

    /// The last command has had its effect.
    ///
    /// # Errors
    ///
    /// No command is being worked on, or its response is still owed: a mistake of the caller.
    pub fn done(&mut self) -> Result<()> {
        if self.busy.is_none() || self.owed.is_some() {
            return Err(Error::misuse(format!("no command can be done now: {self:?}")));
        }
        self.busy = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn ready_sender() -> Sender {
        let mut sender = Sender::new(4);
        assert_eq!(sender.received(Kind::Ready), Ok(Cleared::Ready));
        sender.reposted();
        sender
    }

    #[test]
    fn nothing_is_sent_before_the_first_ready() {
        let mut sender = Sender::new(4);
        assert!(!sender.may_send());
        assert!(sender.send(Kind::QemuFile).is_err());
        assert_eq!(sender.received(Kind::Ready), Ok(Cleared::Ready));
        assert!(sender.may_send());
        assert_eq!(sender.send(Kind::QemuFile), Ok(()));
        assert!(sender.send(Kind::QemuFile).is_err(), "one message for one READY");
    }

    #[test]
    fn a_response_comes_before_the_next_ready() {
        let mut sender = ready_sender();
        sender.send(Kind::RegisterRequest).unwrap();
        assert_eq!(sender.awaiting(), Some(Kind::RegisterResult));
        assert!(sender.clone().received(Kind::Ready).is_err());
        assert!(sender.clone().received(Kind::RamBlocksResult).is_err());
        assert_eq!(
            sender.received(Kind::RegisterResult),
            Ok(Cleared::Response(Kind::RegisterResult))
        );
        assert!(!sender.may_send(), "a response is not READY");
        assert_eq!(sender.received(Kind::Ready), Ok(Cleared::Ready));
        assert!(sender.may_send());
    }

    #[test]
    fn a_second_ready_and_strangers_are_refused() {
        assert!(ready_sender().received(Kind::Ready).is_err());
        for kind in Kind::ALL {
            if !matches!(kind, Kind::Ready) {
                assert!(ready_sender().received(kind).is_err(), "{kind}");
                assert!(Sender::new(1).received(kind).is_err(), "{kind}");
            }
        }
    }

    #[test]
    fn an_error_is_the_peers_failure_at_any_time() {
        assert_eq!(Sender::new(1).received(Kind::Error), Err(Error::PeerFailed));
        assert_eq!(ready_sender().received(Kind::Error), Err(Error::PeerFailed));
        let mut waiting = ready_sender();
        waiting.send(Kind::RamBlocksRequest).unwrap();
        assert_eq!(waiting.received(Kind::Error), Err(Error::PeerFailed));
        assert_eq!(Receiver::new(1).received(Kind::Error), Err(Error::PeerFailed));
    }

    #[test]
    fn error_is_said_once_and_ends_all() {
        let mut sender = ready_sender();
        assert!(sender.give_up());
        assert!(!sender.give_up());
        assert!(!sender.may_send() && sender.send(Kind::QemuFile).is_err());
        let mut told = ready_sender();
        told.received(Kind::Error).unwrap_err();
        assert!(!told.give_up(), "the other end knows");

        let mut receiver = Receiver::new(4);
        assert!(receiver.give_up());
        assert!(!receiver.give_up());
        assert!(!receiver.may_ready());
        let mut told = Receiver::new(4);
        told.received(Kind::Error).unwrap_err();
        assert!(!told.give_up());
    }

    #[test]
    fn what_comes_back_needs_recvs() {
        let mut sender = Sender::new(2);
        sender.received(Kind::Ready).unwrap();
        assert!(sender.send(Kind::RegisterRequest).is_err(), "result and READY need two");
        sender.reposted();
        assert_eq!(sender.send(Kind::RegisterRequest), Ok(()));
    }

    #[test]
    fn only_a_senders_messages_are_sent() {
        for kind in Kind::ALL {
            assert_eq!(ready_sender().send(kind).is_ok(), kind.needs_ready(), "{kind}");
        }
    }

    #[test]
    fn handled_is_what_a_later_ready_proves() {
        let mut sender = ready_sender();
        sender.send(Kind::Compress).unwrap();
        assert_eq!((sender.sent(), sender.handled()), (1, 0));
        sender.received(Kind::Ready).unwrap();
        assert_eq!((sender.sent(), sender.handled()), (1, 1));
    }

    #[test]
    fn ready_needs_a_recv() {
        assert!(!Receiver::new(0).may_ready());
        let mut receiver = Receiver::new(1);
        receiver.ready().unwrap();
        receiver.received(Kind::QemuFile).unwrap();
        assert!(receiver.ready().is_err());
        receiver.reposted();
        assert!(receiver.ready().is_ok());
    }

    #[test]
    fn one_ready_ahead_and_no_more() {
        let mut receiver = Receiver::new(8);
        receiver.ready().unwrap();
        assert!(receiver.ready().is_err());
        receiver.received(Kind::QemuFile).unwrap();
        assert_eq!(receiver.ready(), Ok(()), "early: the bytes are not consumed yet");
    }

    #[test]
    fn an_owed_response_holds_ready_back() {
        let mut receiver = Receiver::new(8);
        receiver.ready().unwrap();
        receiver.received(Kind::RegisterRequest).unwrap();
        assert!(!receiver.may_ready());
        assert!(receiver.done().is_err());
        assert!(receiver.respond(Kind::RamBlocksResult).is_err());
        receiver.respond(Kind::RegisterResult).unwrap();
        assert!(receiver.respond(Kind::RegisterResult).is_err());
        assert!(!receiver.may_ready());
        receiver.done().unwrap();
        assert!(receiver.may_ready());
    }

    #[test]
    fn an_unfinished_compress_holds_ready_back() {
        let mut receiver = Receiver::new(8);
        receiver.ready().unwrap();
        receiver.received(Kind::Compress).unwrap();
        assert!(receiver.ready().is_err());
        receiver.done().unwrap();
        assert!(receiver.done().is_err());
        assert_eq!(receiver.ready(), Ok(()));
    }

    #[test]
    fn unprompted_messages_are_refused() {
        for kind in Kind::ALL {
            assert!(Receiver::new(8).received(kind).is_err(), "{kind}");
        }
        let mut receiver = Receiver::new(8);
        receiver.ready().unwrap();
        receiver.received(Kind::QemuFile).unwrap();
        assert!(receiver.received(Kind::QemuFile).is_err());
    }

    #[test]
    fn a_qemu_on_the_return_path_stays_one_ahead() {
        let mut receiver = Receiver::return_path(4);
        receiver.received(Kind::QemuFile).unwrap();
        assert!(receiver.clone().received(Kind::QemuFile).is_err(), "one, not two");
        receiver.ready().unwrap();
        // It had 1 RECV, and posted another with its message: a second READY finds that one.
        assert!(receiver.may_ready());
        receiver.ready().unwrap();
        assert!(!receiver.may_ready());
        receiver.received(Kind::QemuFile).unwrap();
        receiver.received(Kind::QemuFile).unwrap();
        assert!(receiver.clone().received(Kind::QemuFile).is_err());

        let mut other = Receiver::return_path(4);
        other.ready().unwrap();
        assert!(!other.may_ready());
        assert!(!Receiver::return_path(1).may_ready(), "two may be under way");
    }

    /// Both machines over two ordered queues; every choice is open at every step.
    struct Link {
        sender: Sender,
        receiver: Receiver,
        to_receiver: VecDeque<Kind>,
        to_sender: VecDeque<Kind>,
        sender_recvs: usize,
        receiver_posted: usize,
        /// Stream messages whose buffer is not given back yet.
        unread: usize,
        unprompted: usize,
        busy: Option<Kind>,
        delivered: usize,
    }

    const REQUESTS: [Kind; 6] = [
        Kind::QemuFile,
        Kind::Compress,
        Kind::RamBlocksRequest,
        Kind::RegisterRequest,
        Kind::UnregisterRequest,
        Kind::RegisterFinished,
    ];

    impl Link {
        fn new(sender_recvs: usize, receiver_recvs: usize, return_path: bool) -> Self {
            let receiver = if return_path {
                Receiver::return_path(receiver_recvs)
            } else {
                Receiver::new(receiver_recvs)
            };
            Self {
                sender: Sender::new(sender_recvs),
                receiver,
                to_receiver: VecDeque::new(),
                to_sender: VecDeque::new(),
                sender_recvs,
                receiver_posted: receiver_recvs,
                unread: 0,
                unprompted: 0,
                busy: None,
                delivered: 0,
            }
        }

        /// Tries move `choice`; says whether it was possible.
        fn step(&mut self, choice: usize, kind: Kind) -> bool {
            match choice {
                0 if self.sender.may_send() => {
                    self.sender.send(kind).unwrap();
                    self.to_receiver.push_back(kind);
                    // A SEND without a RECV would end the connection (docs/wire/rdma.md §2.5).
                    assert!(self.to_receiver.len() <= self.receiver_posted);
                }
                1 if self.receiver.may_ready() => {
                    self.receiver.ready().unwrap();
                    self.push_to_sender(Kind::Ready);
                }
                2 if !self.to_receiver.is_empty() => {
                    let kind = self.to_receiver.pop_front().unwrap();
                    self.receiver.received(kind).unwrap();
                    self.receiver_posted -= 1;
                    self.delivered += 1;
                    self.busy = (kind != Kind::QemuFile).then_some(kind);
                    self.unread += 1;
                    if self.busy.is_some() {
                        self.repost();
                    }
                }
                3 if self.busy.is_some() => {
                    let kind = self.busy.take().unwrap();
                    if let Some(response) = kind.response() {
                        self.receiver.respond(response).unwrap();
                        self.push_to_sender(response);
                    }
                    self.receiver.done().unwrap();
                }
                4 if !self.to_sender.is_empty() => {
                    let kind = self.to_sender.pop_front().unwrap();
                    self.sender.received(kind).unwrap();
                    self.sender.reposted();
                    self.unprompted -= usize::from(kind == Kind::Ready);
                }
                5 if self.unread > 0 => self.repost(),
                _ => return false,
            }
            true
        }

        fn repost(&mut self) {
            self.unread -= 1;
            self.receiver_posted += 1;
            self.receiver.reposted();
        }

        fn push_to_sender(&mut self, kind: Kind) {
            self.to_sender.push_back(kind);
            self.unprompted += usize::from(kind == Kind::Ready);
            assert!(self.unprompted <= 1, "two READYs under way");
            assert!(self.to_sender.len() <= self.sender_recvs);
        }
    }

    #[test]
    fn every_interleaving_of_a_few_moves_holds() {
        fn walk(link: &mut dyn FnMut() -> Link, path: &mut Vec<(usize, Kind)>, depth: usize) {
            if depth == 0 {
                return;
            }
            let mut any = false;
            for choice in 0..6 {
                let kinds: &[Kind] = if choice == 0 { &REQUESTS[..4] } else { &REQUESTS[..1] };
                for kind in kinds {
                    let mut fresh = link();
                    for (choice, kind) in path.iter() {
                        assert!(fresh.step(*choice, *kind));
                    }
                    if fresh.step(choice, *kind) {
                        any = true;
                        path.push((choice, *kind));
                        walk(link, path, depth - 1);
                        path.pop();
                    }
                }
            }
            assert!(any, "deadlock after {path:?}");
        }
        walk(&mut || Link::new(2, 1, false), &mut Vec::new(), 10);
        walk(&mut || Link::new(2, 2, true), &mut Vec::new(), 9);
    }

    proptest! {
        #[test]
        fn any_interleaving_holds_and_goes_on(
            recvs in 2usize..8,
            return_path: bool,
            moves in proptest::collection::vec((0usize..6, 0usize..6), 1..400),
        ) {
            let mut link = Link::new(recvs, recvs, return_path);
            for (choice, kind) in moves {
                link.step(choice, REQUESTS[kind]);
            }
            let before = link.delivered;
            for _ in 0..20 {
                prop_assert!((0..6).any(|choice| link.step(choice, Kind::Compress)), "deadlock");
            }
            prop_assert!(link.delivered > before, "nothing gets through");
        }
    }
}
