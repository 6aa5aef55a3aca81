//! Netlink, turned into [`NodeNet`]: the only place that knows rtnetlink's types.
//!
//! **Invariants:** every state sent comes from one complete dump, never from patching an older one with events; an
//! event is nothing but a reason to dump again. So a lost event (`ENOBUFS`) costs a dump and nothing else.
//! Read [`watch`] first; [`decode`] is pure.

mod decode;
mod sysctl;

pub(crate) use sysctl::parse_ports;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::neighbour::NeighbourFlags;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, IpVersion, MulticastGroup, new_connection, new_multicast_connection};
use tokio::sync::watch::Sender;

use crate::attachset::attach_set;
use crate::leftovers::policy;
use crate::links::NodeNet;
use crate::model::settings::{Fast, Xdp};
use crate::xdpset::with_xdp;

/// Events are gathered for so long before the next dump.
const COALESCE: Duration = Duration::from_millis(50);
/// Pause before netlink is tried again after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// With XDP or fast forwarding, how often it is read anew without an event: nobody tells of IPsec policies, ethtool's
/// settings and netfilter's rules, and neighbours that only our programs use have to be confirmed.
const REFRESH: Duration = Duration::from_secs(5);
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
    let net = dump(&handle, &Wishes { xdp: Xdp::Off, fast: Fast::Off }).await;
    task.abort();
    Ok(net?.0)
}

/// What is to be known beyond links, addresses and routes.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Interfaces that are to carry XDP.
    pub xdp: Xdp,
    /// Whether pods are to be reached past the stack.
    pub fast: Fast,
}

impl Wishes {
    /// Neighbours, and what nobody tells of, matter.
    fn more(&self) -> bool {
        self.xdp != Xdp::Off || self.fast != Fast::Off
    }
}

/// Keeps `tx` at the node's network, with what `wishes` need; returns when nobody listens any more.
///
/// It subscribes before the first dump, so nothing is missed; events are gathered for 50 ms; an equal state is not
/// sent again. After an overrun (`ENOBUFS`) the state is dumped anew like after any event. Cancel-safe: dropping the
/// future closes the sockets.
///
/// # Errors
/// Netlink failed ten times in a row, a second apart; `tx` still holds the last good state.
pub async fn watch(tx: Sender<NodeNet>, wishes: Wishes) -> Result<(), NetError> {
    let mut failures = 0;
    loop {
        match follow(&tx, &wishes, &mut failures).await {
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
async fn follow(tx: &Sender<NodeNet>, wishes: &Wishes, failures: &mut u32) -> Result<(), NetError> {
    let neighbours = wishes.more().then_some(MulticastGroup::Neigh);
    let groups: Vec<_> = GROUPS.iter().copied().chain(neighbours).collect();
    let (connection, _events_handle, mut events) =
        new_multicast_connection(&groups).map_err(NetError::Socket)?;
    let _events_task = AbortOnDrop(tokio::spawn(connection));
    // Dumps have a socket of their own: a burst of events can't push out their answers.
    let (connection, handle, _) = new_connection().map_err(NetError::Socket)?;
    let _dump_task = AbortOnDrop(tokio::spawn(connection));
    loop {
        let (net, stale) = dump(&handle, wishes).await?;
        *failures = 0;
        confirm(&handle, &stale).await;
        let pods = pod_ports(&net, wishes.fast);
        let ports: BTreeSet<u32> = xdp_ports(&net, &wishes.xdp).union(&pods).copied().collect();
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
                    Some((message, _)) if matters(&message.payload, &ports, &pods) => break,
                    Some(_) => {}
                },
                () = tokio::time::sleep(REFRESH), if wishes.more() => break,
            }
        }
        tokio::time::sleep(COALESCE).await;
        while events.next().now_or_never().flatten().is_some() {}
    }
}

/// Whether an event can change [`NodeNet`]: all but routes that are neither default routes (a BGP router has many) nor
/// such by which one of `pods` is reached. Overruns do: anything may have been lost. Neighbours matter behind `ports`.
fn matters(
    payload: &NetlinkPayload<RouteNetlinkMessage>,
    ports: &BTreeSet<u32>,
    pods: &BTreeSet<u32>,
) -> bool {
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => {
            route.header.destination_prefix_length == 0
                || decode::leaves_by(route, |index| pods.contains(&index))
        }
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewNeighbour(neighbour) | RouteNetlinkMessage::DelNeighbour(neighbour),
        ) => ports.contains(&neighbour.header.ifindex),
        _ => true,
    }
}

/// Near ends of the links of pods to which packets can be handed past the stack: those of a pair whose other end is in
/// another namespace, and no ports of a bridge.
fn pod_ports(net: &NodeNet, fast: Fast) -> BTreeSet<u32> {
    if fast == Fast::Off {
        return BTreeSet::new();
    }
    let pods = attach_set(net).into_iter().filter(|(_, attachment)| attachment.pod_facing && !attachment.l3);
    let pair = |index: &u32| {
        net.links.get(index).is_some_and(|link| {
            matches!(link.kind.as_str(), "veth" | "netkit")
                && link.peer_elsewhere
                && link.up
                && link.master.is_none()
        })
    };
    pods.map(|(index, _)| index).filter(pair).collect()
}

/// Interfaces that may carry XDP.
fn xdp_ports(net: &NodeNet, xdp: &Xdp) -> BTreeSet<u32> {
    with_xdp(net, xdp)
        .0
        .into_iter()
        .filter(|(_, attachment)| attachment.xdp)
        .map(|(index, _)| index)
        .collect()
}

/// Has the kernel ask neighbours whether they are there, as it would by itself if it sent to them; our programs do.
async fn confirm(handle: &Handle, stale: &[(u32, IpAddr)]) {
    for (index, address) in stale {
        let flags = NeighbourFlags::Use;
        if let Err(error) = handle.neighbours().add(*index, *address).flags(flags).replace().execute().await {
            tracing::debug!(%error, %address, "a neighbour cannot be confirmed");
        }
    }
}

/// One complete dump, and the neighbours that our programs use and nobody has confirmed lately.
async fn dump(handle: &Handle, wishes: &Wishes) -> Result<(NodeNet, Vec<(u32, IpAddr)>), NetError> {
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
    let mut net = NodeNet {
        links: decode::links(&links, &addresses, &routes),
        netns_cookie: crate::sys::netns_cookie().map_err(NetError::Cookie)?,
        ephemeral: sysctl::ephemeral()?,
        reserved: sysctl::reserved()?,
        source_rules,
        ..NodeNet::default()
    };
    if !wishes.more() {
        return Ok((net, Vec::new()));
    }
    if wishes.xdp != Xdp::Off {
        net.xfrm_policies = crate::sys::xfrm::policies();
        for (index, link) in &mut net.links {
            let tagged = links.iter().any(|above| decode::is_vlan_on(above, *index));
            link.strips_tags = tagged && crate::sys::ethtool::strips_tags(&link.name);
        }
    }
    if wishes.fast == Fast::On {
        net.forward_policy = policy::look();
    }
    let found =
        handle.neighbours().get().execute().try_collect::<Vec<_>>().await.map_err(at("neighbours"))?;
    let ports = xdp_ports(&net, &wishes.xdp);
    let (known, mut stale) = decode::neighbours(&found, |index| ports.contains(&index));
    net.neighbours = known;
    let pods = pod_ports(&net, wishes.fast);
    let (known, doubtful) = decode::neighbours(&found, |index| pods.contains(&index));
    for pod in decode::host_routes(&routes).into_iter().filter(|(index, _)| pods.contains(index)) {
        match known.get(&pod) {
            Some(mac) => {
                net.pods.insert(pod, *mac);
                stale.extend(doubtful.contains(&pod).then_some(pod));
            }
            // nobody has sent to it yet
            None => stale.push(pod),
        }
    }
    Ok((net, stale))
}

/// The kernel does not have the family at all.
fn unsupported(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    matches!(-message.raw_code(), libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
}
