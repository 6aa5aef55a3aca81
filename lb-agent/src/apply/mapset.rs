//! The tables as `apply` sees them: written key by key, with errors by key.

use std::io;

use lb_common::abi::{
    Addr4, Addr6, Backend4, Backend6, Iface, LbConfig, NextHop, Peer, RangeKey4, RangeKey6, SvcKey4, SvcKey6,
    SvcValue,
};

use crate::desired::Prefix;

/// A key that could not be written, as its place in what was given, and why.
pub type Failure = (usize, io::Error);

/// One table that the agent writes.
///
/// Implementations: `BpfTable` and `FakeTable` of the tests. Laws: every key given is tried; a key
/// whose failure is returned is as it was before; deleting what is not there succeeds; a missing entry and, in
/// arrays, an all-zero one are the same.
pub trait Table<K, V> {
    /// Inserts or replaces.
    fn write(&mut self, entries: &[(K, V)]) -> Vec<Failure>;
    /// Deletes.
    fn remove(&mut self, keys: &[K]) -> Vec<Failure>;
    /// Reads all entries, in any order.
    ///
    /// # Errors
    /// As the kernel says.
    fn read(&mut self) -> io::Result<Vec<(K, V)>>;
}

/// Calls `$then!` with all tables that are maps from keys to values, but for the slots: field of `Desired`, types, name.
macro_rules! for_each_table {
    ($then:ident) => {
        $then! {
            services4: SvcKey4 => SvcValue, LB_SVC4;
            services6: SvcKey6 => SvcValue, LB_SVC6;
            backends4: u32 => Backend4, LB_BE4;
            backends6: u32 => Backend6, LB_BE6;
            generations4: u32 => u32, LB_GEN4;
            generations6: u32 => u32, LB_GEN6;
            ranges4: Prefix<RangeKey4> => u32, LB_RANGE4;
            ranges6: Prefix<RangeKey6> => u32, LB_RANGE6;
            cidrs4: Prefix<Addr4> => u32, LB_CIDR4;
            cidrs6: Prefix<Addr6> => u32, LB_CIDR6;
            node4: [u8; 4] => u32, LB_NODE4;
            node6: [u8; 16] => u32, LB_NODE6;
            nexthops: u32 => NextHop, LB_NH;
            peers: u32 => Peer, LB_PEERS;
            peers4: [u8; 4] => u32, LB_PEER4;
            peers6: [u8; 16] => u32, LB_PEER6;
            interfaces: u32 => Iface, LB_IF;
            namespaces: u64 => u32, LB_NETNS;
        }
    };
}
pub(crate) use for_each_table;

macro_rules! map_set {
    ($($field:ident: $key:ty => $value:ty, $name:ident;)*) => {
        /// All tables that the agent writes. Implementations: [`super::bpf::BpfMaps`], `FakeMaps` of the tests.
        pub trait MapSet {
            $(
                #[doc = concat!("`", stringify!($name), "`.")]
                fn $field(&mut self) -> &mut dyn Table<$key, $value>;
            )*
            /// `LB_SLOTS`.
            fn slots(&mut self) -> &mut dyn Table<u32, u32>;
            /// Reads `LB_CONFIG`.
            ///
            /// # Errors
            /// As the kernel says.
            fn read_config(&mut self) -> io::Result<LbConfig>;
            /// Writes `LB_CONFIG`.
            ///
            /// # Errors
            /// As the kernel says; the old value stays.
            fn write_config(&mut self, config: &LbConfig) -> io::Result<()>;
            /// Reads `LB_ROLES`.
            ///
            /// # Errors
            /// As the kernel says.
            fn read_roles(&mut self) -> io::Result<Vec<u8>>;
            /// Writes `LB_ROLES`, all of it at once.
            ///
            /// # Errors
            /// As the kernel says; the old value stays.
            fn write_roles(&mut self, roles: &[u8]) -> io::Result<()>;
        }
    };
}
for_each_table!(map_set);
