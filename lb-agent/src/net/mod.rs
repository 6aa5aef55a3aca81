//! Netlink, turned into [`NodeNet`]: the only place that knows rtnetlink's types.
//!
//! **Invariants:** every state sent comes from one complete dump, never from patching an older one with events; an
//! event is nothing but a reason to dump again. So a lost event (`ENOBUFS`) costs a dump and nothing else.
//! Read [`watch`] first; [`decode`] is pure.

mod decode;
mod sysctl;

pub(crate) use sysctl::parse_ports;

use std::io;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, IpVersion, MulticastGroup, new_connection, new_multicast_connection};
use tokio::sync::watch::Sender;

use crate::links::NodeNet;

/// Events are gathered for so long before the next dump.
const COALESCE: Duration = Duration::from_millis(50);
/// Pause before netlink is tried again after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// So many failures in a row end [`watch`].
const MAX_FAILURES: u32 = 10;
/// Groups whose events may change [`NodeNet`].
const GROUPS: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Why the node's network could not be read.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No netlink socket.
    #[error("can't open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// A dump failed or was cut short.
    #[error("netlink dump of {what}: {source}")]
    Dump {
        /// Links, addresses, routes or rules.
        what: &'static str,
        /// What the kernel or the decoder said.
        #[source]
        source: rtnetlink::Error,
    },
    /// A file under /proc/sys could not be read.
    #[error("{path}: {source}")]
    Proc {
        /// The file.
        path: &'static str,
        /// What reading it gave.
        #[source]
        source: io::Error,
    },
    /// The kernel has no cookie for the namespace (kernel below 5.14).
    #[error("getsockopt(SO_NETNS_COOKIE): {0}")]
    Cookie(#[source] io::Error),
}

/// Reads the node's network once, in the network namespace of the calling thread.
///
/// # Errors
/// Netlink or /proc could not be read; nothing was changed.
pub async fn snapshot() -> Result<NodeNet, NetError> {
    let (connection, handle, _) = new_connection().map_err(NetError::Socket)?;
    let task = tokio::spawn(connection);
    let net = dump(&handle).await;
    task.abort();
    net
}

/// Keeps `tx` at the node's network; returns when nobody listens any more.
///
/// It subscribes before the first dump, so nothing is missed; events are gathered for 50 ms; an equal state is not
/// sent again. After an overrun (`ENOBUFS`) the state is dumped anew like after any event. Cancel-safe: dropping the
/// future closes the sockets.
///
/// # Errors
/// Netlink failed ten times in a row, a second apart; `tx` still holds the last good state.
pub async fn watch(tx: Sender<NodeNet>) -> Result<(), NetError> {
    let mut failures = 0;
    loop {
        match follow(&tx, &mut failures).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                failures += 1;
                if failures >= MAX_FAILURES {
                    return Err(error);
                }
                tracing::warn!(%error, failures, "netlink failed, trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Aborts the netlink connection's task when the caller is done or cancelled.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One subscription, from the first dump until nobody listens or netlink fails.
async fn follow(tx: &Sender<NodeNet>, failures: &mut u32) -> Result<(), NetError> {
    let (connection, _events_handle, mut events) =
        new_multicast_connection(GROUPS).map_err(NetError::Socket)?;
    let _events_task = AbortOnDrop(tokio::spawn(connection));
    // Dumps have a socket of their own: a burst of events can't push out their answers.
    let (connection, handle, _) = new_connection().map_err(NetError::Socket)?;
    let _dump_task = AbortOnDrop(tokio::spawn(connection));
    loop {
        let net = dump(&handle).await?;
        *failures = 0;
        tx.send_if_modified(|old| {
            let changed = *old != net;
            *old = net;
            changed
        });
        loop {
            tokio::select! {
                () = tx.closed() => return Ok(()),
                event = events.next() => match event {
                    None => return Err(NetError::Socket(io::Error::other("the kernel's event stream ended"))),
                    Some((message, _)) if matters(&message.payload) => break,
                    Some(_) => {}
                },
            }
        }
        tokio::time::sleep(COALESCE).await;
        while events.next().now_or_never().flatten().is_some() {}
    }
}

/// Whether an event can change [`NodeNet`]: all but routes that are no default routes (a BGP router has many).
/// Overruns do: anything may have been lost.
fn matters(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => route.header.destination_prefix_length == 0,
        _ => true,
    }
}

/// One complete dump.
async fn dump(handle: &Handle) -> Result<NodeNet, NetError> {
    let at = |what| move |source| NetError::Dump { what, source };
    let links = handle.link().get().execute().try_collect::<Vec<_>>().await.map_err(at("links"))?;
    let addresses =
        handle.address().get().execute().try_collect::<Vec<_>>().await.map_err(at("addresses"))?;
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        match handle.route().get(request).execute().try_collect::<Vec<_>>().await {
            Ok(found) => routes.extend(found),
            // A kernel booted with ipv6.disable=1.
            Err(error) if family == AddressFamily::Inet6 && unsupported(&error) => {}
            Err(error) => return Err(at("routes")(error)),
        }
    }
    let mut source_rules = false;
    for version in [IpVersion::V4, IpVersion::V6] {
        match handle.rule().get(version.clone()).execute().try_collect::<Vec<_>>().await {
            Ok(rules) => source_rules |= rules.iter().any(decode::looks_at_the_source),
            // Without IPv6, or a kernel without policy routing.
            Err(error) if unsupported(&error) => {}
            Err(error) => return Err(at("rules")(error)),
        }
    }
    Ok(NodeNet {
        links: decode::links(&links, &addresses, &routes),
        netns_cookie: crate::sys::netns_cookie().map_err(NetError::Cookie)?,
        ephemeral: sysctl::ephemeral()?,
        reserved: sysctl::reserved()?,
        source_rules,
    })
}

/// The kernel does not have the family at all.
fn unsupported(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    matches!(-message.raw_code(), libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
}
