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

pub(crate) use crate::desired::for_each_table;

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
