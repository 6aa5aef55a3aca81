//! Counters: one number per reason for a drop, a rejection or a surprising pass, and per event worth knowing.
//!
//! Append-only: numbers are part of the ABI of `LB_COUNTERS`; unused ones stay as holes.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal;)*) => {
        /// A counter of `LB_COUNTERS`.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u32)]
        pub enum Counter { $($(#[doc = $doc])+ $variant = $number,)* }

        impl Counter {
            /// All counters, in the order of their numbers.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant),*];

            /// Name in metrics and in `status`: snake case, without prefix and unit.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)* }
            }

            /// What it counts, and what a value that rises tells an operator.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Counter::$variant => concat!($($doc),+),)* }
            }
        }
    };
}

counters! {
    /// New flows that were given a backend at TC.
    NewFlow = 0, "new_flows";
    /// Connections and datagrams of host sockets that were given a backend.
    SockForward = 1, "socket_translations";
    /// Rejected: the Service has no usable endpoint anywhere (B86).
    RejectNoEndpoints = 2, "reject_no_endpoints";
    /// Rejected: the port or protocol is not one of the ClusterIP's (B91).
    RejectUnknownPort = 3, "reject_unknown_port";
    /// Dropped: endpoints exist, but none that the Local policy allows on this node (B87).
    DropNoLocalEndpoints = 4, "drop_no_local_endpoints";
    /// Dropped: the source is outside loadBalancerSourceRanges (B99).
    DropSourceRange = 5, "drop_source_range";
    /// Dropped: an address inside a service CIDR that is no active ClusterIP (B92).
    DropUnknownAddress = 6, "drop_unknown_address";
    /// Dropped: no free source port towards a backend. Add node addresses or backends, or widen the pool.
    DropSnatExhausted = 7, "drop_snat_exhausted";
    /// Dropped: the interface has no address to masquerade to.
    DropNoSnatAddress = 8, "drop_no_snat_address";
    /// Dropped: a table refused an entry. Raise the size of the flow tables.
    DropTableFull = 9, "drop_table_full";
    /// Dropped: a fragment to a frontend came before its first fragment, or that one was refused.
    DropFragment = 10, "drop_fragment";
    /// Dropped: the packet could not be changed (headers not in memory, out of bounds).
    DropRewrite = 11, "drop_rewrite";
    /// A rejection that was not answered, because of the rate limit.
    RejectSuppressed = 12, "reject_suppressed";
    /// A TCP packet without state, still addressed to a frontend on its way out, was answered with a reset.
    ResetNoState = 13, "reset_no_state";
    /// A flow moved to another backend, because its own had left the Service.
    FlowMovedBackend = 14, "flow_moved_backend";
    /// A flow was given another source port, because its own was taken towards that backend.
    FlowMovedPort = 15, "flow_moved_port";
    /// An entry of a live flow had been lost and was put back.
    FlowHealed = 16, "flow_healed";
    /// The entries of a flow contradicted each other; the flow was given up.
    FlowDead = 17, "flow_dead";
    /// A flow was promoted to the established table.
    FlowPromoted = 18, "flow_promoted";
    /// A promotion did not fit into the established table.
    PromotionFailed = 19, "promotion_failed";
    /// Dropped: the Service's slot or backend row is missing (tables in an impossible state; report it).
    DropNoBackend = 20, "drop_no_backend";
    /// SNAT pairs made.
    SnatFlow = 21, "snat_flows";
    /// Replies whose port mapping would otherwise be taken for a new flow were let through.
    PassEntry = 22, "pass_entries";
    /// Dropped: the first fragment of an SCTP packet needs a port rewrite; its CRC32c covers the fragments to come.
    DropSctpPort = 23, "drop_sctp_port";
    /// ICMP errors about packets of a flow (fragmentation needed, unreachable, time exceeded) that were translated.
    IcmpTranslated = 24, "icmp_errors_translated";
    /// Replies that left by another device than the stack had chosen, because routing rules (`ip rule from`) say so for
    /// the frontend's address.
    ReplyRerouted = 25, "replies_rerouted";
    /// Dropped: a TCP packet without an entry while flow tables were moved to another layout; it is sent again.
    DropMigrating = 26, "drop_migrating";
    /// New flows whose backend is on another node that were begun at XDP.
    XdpFlow = 27, "xdp_flows";
    /// Packets that XDP rewrote, or put into an outer header, and sent on without the stack.
    XdpSent = 28, "xdp_sent";
    /// Packets of flows that began at XDP, sent on by TC: XDP was taken off the interface, or has no next hop.
    XdpCompleted = 29, "xdp_completed_at_tc";
    /// Dropped: a packet of a flow that began at XDP, for which the node has no route, or whose hop limit is used up.
    DropNoRoute = 30, "drop_no_route";
    /// Flows that ended (both sides closed, or one reset) and left the established table.
    FlowRetired = 31, "flow_retired";
    /// Entries that the programs put into LB_CT4; with those that went, it tells how many were evicted.
    Established4Made = 32, "established4_made";
    /// Entries that the programs deleted from LB_CT4.
    Established4Gone = 33, "established4_gone";
    /// As established4_made, for LB_CT6.
    Established6Made = 34, "established6_made";
    /// As established4_gone, for LB_CT6.
    Established6Gone = 35, "established6_gone";
    /// New flows between pods of this node that are forwarded past the stack (`--fast`).
    FastFlow = 36, "fast_flows";
    /// Packets handed from pod to pod past the stack.
    FastSent = 37, "fast_sent";
    /// New flows whose backend's node answers the client by itself (DSR).
    DsrFlow = 38, "dsr_flows";
    /// Packets sent on to another node in an outer header.
    DsrSent = 39, "dsr_sent";
    /// Packets of other nodes that were taken out of their outer header.
    DsrReceived = 40, "dsr_received";
    /// Dropped: a packet that another node sent by DSR is for no Service that is known here. Nodes disagree for a moment,
    /// or for as long as one of them does not reach the API server.
    DropDsrUnknown = 41, "drop_dsr_unknown";
    /// Packets that did not fit with an outer header; their senders were told the smaller size, within the rate.
    DsrTooBig = 42, "dsr_too_big";
    /// Dropped: an entry of the flow was evicted between the two rewrites of a packet, which would have left with a wrong
    /// source. It is sent again. Raise the size of the flow tables.
    DropFlowLost = 43, "drop_flow_lost";
}

/// Entries of `LB_COUNTERS`: the numbers in use, with room.
pub const COUNTERS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_fit() {
        for (number, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, number);
        }
        assert!(Counter::ALL.len() <= COUNTERS);
    }
}
