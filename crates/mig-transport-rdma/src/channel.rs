//! From connections to a channel.
//!
//! ```text
//!   source        main: stream out, pages      return path: stream in
//!   destination   main: stream in, windows     return path: stream out
//! ```

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use mig_transport::{
    Capabilities, Channel, ChannelParts, Endpoint, Peer, RamHooks, ReceiveHalf, SendHalf,
};

use crate::{
    destination::DestinationHooks,
    link::{Link, StopAll},
    options::RdmaOptions,
    protocol::private_data::Agreed,
    receiving::{RdmaReceiveHalf, ReceivingEnd},
    sending::{RdmaSendHalf, SendingEnd},
    source::SourceHooks,
};

/// The source's channel.
pub(crate) fn source(
    main: SendingEnd,
    back: Option<Link>,
    agreed: Agreed,
    options: &RdmaOptions,
) -> Channel {
    let (endpoint, peer) = (endpoint(&main.link), peer(&main.link));
    let mut force = vec![Arc::clone(main.link.farewell())];
    let main = Arc::new(Mutex::new(main));
    let hooks = SourceHooks::new(Arc::clone(&main), agreed, options);
    // What comes on the return path says that all was read.
    let grace = if back.is_some() { Duration::ZERO } else { options.closing_grace };
    let receive = back.map(|link| {
        force.push(Arc::clone(link.farewell()));
        let end = ReceivingEnd::return_path(link, Arc::clone(&options.counters));
        Box::new(RdmaReceiveHalf(Arc::new(Mutex::new(end)))) as Box<dyn ReceiveHalf>
    });
    let send = Box::new(RdmaSendHalf::new(main, grace)) as Box<dyn SendHalf>;
    channel(receive, Some(send), Box::new(hooks), force, endpoint, peer)
}

/// The destination's channel, and how to know whether it still lives.
pub(crate) fn destination(
    main: Link,
    back: Option<Link>,
    agreed: Agreed,
    options: &RdmaOptions,
) -> (Channel, Weak<Mutex<ReceivingEnd>>) {
    let (endpoint, peer) = (endpoint(&main), peer(&main));
    let counters = &options.counters;
    let mut force = vec![Arc::clone(main.farewell())];
    let main = Arc::new(Mutex::new(ReceivingEnd::main(
        main,
        agreed.ours && back.is_none(),
        Arc::clone(counters),
    )));
    let alive = Arc::downgrade(&main);
    let hooks = DestinationHooks::new(Arc::clone(&main), agreed, options);
    let send = back.map(|link| {
        force.push(Arc::clone(link.farewell()));
        // Failures are said on the main connection.
        link.farewell().complete();
        let end = SendingEnd::new(link, Arc::clone(counters));
        let half = RdmaSendHalf::new(Arc::new(Mutex::new(end)), Duration::ZERO);
        Box::new(half) as Box<dyn SendHalf>
    });
    let receive = Box::new(RdmaReceiveHalf(main)) as Box<dyn ReceiveHalf>;
    (channel(Some(receive), send, Box::new(hooks), force, endpoint, peer), alive)
}

fn channel(
    receive: Option<Box<dyn ReceiveHalf>>,
    send: Option<Box<dyn SendHalf>>,
    hooks: Box<dyn RamHooks>,
    force: Vec<Arc<crate::link::Farewell>>,
    endpoint: Endpoint,
    peer: Peer,
) -> Channel {
    let capabilities = Capabilities::default().with(|capabilities| {
        capabilities.return_path = true;
        capabilities.forced_shutdown = true;
        // Whoever reaches the port may connect, so a stranger may.
        capabilities.several_channels = true;
        capabilities.direct_ram_writes = true;
    });
    Channel::new(ChannelParts {
        receive,
        send,
        force: Some(Box::new(StopAll(force))),
        hooks: Some(hooks),
        capabilities,
        endpoint,
        peer,
    })
}

fn endpoint(link: &Link) -> Endpoint {
    let (local, peer) = link.addresses();
    let text = |address: Option<std::net::SocketAddr>| {
        address.map_or_else(String::new, |address| address.to_string())
    };
    Endpoint { transport: "rdma", local: text(local), peer: text(peer) }
}

fn peer(link: &Link) -> Peer {
    link.addresses().1.map_or(Peer::Unknown, |address| Peer::address(address.ip()))
}
